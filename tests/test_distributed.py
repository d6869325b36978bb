"""Two real processes under msrun on the CPU; tests/distributed_worker.py is what each of them does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from model_utils import run_log
from tests.helpers import ROOT, environment

THOROUGH = os.environ.get("THOROUGH") == "1"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """(folder, [arrays of each rank], [facts of each rank])."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "model_utils.launch", "--program", "tests/distributed_worker.py"),
            *("--form", "N=@processes", "--", "2", "--out", folder, "--log_dir", folder / "log"),
            *(("--hardnet", "1") if THOROUGH else ()),
        ],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    arrays = [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2)]
    return folder, arrays, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def of(arrays, beginning):
    chosen = {name[len(beginning) :]: value for name, value in arrays.items() if name.startswith(beginning)}
    assert chosen
    return chosen


@pytest.mark.parametrize("normalisation", ("plain", "sync"))
def test_averaged_gradients_equal_those_of_the_joined_batch(ranks, normalisation):
    """`plain`: with running statistics; `sync`: with sync_bn, where batch statistics are joined too."""
    _, arrays, _ = ranks
    for mine in arrays:
        joined = of(mine, f"{normalisation} joined ")
        averaged = of(mine, f"{normalisation} averaged ")
        assert averaged.keys() == joined.keys()
        assert max(np.abs(value).max() for value in joined.values()) > 0.01
        for name, value in joined.items():
            np.testing.assert_allclose(averaged[name], value, rtol=0, atol=1e-5, err_msg=name)
    one, other = (of(mine, f"{normalisation} averaged ") for mine in arrays)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.thorough
def test_two_processes_make_the_update_of_one_that_accumulates(ranks):
    """HarDNet's whole step, its 224 parameters: N + N images on two ranks, and 2 x N on one."""
    _, arrays, _ = ranks
    for mine in arrays:
        both, alone = of(mine, "update both "), of(mine, "update alone ")
        assert both.keys() == alone.keys() and len(both) == 224
        largest = max(np.abs(value).max() for value in alone.values())
        assert largest > 1e-3
        for name, value in alone.items():
            np.testing.assert_allclose(both[name], value, rtol=0, atol=1e-6 * largest, err_msg=name)
    one, other = (of(mine, "update both ") for mine in arrays)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_parameters_are_equal_on_both_ranks_after_training(ranks):
    """The ranks began with different ones. The domain classifier's running statistics are each rank's own."""
    _, (first, second), _ = ranks
    mine, others = of(first, "straight "), of(second, "straight ")
    different = [name for name, value in mine.items() if not np.array_equal(value, others[name])]
    assert all("domain_classifier.bn" in name and "moving_" in name for name in different), different


def test_a_stopped_and_resumed_run_ends_bit_identical(ranks):
    folder, (first, _), facts = ranks
    for fact in facts:
        assert (fact["straight"], fact["stopped"], fact["resumed"]) == (0, 143, 0)
    straight, resumed = of(first, "straight "), of(first, "resumed ")
    assert straight.keys() == resumed.keys()
    for name, value in straight.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)
    logged = [
        [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in run_log.read_metrics(folder / name / "metrics.jsonl")
        ]
        for name in ("straight", "resumed")
    ]
    assert logged[0] == logged[1]
    assert "stopped by SIGTERM after step 4" in (folder / "resumed" / "train.log").read_text()


def test_sharded_evaluation_counts_every_image_once(ranks):
    _, _, facts = ranks
    for count in facts[0]["accuracies"]:
        shares = 0
        for fact in facts:
            both, alone, share = fact["accuracies"][count]
            assert both == alone, count
            shares += share
        assert shares == int(count)
    assert 0.2 < facts[0]["accuracies"]["301"][0] < 0.8


def test_only_rank_0_writes_results_and_each_rank_has_its_log(ranks):
    folder, _, _ = ranks
    run = folder / "straight"
    assert json.loads((run / "result.json").read_text())["processes"] == 2
    steps = [row["step"] for row in run_log.read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert "process 0 of 2" in (run / "train.log").read_text()
    assert "process 1 of 2" in (run / "train.rank1.log").read_text()


def test_values_of_every_type_are_broadcast(ranks):
    for fact in ranks[2]:
        for kind, value in fact["types"]:
            assert value == ([0, 1, 1] if kind == "Bool" else [0, 1, 2]), kind


def test_sums_and_joint_failures(ranks):
    first, second = ranks[2]
    assert first["sum"] == second["sum"] == [3.0, 2**24]
    assert first["failure"] == ["PeerError", "stopped because of an error on rank 1"]
    assert second["failure"] == ["UserError", "mine"]
