"""Sweeps: what may be tried, how they go on after a kill, and what they refuse."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from unittest import mock

import optuna
import pytest
import yaml
from helpers import ROOT, command, environment, fails, refused, succeeded

import sweep
from model_utils import child, config
from src.setup import settings as experiment
from src.sweeps import leave_one_out, space, study

SPACE = "lr: {low: 0.001, high: 0.01, log: true}\nmcc_weight: [0.5, 1.0]\n"
TINY = ("--config=tests/tiny/mcc.yaml", "--device_target=CPU", "--mode=pynative")


def keys():
    return experiment.load(["--config=tests/tiny/mcc.yaml"]).keys


def written(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_space_is_read_as_the_keys_say(tmp_path):
    text = (
        SPACE
        + "batch_size: {low: 8, high: 32, step: 8}\nlr_schedule: [constant, cosine]\nsync_bn: [true, false]"
    )
    found = space.read(written(tmp_path, text), keys())
    assert found["lr"] == optuna.distributions.FloatDistribution(0.001, 0.01, log=True)
    assert found["batch_size"] == optuna.distributions.IntDistribution(8, 32, step=8)
    assert found["mcc_weight"].choices == (0.5, 1.0) and found["sync_bn"].choices == (True, False)


@pytest.mark.parametrize(
    "text, parts",
    (
        ("", ["is empty"]),
        ("- a", ["key: value"]),
        ("learning: [1, 2]", ["learning is no key"]),
        ("lr: {low: -1, high: 1}", ["lr", "-1", "not allowed"]),
        ("lr: {low: 0.1, high: 0.01}", ["low below high"]),
        ("lr: {low: 0.1}", ["low and high"]),
        ("lr: 0.1", ["list of values"]),
        ("lr: [0.1]", ["2 to 100 values"]),
        ("lr: [0.1, 0.10]", ["a value twice"]),
        ("lr: {low: 0.1, high: 0.2, log: true, step: 0.1}", ["log and step"]),
        ("mcc_weight: {low: 0, high: 1, log: true}", ["above 0 with log"]),
        ("batch_size: {low: 8, high: 16, step: 0.5}", ["whole number"]),
        ("lr_schedule: {low: 1, high: 2}", ["is no number"]),
        ("lr_schedule: [constant, wavy]", ["lr_schedule", "wavy"]),
        ("seed: [0, 1]", ["seed can't be varied"]),
        ("network: [dann, lenet]", ["network can't be varied"]),
        ("target_image_root: [a, b]", ["can't be varied"]),
    ),
)
def test_spaces_that_cannot_be(tmp_path, text, parts):
    fails(lambda: space.read(written(tmp_path, text), keys()), *parts)


def test_target_labels_are_no_objective_unless_asked_for():
    fails(lambda: study.check_objective("target_accuracy", False), "--oracle true", "information")
    study.check_objective("target_accuracy", True)
    fails(lambda: study.check_objective("ensv", False), "no rule for one run")


def words(tmp_path, *more, trials=2):
    """A sweep of a tiny run, as a command line."""
    path = written(tmp_path, SPACE)
    return [*TINY, f"--space={path}", f"--trials={trials}", *more]


def end(folder):
    """What a sweep ends with: the values and objective of every trial, and the winner."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / study.STORAGE}")
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    winner = yaml.safe_load((folder / "winner.yaml").read_text(encoding="utf-8"))
    return [(t.number, t.state.name, t.params, t.values) for t in trials], winner


@pytest.mark.slow
def test_a_killed_sweep_ends_as_one_that_was_not(tmp_path):
    """Two trials at once: the kill finds both begun."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    said = succeeded(command("sweep.py", *words(tmp_path, "--workers=2", f"--output_dir={whole}")))
    assert "trial 1" in said and "oracle" in said and (whole / "rules.png").is_file()
    full = [sys.executable, "sweep.py", *words(tmp_path, "--workers=2", f"--output_dir={cut}")]
    process = subprocess.Popen(
        full, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while not (cut / "trial-0001" / "seed-0" / "checkpoints").is_dir():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    succeeded(command("sweep.py", *words(tmp_path, "--workers=2", f"--output_dir={cut}")))
    assert end(cut) == end(whole)

    trials, winner = end(whole)
    assert [state for _, state, _, _ in trials] == ["COMPLETE"] * 2
    assert winner["lr"] in [params["lr"] for _, _, params, _ in trials] and winner["batch_size"] == 16
    loaded = experiment.load([f"--config={whole / 'winner.yaml'}"])
    assert (loaded.method, loaded.lr, loaded.mcc_weight) == ("mcc", winner["lr"], winner["mcc_weight"])

    refused(
        command("sweep.py", *words(tmp_path, "--workers=2", f"--output_dir={whole}", "--sweep_seed=1")),
        "another sweep",
    )
    (whole / study.STORAGE).write_bytes((whole / study.STORAGE).read_bytes()[:5000])
    refused(command("sweep.py", *words(tmp_path, "--workers=2", f"--output_dir={whole}")), "damaged")


@pytest.mark.slow
def test_failed_trials_are_kept_with_their_line(tmp_path):
    path = written(tmp_path, "batch_size: [16, 5000]\n")
    options = [
        *TINY,
        f"--space={path}",
        "--trials=2",
        "--sampler=random",
        f"--output_dir={tmp_path / 'sweep'}",
    ]
    seed = next(seed for seed in range(20) if first_two(seed) == {16, 5000})
    said = succeeded(command("sweep.py", *options, f"--sweep_seed={seed}"))
    assert "failed: batch_size: 5000" in said and "the only run with a result" in said


def first_two(seed):
    """The values that two random trials of that space get."""
    found = set()
    for number in range(2):
        one = optuna.create_study(
            sampler=study.SAMPLERS["random"](seed=study.seed_of(seed, number, "batch_size"))
        )
        found.add(one.ask().suggest_categorical("batch_size", (16, 5000)))
    return found


def pretended(group, words, output=None, cores=None, until=None):
    """In the place of child.Group.run: a run of three evaluations whose rule is as high as its rate."""
    given = config.read_arguments(words[1:])
    folder = Path(given["output_dir"])
    rows = [
        {"kind": "selection", "step": n, "steps": 3, "information": float(given["lr"]) + n} for n in (1, 2, 3)
    ]
    for row in rows:
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as metrics:
            metrics.write(json.dumps(row) + "\n")
        if until and until():
            return 143
    (folder / "result.json").write_text(json.dumps({"selection": {"information": rows[-1]["information"]}}))
    return 0


@pytest.mark.parametrize("workers", ["1", "3"])
def test_poor_trials_end_early_and_an_interruption_changes_nothing(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(child.Group, "run", pretended)
    options, given = sweep.parse(words(tmp_path, "--prune=true", f"--workers={workers}", trials=15))
    given, tried, _ = sweep.prepare(options, given)

    def ends(folder, stops):
        made = 0
        folder.mkdir()
        found = study.Sweep(folder, given, tried, options)
        while found.finished() < options.trials:
            if made in stops:  # as if it was killed after the ends were kept, before one of them counted
                with monkeypatch.context() as patch:
                    patch.setattr(optuna.study.Study, "tell", lambda *_, **__: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        found.batch()
                found = study.Sweep(folder, given, tried, options)
            found.batch()
            made += 1
        return [(t.number, t.state.name, t.params, t.values) for t in found.study.trials]

    whole = ends(tmp_path / "whole", ())
    states = [state for _, state, _, _ in whole]
    assert states[:5] == ["COMPLETE"] * 5 and "PRUNED" in states
    rates = {state: [params["lr"] for _, s, params, _ in whole if s == state] for state in set(states)}
    assert max(rates["PRUNED"]) < max(rates["COMPLETE"])
    assert not (
        tmp_path / "whole" / f"trial-{states.index('PRUNED'):04d}" / "seed-0" / "result.json"
    ).exists()
    assert ends(tmp_path / "cut", (1, 3)) == whole


def generalisation(tmp_path, *more):
    """(options, words, space, runs that leave a source out) of a sweep of DeepAll on sets of domains."""
    path = written(tmp_path, "lr_max: [0.001, 0.01]\n")
    given = [
        "--config=tests/tiny/deepall.yaml",
        "--device_target=CPU",
        f"--space={path}",
        "--trials=2",
        *more,
    ]
    options, given = sweep.parse(given)
    return options, *sweep.prepare(options, given)


def test_each_source_is_left_out_in_turn_and_the_target_always(tmp_path, monkeypatch, capsys):
    """A run's accuracy is made up from what it leaves out; the trial's objective is the mean."""
    accuracies, seen = {"0": 0.5, "25": 0.6, "75": 0.9}, []

    def trained(group, words, output=None, cores=None, until=None):
        given = config.read_arguments(words[1:])
        left_out, sources = given["target_domain"], given["source_domains"].split(",")
        seen.append({left_out, *sources})
        found = accuracies[left_out] + float(given["lr_max"])
        content = {"target_domain": left_out, "accuracy": {left_out: found, sources[0]: 1.0}}
        Path(given["output_dir"], "result.json").write_text(json.dumps(content))
        return 0

    monkeypatch.setattr(child.Group, "run", trained)
    options, given, tried, left_out = generalisation(
        tmp_path, "--objective=leave_one_source_out", "--sampler=random", "--sweep_seed=3"
    )
    folder = tmp_path / "sweep"
    folder.mkdir()
    found = study.Sweep(folder, given, tried, options, left_out)
    while found.finished() < 2:
        found.batch()
    assert seen == [{"0", "25", "75"}] * 6, "50 is the target"
    rates = {number: found.values(number)["lr_max"] for number in (0, 1)}
    assert found.objectives() == {n: pytest.approx(2.0 / 3 + rate) for n, rate in rates.items()}
    assert sweep.conclude(found, options, folder, given) == 0
    winner = yaml.safe_load((folder / "winner.yaml").read_text(encoding="utf-8"))
    assert winner["seed"] == 0
    assert winner["lr_max"] == max(rates.values()) and winner["target_domain"] == "50"
    assert "chosen by leave_one_source_out" in capsys.readouterr().out


def test_accuracy_on_the_source_left_out_is_that_of_a_real_result(tmp_path):
    kept = ROOT / "benchmarks" / "results" / "masf_digits-usps-seed0.json"
    (tmp_path / "result.json").write_bytes(kept.read_bytes())
    assert leave_one_out.accuracy(tmp_path) == json.loads(kept.read_bytes())["accuracy"]["usps"]


def test_objectives_of_methods_that_must_not_see_the_target(tmp_path):
    options, _, _, left_out = generalisation(tmp_path)
    assert options.objective == "source_accuracy" and left_out is None
    fails(lambda: generalisation(tmp_path, "--objective=entropy"), "must not", "leave_one_source_out")
    whole = "--objective=leave_one_source_out"
    fails(lambda: generalisation(tmp_path, whole, "--by=entropy"), "by", "leave it out")
    fails(lambda: generalisation(tmp_path, whole, "--prune=true"), "prune")
    fails(lambda: generalisation(tmp_path, whole, "--source_domains=0,25"), "there are 2", "deepall needs 2")
    fails(lambda: sweep.prepare(*sweep.parse(words(tmp_path, whole))), "set of domains")


@pytest.mark.parametrize("key", ["target_domain: [cartoon, photo]", "target_split: [transductive, holdout]"])
def test_what_decides_on_the_target_images_is_not_varied(tmp_path, key):
    given = words(tmp_path)
    written(tmp_path, key)
    fails(lambda: sweep.prepare(*sweep.parse(given)), key.split(":")[0], "target images", "leave it out")


def test_a_trial_whose_run_has_no_accuracy_fails_with_a_line(tmp_path, monkeypatch):
    """The source left out has no image that can be read: nothing to count, and nothing to average."""

    def trained(group, words, output=None, cores=None, until=None):
        folder = config.read_arguments(words[1:])["output_dir"]
        Path(folder, "result.json").write_text(json.dumps({"target_domain": "0", "accuracy": {}}))
        return 0

    monkeypatch.setattr(child.Group, "run", trained)
    options, given, tried, left_out = generalisation(tmp_path, "--objective=leave_one_source_out")
    (tmp_path / "sweep").mkdir()
    found = study.Sweep(tmp_path / "sweep", given, tried, options, left_out)
    assert "failed: the run has no leave_one_source_out" in found.batch()[0]
    line = fails(lambda: sweep.conclude(found, options, tmp_path / "sweep", given), "every trial failed")
    assert "minutes" not in line


def test_why_there_is_nothing_to_choose_from():
    def said(failed, pruned):
        counts = types.SimpleNamespace(failures=lambda: dict.fromkeys(range(failed)), pruned=lambda: pruned)
        return sweep.without_a_result(counts)

    assert "no trial has ended" in said(0, 0) and "every trial failed" in said(2, 0)
    assert "1 failed, 3 were pruned" in said(1, 3)


def test_paths_of_a_sweep_are_the_caller_s(tmp_path, monkeypatch):
    """As those of train.py: a relative output_dir and what trials are given, seen from the same folder."""
    seen = []

    def trained(group, words, output=None, cores=None, until=None):
        given = config.read_arguments(words[1:])
        seen.append((group.folder, words[0], given["pretrained"]))
        return pretended(group, words)

    monkeypatch.setattr(child.Group, "run", trained)
    monkeypatch.setattr(sweep, "conclude", lambda *_: 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place, folder in (("here", tmp_path / "here"), ("~/there", tmp_path / "home" / "there")):
        given = words(tmp_path, f"--output_dir={place}", "--pretrained=mine.ckpt", trials=1)
        monkeypatch.setattr(sys, "argv", ["sweep.py", *given])
        assert sweep.main() == 0 and (folder / "trial-0000" / "seed-0" / "result.json").is_file()
    assert seen == [(str(tmp_path), str(ROOT / "train.py"), "mine.ckpt")] * 2


def test_the_winner_has_the_seed_of_the_chosen_run(tmp_path, monkeypatch):
    pool = types.SimpleNamespace(default="ensv", choice=lambda by: 1, accuracies=None)
    monkeypatch.setattr("src.selection.pool.Pool", lambda candidates: pool)
    monkeypatch.setattr("src.selection.pool.read", lambda run: run)
    monkeypatch.setattr("src.selection.pool.lines", lambda pool: [])
    runs = [tmp_path / "trial-0003" / f"seed-{seed}" for seed in (0, 1)]
    found = types.SimpleNamespace(
        runs=lambda: runs,
        left_out=None,
        failures=dict,
        objectives=lambda: {3: 1.0},
        study=mock.Mock(trials=[0]),
    )
    found.values = lambda number: {"lr": float(number)}
    options = types.SimpleNamespace(by=None, oracle="false")
    assert sweep.conclude(found, options, tmp_path, ["--config=tests/tiny/mcc.yaml"]) == 0
    winner = yaml.safe_load((tmp_path / "winner.yaml").read_text(encoding="utf-8"))
    assert (winner["seed"], winner["lr"]) == (1, 3.0)


@pytest.mark.parametrize(
    "more, parts",
    (
        (["--prune=true", "--objective=target_accuracy", "--oracle=true"], ["prune"]),
        (["--objective=target_accuracy"], ["--oracle true"]),
        (["--by=luck"], ["no rule"]),
        (["--seed=3"], ["a sweep sets this"]),
        (["--model_root=x"], ["model_root: a sweep sets this"]),
        (["--save_checkpoint_path", "x"], ["save_checkpoint_path: a sweep sets this"]),
        (["--lr=0.1"], ["in the space and on the command line"]),
        (["--validator_images=0"], ["validator_images"]),
        (["--learn=1"], ["unknown key learn"]),
        (["--trials=0"], ["is not a whole number of at least 1"]),
    ),
)
def test_refusals(tmp_path, more, parts):
    fails(lambda: sweep.prepare(*sweep.parse(words(tmp_path, *more))), *parts)


@pytest.mark.slow
def test_a_refusal_is_one_line_and_makes_nothing(tmp_path):
    output = tmp_path / "sweep"
    refused(command("sweep.py", *words(tmp_path, f"--output_dir={output}", "--by=luck")), "no rule")
    assert not output.exists()
