"""The table of operators: nothing is used that Ascend or GPU lack and that has no other path there."""

from importlib import metadata

import pytest

from benchmarks import compiled, operators
from tests.helpers import fails

SOURCE = """
import mindspore as ms
from mindspore import nn, ops
from mindspore.communication import get_rank as rank

def f(x):
    relu = nn.ReLU()
    return ops.abs(ms.ops.exp(x)), ops.reduce_sum, rank(), x.ops.gone
"""


def test_what_a_source_uses():
    wanted = {"nn.ReLU", "ops.abs", "ops.exp", "ops.reduce_sum", "communication.get_rank"}
    assert operators.in_source(SOURCE) == {f"mindspore.{name}" for name in wanted}


def test_what_mindspore_states():
    assert operators.platforms("mindspore.nn.Conv2d") == ("Ascend", "GPU", "CPU")
    assert operators.platforms("mindspore.ops.concat"), "an alias states what its function does"
    assert operators.platforms("mindspore.float32") is None
    assert operators.of_primitive("ReLU"), "a primitive refers to its function"


def test_every_operator_in_the_source_has_a_path_on_ascend_and_gpu():
    assert len(operators.used()) > 60
    assert operators.without_a_path() == []


def test_every_primitive_in_the_compiled_steps_is_stated_for_ascend_and_gpu():
    lists = operators.kept()
    from src.train_cells import method_names

    assert {*method_names(), *operators.NETWORKS} == set(lists)
    assert operators.primitives_without_a_path(lists) == []


def test_an_operator_without_a_path_is_named(monkeypatch):
    stated = {"mindspore.ops.relu": ("CPU",), "mindspore.ops.exp": ("GPU", "CPU"), "mindspore.ops.new": None}
    monkeypatch.setattr(operators, "platforms", lambda name: stated[name])
    monkeypatch.setattr(
        operators, "own_operators", lambda: {"conv_new": ["a.py"], "other_new": ["src/ops/b.py"]}
    )
    found = operators.without_a_path({name: ["src/x.py"] for name in stated})
    assert [line.split(": ")[1] for line in found] == [
        "MindSpore does not state Ascend and GPU for it",
        "MindSpore does not state Ascend for it",
        "MindSpore states no platform for it",
        "it is a CPU's",
    ]
    monkeypatch.setattr(operators, "used", lambda: {"mindspore.ops.relu": ["src/x.py"]})
    monkeypatch.setattr(operators, "kept", dict)
    monkeypatch.setattr("sys.argv", ["operators", "--check"])
    fails(operators.main, "mindspore.ops.relu", "Ascend and GPU", "OTHER_PATHS")


def test_the_cpu_operators_are_made_in_one_place_and_all_are_listed():
    """`ops.Custom` is CPU code here: it occurs in src/ops alone, which `accelerate` uses on a CPU alone."""
    files = operators.used()["mindspore.ops.Custom"]
    assert files == ["src/ops/_conv.py"]
    own = operators.own_operators()
    assert {"conv_forward", "stage_forward", "pool_places", "response_forward"} <= set(own)
    assert all(file.startswith("src/ops/") for files in own.values() for file in files)


def test_the_page_is_what_the_source_gives():
    content = operators.json.loads(operators.KEPT.read_text(encoding="utf-8"))
    if metadata.version("mindspore") != content["mindspore"]:
        pytest.skip(f"the page is of MindSpore {content['mindspore']}")
    assert operators.PAGE.read_text(encoding="utf-8") == operators.page(content["primitives"])


@pytest.mark.thorough
def test_the_kept_list_is_what_a_compiled_step_holds():
    assert compiled.listed("mcc") == operators.kept()["mcc"]
