"""docs/results.md is what the kept runs give, and README and configurations quote only what was measured."""

import json

import pytest

from benchmarks import __main__ as entry
from benchmarks import ranking, report, results, times
from model_utils.errors import UserError


def result(seed, target, **more):
    return {
        "experiment": "dann",
        "seed": seed,
        "device": "CPU",
        "steps": 10,
        "seconds": 2.0,
        "accuracy": {"source": 0.9, "target": target},
        "oracle_accuracy": {"source": 0.9, "target": target + 0.01},
        "machine": {"processor": "P", "cores": 2},
        "versions": {"python": "3"},
        **more,
    }


def run_folder(folder, content):
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content))
    rows = [
        {
            "kind": "test",
            "phase": phase,
            "step": step,
            "seconds": 1.0,
            "source_accuracy": 0.8,
            "target_accuracy": value,
        }
        for phase, step, value in (("pretrain", 5, 0.4), ("adapt", 10, 0.5))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_page_is_what_the_kept_runs_give():
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


def test_mean_and_deviation_of_kept_runs(tmp_path):
    for seed, target in enumerate((0.90, 0.92, 0.97)):
        folder = run_folder(tmp_path / f"run{seed}", result(seed, target))
        assert results.keep(folder, tmp_path / "kept").name == f"dann-seed{seed}.json"
    row = next(line for line in results.page(tmp_path / "kept").splitlines() if "recommended" in line)
    # mean 0.93; deviations -0.03, -0.01, 0.04: variance 0.0026 / 2
    assert "**93.00 ± 3.61 %**" in row and "94.00 ± 3.61 %" in row
    assert "40.00 ± 0.00 %" in row  # at the end of the phase before the last
    assert {"93.00", "3.61", "97.00", "50.00"} <= results.known(tmp_path / "kept")


def test_domains_left_out_are_told_apart(tmp_path):
    for target in ("0", "75"):
        folder = run_folder(tmp_path / target, result(0, 0.5, experiment="x", target_domain=target))
        assert results.keep(folder, tmp_path / "kept").name == f"x-{target}-seed0.json"
    assert set(results.load(tmp_path / "kept")) == {("x", "0"), ("x", "75")}


def test_what_was_not_run_is_said(tmp_path):
    page = results.page(tmp_path)
    assert "| not run |" in page and "| 75 | not run | |" in page and "Time to accuracy" not in page


def test_front_page_ranks_and_chooses_without_target_labels(tmp_path):
    """The surest run fails on the source, so the next surest is chosen: neither the best nor the worst."""
    runs = ((0.90, 1.9, 0.3), (0.80, 1.5, 0.9), (0.95, 1.2, 0.9), (0.70, 1.1, 0.9))
    groups = {("better", None): [result(0, 0.97)], ("dann", None): []}
    for seed, (target, information, source) in enumerate(runs):
        rules = {"information": information, "source_accuracy": source}
        groups["dann", None].append(result(seed, target, selection=rules, seconds=60.0 + 60 * seed))
    task = {"recipes": {"dann": "one", "better": "other", "absent": "not kept"}}
    best, row = ranking.rows(task, groups, tmp_path)
    assert (best.title, row.title) == ("other", "one") and best.chosen is None
    # mean of 90, 80, 95, 70: 83.75; squares 39.0625 + 14.0625 + 126.5625 + 189.0625 over 3: 122.92
    assert row.cells() == ["one", "**83.75 ± 11.09**", "80.00", "70.00", "96.00", "2.5", 4]


def test_front_page_takes_the_mean_over_the_columns_of_a_table(tmp_path):
    columns = {"a": {"0": [50.0, 30.0], "1": [60.0, 90.0]}, "b": {"0": [70.0, 60.0], "2": [1.0, 1.0]}}
    report.keep_runs(tmp_path / "pairs.json", "title", "command", {"mcc": columns})
    task = {"recipes": {"mcc": "MCC"}, "table": "pairs.json", "runs": "title"}
    assert [row.cells() for row in ranking.rows(task, {}, tmp_path)] == [
        ["MCC", "**60.00**", "–", "60.00", "–", "0.8", 1]
    ]


def test_gains_are_paired_by_seed(tmp_path):
    accuracies = {"masf": {0: 0.90, 1: 0.80, 2: 0.99}, "deepall": {0: 0.88, 1: 0.81}}
    for method, by_seed in accuracies.items():
        for seed, accuracy in by_seed.items():
            name = f"{method}_rotated_mnist"
            content = result(seed, 0.5, experiment=name, target_domain="75", accuracy={"75": accuracy})
            content["oracle_accuracy"] = content["accuracy"]
            folder = run_folder(tmp_path / f"{name}{seed}", content)
            (folder / "metrics.jsonl").write_text("")
            results.keep(folder, tmp_path / "kept")
    # +2 and -1: mean 0.5, deviation √4.5; seed 2 has nothing to be compared with
    assert "| 75 | +0.50 ± 2.12 | +2.00, -1.00 |" in results.page(tmp_path / "kept")


def test_time_to_accuracy(tmp_path):
    curves = {
        "ours": [[[10, 0.8], [20, 0.92]], [[12, 0.91], [24, 0.9]]],
        "theirs": [[[9, 0.85]], [[9, 0.95]]],
    }
    content = {"command": "python -m it", "thresholds": [0.8157, 0.9], "curves": curves}
    (tmp_path / times.KEPT).write_text(json.dumps(content))
    page = results.page(tmp_path)
    assert "| ours | 16 s (12 to 20) | 16 s (12 to 20) | 91.00 ± 1.41 % | 22 s | 2 |" in page
    assert "| theirs | 9 s (9 to 9) | not reached by 1 of 2 | 90.00 ± 7.07 % | 9 s | 2 |" in page
    assert "python -m it" in page
    assert "ended once" not in page


def test_time_to_accuracy_of_runs_that_were_ended(tmp_path):
    content = {"command": "python -m it", "thresholds": [0.9], "curves": {"ours": [[[10, 0.8], [20, 0.92]]]}}
    content |= {"stopped": True, "machine": {"processor": "Abacus", "cores": 2}}
    (tmp_path / times.KEPT_PUBLISHED).write_text(json.dumps(content))
    page = results.page(tmp_path)
    # the last evaluation of such a run and its time say nothing about the recipe
    assert "| recipe | 90 % | seeds |" in page
    assert "| ours | 20 s (20 to 20) | 1 |" in page
    assert (
        "The runs were ended once they had reached the last threshold. Measured on 2 cores of Abacus." in page
    )


def test_time_to_accuracy_of_kept_runs(tmp_path):
    for seed, second in ((0, 0.91), (1, 0.89)):
        run = result(seed, second, experiment="dann_on_published_mnist_m")
        run["test"] = [["adapt", 1, 10.0, {"target": 0.82}], ["adapt", 2, 20.0, {"target": second}]]
        name = f"{run['experiment']}-seed{seed}.json"
        (tmp_path / name).write_text(json.dumps(run))
    page = results.page(tmp_path)
    assert "| 10 s (10 to 10) | not reached by 1 of 2 | not reached by 2 of 2 | 2 |" in page


def test_run_of_an_unknown_experiment_is_refused(tmp_path):
    folder = run_folder(tmp_path / "run", result(0, 0.5, experiment="nobody"))
    results.keep(folder, tmp_path / "kept")
    with pytest.raises(UserError, match="nobody"):
        results.page(tmp_path / "kept")


def test_figures_reach_the_table(tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.jsonl"
    monkeypatch.setenv(report.VARIABLE, str(path))
    report.ratio("step", 10.0, 20.0, "ms")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["name"], row["text"], row["unit"]) for row in rows] == [
        ("step, ours", "10.0", "ms"),
        ("step, PyTorch", "20.0", "ms"),
        ("step, ours : PyTorch", "0.50", ""),
    ]
    assert "step, ours: 10.0 ms" in capsys.readouterr().out
    assert "0.50" in entry.table(rows)


def test_saving_exchanges_only_what_was_run(tmp_path):
    def row(command, text):
        return {"benchmark": "b", "name": command, "text": text, "unit": "", "command": command}

    entry.save([row("a", "1"), row("b", "1")], {"a", "b"}, tmp_path)
    entry.save([row("b", "2")], {"b"}, tmp_path)
    kept = {r["name"]: r["text"] for r in results.figures(tmp_path)["figures"]}
    assert kept == {"a": "1", "b": "2"}
