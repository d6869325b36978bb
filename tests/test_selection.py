"""Rules of selection against numbers by hand, what a run keeps for them, and the choice among runs."""

import itertools
import json
import math

import mindspore as ms
import numpy as np
import pytest
from helpers import build, command, fails, forked, refused, succeeded, tiny_config

from src import selection
from src.selection import pool as pools
from src.selection.evidence import Evidence
from src.selection.probe import Probe, SourceProbe, for_run
from src.train_cells import find_method, method_names


def logits_of(probabilities):
    return np.log(np.asarray(probabilities, np.float64))


def evidence(probabilities, **more):
    logits = logits_of(probabilities)
    return Evidence(logits, np.zeros((len(logits), 2)), lambda *_: logits, **more)


SOME = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]


def by_hand(row):
    return -sum(p * math.log(p) for p in row)


def test_rules_are_found_by_name():
    assert {"ensv", "entropy", "information", "mixval", "source_accuracy"} <= set(selection.names())
    assert set(selection.names()) - set(selection.of_one_run()) == {"ensv"}
    fails(lambda: selection.find("accuracy"), "no rule", "ensv")
    for name in selection.names():
        assert selection.find(name).__doc__


def test_entropy_and_information():
    mean_entropy = sum(by_hand(row) for row in SOME) / 4
    mean = [sum(row[k] for row in SOME) / 4 for k in range(3)]
    assert selection.find("entropy").score(evidence(SOME)) == pytest.approx(-mean_entropy)
    assert selection.find("information").score(evidence(SOME)) == pytest.approx(by_hand(mean) - mean_entropy)


def test_nuclear_norm():
    rule = selection.find("nuclear_norm")
    eigenvalues = np.linalg.eigvalsh(np.array(SOME).T @ np.array(SOME))
    expected = sum(math.sqrt(max(0, value)) for value in eigenvalues) / math.sqrt(4 * 3)
    assert rule.score(evidence(SOME)) == pytest.approx(expected)
    sure = np.full((6, 3), 1e-9) + np.repeat(np.eye(3), 2, 0)
    assert rule.score(evidence(sure / sure.sum(1, keepdims=True))) == pytest.approx(1, abs=1e-6)


def test_neighbourhood_density():
    unit = [[p / math.sqrt(sum(q * q for q in row)) for p in row] for row in SOME]
    total = 0
    for i, one in enumerate(unit):
        powers = [
            math.exp(sum(a * b for a, b in zip(one, other, strict=True)) / 0.05)
            for j, other in enumerate(unit)
            if j != i
        ]
        total += by_hand([power / sum(powers) for power in powers])
    rule = selection.find("neighbourhood_density")
    assert rule.score(evidence(SOME)) == pytest.approx(total / 4)
    assert rule.score(evidence(SOME[:2])) is None


def test_source_accuracy_and_class_shares():
    held_out = {"source_logits": logits_of(SOME), "source_labels": np.array([0, 1, 1, 2])}
    assert selection.find("source_accuracy").score(evidence(SOME, **held_out)) == 0.75
    assert selection.find("source_accuracy").score(evidence(SOME)) is None
    shares = selection.find("class_shares").score(evidence(SOME, source_shares=np.array([0.2, 0.3, 0.5])))
    assert shares == pytest.approx(-0.5 * (abs(0.5 - 0.2) + abs(0.25 - 0.3) + abs(0.25 - 0.5)))
    assert selection.find("class_shares").score(evidence(SOME)) is None


def test_mixval_asks_for_mixtures_and_counts_their_larger_part():
    rule = selection.find("mixval")
    labels = np.array(SOME).argmax(1)
    asked = []

    def mixed(first, second, share):
        asked.append((first.tolist(), second.tolist(), share))
        # Right where both are of one class, wrong elsewhere.
        same = labels[first] == labels[second]
        return np.eye(3)[np.where(same, labels[first], labels[second])]

    score = rule.score(Evidence(logits_of(SOME), None, mixed))
    first, second, share = asked[0]
    assert sorted(second) == first == [0, 1, 2, 3] and 0.5 < share < 1
    kinds = [labels[i] == labels[j] for i, j in zip(first, second, strict=True) if i != j]
    assert score == (0.5 if True in kinds and False in kinds else float(True in kinds))
    assert rule.score(Evidence(logits_of(SOME[:1]), None, mixed)) is None


def test_ensv():
    a, b, c = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 1, 1]], np.eye(3)[[0, 1, 1, 0]]
    assert selection.find("ensv").scores([a, b, c]) == [0.75, 0.75, 1.0]


def test_a_probe_sees_no_label_and_changes_nothing(place):
    cell = build(tiny_config("dann", validator_images=50), place)
    probe = for_run(cell)
    assert all((labels == -1).all() for _, labels in probe.loader)
    before = [p.asnumpy().copy() for p in cell.network.get_parameters()]
    first = probe.measure()
    assert first == probe.measure() and set(first) == set(selection.of_one_run())
    after = [p.asnumpy() for p in cell.network.get_parameters()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert probe.probabilities.shape == (50, 10)
    other = Probe(build(tiny_config("dann", validator_images=50, seed=7), place), 50)
    assert probe.about() == other.about(), "the same images for every seed"


@pytest.mark.parametrize("method", method_names())
def test_only_methods_that_adapt_are_measured_on_the_target(method, place):
    cell = build(tiny_config(method), place)
    probe = for_run(cell)
    assert (probe is not None) == (cell.task.form.target is not None)
    if probe is not None:
        assert isinstance(probe, SourceProbe) == (find_method(method).LEAST_SOURCES == 2)
    assert for_run(build(tiny_config(method, validator_images=0), place)) is None


def test_generalisation_is_judged_by_sources_alone(place, tmp_path, monkeypatch):
    cell = build(tiny_config("deepall"), place)
    monkeypatch.setattr(cell.task, "sample_of_target", None)
    probe = for_run(cell)
    right = [
        (cell.network(ms.Tensor(images)).asnumpy().argmax(1) == labels)
        for loader in cell.held_out_sources.values()
        for images, labels in loader
    ]
    assert probe.measure() == {"source_accuracy": pytest.approx(np.concatenate(right).mean())}
    runs = []
    for name, accuracy in (("a", 0.8), ("b", 0.9)):
        runs.append(written(tmp_path / name, {"source_accuracy": accuracy}, np.zeros((2, 3))))
        probe.save(runs[-1])
    pool = pools.Pool([pools.read(run) for run in runs])
    assert set(pool.table) == {"source_accuracy"} and pool.default == "source_accuracy"
    assert pool.choice(pool.default) == 1
    said = succeeded(choose(*runs))
    assert "chosen by source_accuracy" in said and said.splitlines()[-1] == str(runs[1])


def written(folder, values, probabilities, accuracy=None, images="x"):
    """A finished run as selection reads it."""
    folder.mkdir(parents=True)
    result = {"selection": values, "accuracy": {"source": 0.9}}
    if accuracy is not None:
        result["accuracy"]["target"] = accuracy
    (folder / "result.json").write_text(json.dumps(result))
    about = json.dumps({"classes": ["a", "b"], "images": images}).encode()
    np.savez(folder / "predictions.npz", probabilities=probabilities, about=np.frombuffer(about, np.uint8))
    return folder


def pool_of(tmp_path, accuracies=(0.5, 0.9, 0.7)):
    sure = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    predictions = sure[:, ::-1], sure, sure * [[1], [1], [1], [1]]
    values = {"source_accuracy": 0.95, "entropy": -0.1}, {"source_accuracy": 0.9, "entropy": -0.2}
    values += ({"source_accuracy": 0.5, "entropy": 0.0},)
    return [
        written(tmp_path / f"run-{number}", v, p, a)
        for number, v, p, a in zip(itertools.count(), values, predictions, accuracies)  # noqa: B905 - endless
    ]


def test_the_choice_is_gated_by_source_accuracy(tmp_path):
    pool = pools.Pool([pools.read(folder) for folder in pool_of(tmp_path)])
    assert pool.gated == [True, True, False]
    assert pool.table["ensv"] == [0.0, 1.0, 1.0]
    assert pool.choice("ensv") == 1 and pool.choice("entropy") == 0 and pool.choice("source_accuracy") == 0
    judged = pool.judged("entropy")
    assert judged["accuracy"] == 50 and judged["regret"] == pytest.approx(40) and judged["worst_quarter"]
    assert judged["rank_correlation"] == pytest.approx(-0.5)
    fails(lambda: pool.choice("mixval"), "no value", "entropy")


def test_without_target_labels_nothing_is_said_of_accuracy(tmp_path):
    pool = pools.Pool([pools.read(folder) for folder in pool_of(tmp_path, (None, 0.9, 0.7))])
    assert pool.accuracies is None and pool.judged("ensv") is None
    assert not any("oracle" in line for line in pools.lines(pool))


def test_pools_that_cannot_be(tmp_path):
    folders = pool_of(tmp_path)
    fails(lambda: pools.Pool([pools.read(folders[0])]), "one run")
    other = written(tmp_path / "other", {"entropy": 0}, np.ones((4, 2)) / 2, images="y")
    fails(lambda: pools.Pool([pools.read(folders[0]), pools.read(other)]), "different tasks")
    fails(lambda: pools.read(tmp_path), "no finished run")
    (folders[0] / "predictions.npz").write_bytes(b"PK\x03\x04 cut")
    fails(lambda: pools.read(folders[0]), "damaged")
    (folders[1] / "predictions.npz").unlink()
    fails(lambda: pools.read(folders[1]), "nothing to select by", "validator_images")
    (folders[2] / "result.json").write_text("{")
    fails(lambda: pools.read(folders[2]), "damaged")


@pytest.mark.slow
def test_runs_are_chosen_among_by_the_command(tmp_path):
    runs = []
    for seed in (0, 1):
        runs.append(tmp_path / f"run-{seed}")
        succeeded(command("train.py", config="tests/tiny/mcc.yaml", seed=seed, output_dir=runs[-1]))
    result = json.loads((runs[0] / "result.json").read_text(encoding="utf-8"))
    rows = (runs[0] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [json.loads(row) for row in rows if '"selection"' in row][-1]
    assert all(last[name] == value for name, value in result["selection"].items())
    assert (runs[0] / "selection.png").is_file()
    said = succeeded(choose(*runs, f"--json={tmp_path / 'chosen.json'}"))
    content = json.loads((tmp_path / "chosen.json").read_text(encoding="utf-8"))
    assert said.splitlines()[-1] == content["chosen"] and content["by"] == "ensv"
    assert "oracle" in said and set(content["rules"]) == set(selection.names())
    refused(choose(*runs, "--by=luck"), "no rule")
    refused(choose(runs[0], tmp_path), "no finished run")


def choose(*arguments):
    """`python -m src.selection` with these arguments."""
    return forked(["-m", "src.selection", *arguments])
