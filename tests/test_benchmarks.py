"""The commands of benchmarks/ explain themselves and refuse bad input in one line; figures are not tested."""

import pytest
from helpers import ROOT, forked, refused, succeeded

from model_utils.errors import UserError
from model_utils.run_log import read_metrics

NAMES = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def benchmark(name, *arguments):
    """Run `python -m benchmarks.NAME` to its end."""
    return forked(["-m", f"benchmarks.{name}", *arguments])


@pytest.mark.parametrize("name", NAMES)
def test_help_says_how_to_start_it(name):
    wanted = "python -m benchmarks" if name == "__main__" else f"benchmarks.{name}"
    assert wanted in succeeded(benchmark(name, "--help")).replace("\n", " ").replace("  ", " ")


def test_folder_without_a_result_is_one_line(tmp_path):
    refused(benchmark("results", "--keep", tmp_path / "none"), "none", "result.json")


@pytest.mark.parametrize(
    "name, option", [("layers", "--rounds"), ("processes", "--rounds"), ("create_mnistm", "--runs")]
)
def test_number_of_rounds_is_checked(name, option):
    done = benchmark(name, option, 0)
    assert done.returncode == 2
    assert option in done.stderr and "at least 1" in done.stderr and "Traceback" not in done.stderr


def test_a_threshold_is_reached_at_the_first_evaluation_at_or_above_it(capsys):
    from benchmarks import time_to_accuracy

    curve = [(10.0, 0.80), (20.0, 0.90), (30.0, 0.96), (40.0, 0.94)]
    assert time_to_accuracy.reached(curve, 0.8157) == 20
    assert time_to_accuracy.reached(curve, 0.95) == 30
    assert time_to_accuracy.reached(curve, 0.97) is None
    time_to_accuracy.summarise("recipe", [curve, [(60.0, 0.93)]])
    shown = capsys.readouterr().out
    assert "recipe, time to 81.57 %: 40 s" in shown
    assert "recipe, time to 95 %: not reached by 1 of 2" in shown
    assert "recipe, last evaluation: 93.50 %" in shown and "(oracle): 94.50 %" in shown


TRAINING = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "state").write_text("saved"), sys.exit(143)))
for step, accuracy in enumerate(map(float, sys.argv[2:])):
    row = {"kind": "test", "step": step, "seconds": float(step), "target_accuracy": accuracy}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
time.sleep(600)
"""


def test_a_run_ends_at_the_last_threshold(tmp_path):
    from benchmarks import time_to_accuracy

    folder = tmp_path / "run"
    time_to_accuracy.until_reached(["-c", TRAINING, str(folder), "0.82", "0.96"], folder)
    assert (folder / "state").read_text() == "saved"  # it was asked to stop, not killed
    assert [row["target_accuracy"] for row in read_metrics(folder / "metrics.jsonl")] == [0.82, 0.96]
    with pytest.raises(UserError, match="holds a run already"):  # whose curve would be taken for the new one
        time_to_accuracy.until_reached(["-c", "raise SystemExit(2)"], folder)


def test_a_run_that_fails_is_named(tmp_path):
    from benchmarks import time_to_accuracy

    with pytest.raises(UserError, match=r"status 3; see .*run-printed\.log"):
        time_to_accuracy.until_reached(["-c", "import sys; print('why'); sys.exit(3)"], tmp_path / "run")
    assert (tmp_path / "run-printed.log").read_text() == "why\n"
