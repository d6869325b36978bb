"""SIGKILL at random moments of a real run, many while a checkpoint is written; then resume to the same end.

Two kills by default, four where tests are thorough. `KILLS=20 python -m pytest tests/test_kill.py -s` makes
twenty and prints figures.
"""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from model_utils import checkpoint, run_log
from tests.helpers import DEMO, ROOT, environment, options

THOROUGH = os.environ.get("DATA_ROOT") or os.environ.get("THOROUGH") == "1"
KILLS = int(os.environ.get("KILLS", "4" if THOROUGH else "2"))
KEYS = {
    **DEMO,
    "steps_per_epoch": 5,
    "n_epoch": 1,
    "eval_interval": 10,
    "save_checkpoint_steps": 1,
    "tensorboard": "false",
}
STEPS = 10
LIMIT = 180  # seconds for anything that takes three


def start(folder, **changes):
    keys = options(**{**KEYS, "output_dir": folder, **changes})
    return subprocess.Popen(
        [sys.executable, "train.py", *keys],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder, **changes):
    process = start(folder, **changes)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    return end_of(folder), output


def end_of(folder):
    """All that a finished run leaves: parameters and optimizer state, the network's file, what was logged."""
    newest, values, _ = checkpoint.newest(folder)
    assert newest == checkpoint.step_path(folder, STEPS)
    network, _ = checkpoint.read(folder / "network.ckpt")
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in run_log.read_metrics(folder / "metrics.jsonl")
    ]
    return values, network, rows


def same(one, other):
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert one[2] == other[2]


def is_writing(process, folder):
    """Whether a checkpoint's temporary file of this process is there."""
    return any((folder / "checkpoints").glob(f".step-*.{process.pid}*"))


def wait_for(process, condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def steps_logged(folder):
    return sum(row["kind"] == "train" for row in run_log.read_metrics(folder / "metrics.jsonl"))


def kill(process, folder, rng, while_writing):
    """SIGKILL after a random number of steps: while a checkpoint is written, or up to 50 ms after a step.

    Returns whether a checkpoint was left half written.
    """
    steps = rng.randrange(steps_logged(folder), STEPS - 1)
    wait_for(process, lambda: (folder / "metrics.jsonl").is_file() and steps_logged(folder) >= steps)
    if while_writing:
        wait_for(process, lambda: is_writing(process, folder))
        time.sleep(rng.uniform(0, 0.002))
    else:
        time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return is_writing(process, folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("reference"))[0]


def test_killed_runs_end_as_if_nothing_had_happened(reference, tmp_path):
    rng = random.Random(7)
    kills = torn = ends = 0
    while kills < KILLS:
        folder = tmp_path / str(ends)
        # Every other run is killed a second time, after it was resumed.
        for _ in range(min(1 + ends % 2, KILLS - kills)):
            resume = bool(checkpoint.listed(folder))  # killed before its first checkpoint it starts again
            process = start(folder, resume=resume)
            torn += kill(process, folder, rng, while_writing=kills % 2 == 0)
            kills += 1
        resume = bool(checkpoint.listed(folder))
        end, output = finish(folder, resume=resume)
        assert not resume or "resuming from" in output
        assert not list((folder / "checkpoints").glob(".step-*"))  # nothing half written stays
        same(end, reference)
        ends += 1
    print(
        f"\n{kills} kills, {torn} of them with a checkpoint half written; {ends} runs, {ends} identical ends"
    )
    assert torn > 0
