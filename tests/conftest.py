"""Fixtures shared by the tests. MindSpore is set up once for the test process, as the commands set it up."""

import os

import pytest

from model_utils.quiet import hide_warnings

hide_warnings()


def keep_to_own_cores():
    """Under `pytest -n`, a worker and what it starts keep to their share of the cores: waiting threads of one
    would otherwise spin on those of another."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        own = sorted(os.sched_getaffinity(0))[int(worker.removeprefix("gw")) :: workers]
        if own:
            os.sched_setaffinity(0, own)


keep_to_own_cores()


# Test files that take longest, in this order: with several processes they must not begin last.
LONGEST = (
    "test_hosts",
    "test_contract",
    "test_masf",
    "test_commands",
    "test_distributed",
    "test_kill",
    "test_sweep",
    "test_matrix",
    "test_dann",
    "test_dann_options",
    "test_adda",
    "test_extending",
    "test_records",
    "test_inference",
    "test_feature_cache",
    "test_supervised",
    "test_report",
    "test_selection",
    "test_hardnet",
    "test_deepall",
)


def _place(item):
    name = item.path.stem
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items):
    """The longest files first; tests marked `thorough` only with THOROUGH=1."""
    items.sort(key=_place)
    if os.environ.get("THOROUGH") == "1":
        return
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="thorough: runs with THOROUGH=1"))


@pytest.fixture(scope="session", autouse=True)
def place():
    """The device the tests compute on; it can be chosen only before the first operator runs."""
    from src.setup import settings
    from src.setup.place import set_up

    return set_up(settings.load(["--device_target=CPU"]))


@pytest.fixture
def operators():
    """The compiled CPU operators are in use; where they can't be, the test is skipped and says why."""
    import mindspore as ms

    from src import ops as cpu_ops

    ms.set_device("CPU")
    line = cpu_ops.prepare()
    if "oneDNN blocked layouts" not in line:
        pytest.skip(line)
