"""One of two real processes fails: the other stops with a message (tests/failing_rank.py is what they do)."""

import json
import re
import subprocess
import sys

import pytest

from model_utils import checkpoint
from tests.helpers import ROOT, environment


def launched(folder, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "-m", "model_utils.launch", "--program", "tests/failing_rank.py"),
            *("--form", "N=@processes", "--", "2", "--out", folder, "--log_dir", folder / "log", *arguments),
        ],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def assert_names_rank_1(done):
    said = r"error: rank 1 failed( \(1\))?; the others were stopped; its last line: KeyError: .*\n"
    assert re.fullmatch(said, done.stderr)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """(folder, {fault: (exception's name, its text)} of rank 0, the same of rank 1)."""
    folder = tmp_path_factory.mktemp("failing")
    done = launched(folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, *(json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))


@pytest.mark.parametrize(
    "fault, name, text",
    [
        ("loss", "UserError", "the loss became nan in phase main, step 2 of 4; the last good checkpoint is"),
        ("user error", "UserError", "a.jpg can't be read"),
        ("bug", "KeyError", "'lost in a thread'"),
        ("first batch", "OSError", "[Errno 5] Input/output error"),
        ("statistics", "UserError", "weight became infinite or not a number in phase main, step 2 of 4"),
    ],
)
def test_reported_failure_of_one_rank_stops_all_at_the_same_step(ranks, fault, name, text):
    folder, healthy, failed = ranks
    assert failed[fault][0] == name and failed[fault][1].startswith(text)
    assert healthy[fault] == ["PeerError", "stopped because of an error on rank 1"]
    steps = [int(path.stem[5:]) for path in checkpoint.listed(folder / fault)]
    # Of every second step; nothing of the failed one.
    assert steps == {"first batch": [], "user error": [4, 2], "bug": [4, 2]}.get(fault, [2])


@pytest.mark.thorough
def test_reported_bug_of_one_rank_while_it_evaluates_is_named(tmp_path):
    """Where the ranks can't agree any more, the launcher ends the others."""
    done = launched(tmp_path, "--fault", "evaluation")
    assert done.returncode == 1, done.stderr + done.stdout
    assert_names_rank_1(done)


@pytest.mark.thorough
def test_reported_bug_of_one_rank_in_training_is_named(tmp_path):
    done = launched(tmp_path, "--fault", "bug")
    assert done.returncode == 1, done.stderr + done.stdout
    assert_names_rank_1(done)
