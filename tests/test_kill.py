"""SIGKILL at random moments of real runs, and their resumption to the same end: benchmarks/kill_drill.py.

Two kills of DANN in PyNative mode by default; with THOROUGH=1 four, and one of every other scenario, all
compiled.
`python -m benchmarks.kill_drill --kills 300` makes as many as wanted.
"""

import os
import random

import numpy as np
import pytest

from benchmarks import ends, kill_drill, kill_figures, kill_scenarios
from tests.helpers import ROOT, fails, make_data

THOROUGH = os.environ.get("THOROUGH") == "1"
KILLS = 4 if THOROUGH else 2
SCENARIOS = [scenario.name for scenario in kill_scenarios.scenarios(None)]


def drilled(name, moments, folder, seed=7):
    """The Figures of runs of a scenario with these kills, two at most for each run."""
    data = make_data("hardnet")["dataset_path"] if name == "hardnet" else None
    mode = "graph" if THOROUGH else "pynative"
    (scenario,) = (one for one in kill_scenarios.scenarios(data, mode) if one.name == name)
    undisturbed = kill_drill.reference(scenario, folder / "reference")
    figures, rng = kill_figures.Figures(), random.Random(seed)
    while figures.kills < len(moments):
        left = moments[figures.kills : figures.kills + 2]
        kill_drill.one_run(scenario, folder / f"run-{figures.runs}", undisturbed, left, rng, figures)
    return figures


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    figures = drilled("dann", ["writing", "step"] * (KILLS // 2), tmp_path)
    assert figures.kills == KILLS and figures.identical == figures.runs > 0
    assert figures.half_written > 0


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "dann"])
def test_other_runs_that_are_killed_end_so_too(name, tmp_path):
    figures = drilled(name, ["step"], tmp_path)
    assert figures.kills == 1 and figures.identical == figures.runs > 0


def test_the_page_has_the_table_of_the_kept_drills():
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    table = kill_figures.kept_table()
    assert len(table) > 3 and "\n".join(table) in page


def test_where_two_ends_differ():
    one = {"a": np.ones(2, np.float32), "b": np.zeros(1)}, {"a": np.ones(2)}, [{"step": 1, "loss": 0.5}]
    assert ends.difference(one, one) is None
    values = {**one[0], "a": np.array([1, 1.5], np.float32)}
    assert ends.difference(one, (values, *one[1:])) == "a: other numbers"
    assert ends.difference(one, ({**one[0], "c": 1}, *one[1:])) == "names ['c']"
    assert "0.25" in ends.difference(one, (*one[:2], [{"step": 1, "loss": 0.25}]))


def test_a_run_that_ends_otherwise_is_found(tmp_path, monkeypatch):
    scenario = kill_scenarios.scenarios(None)[0]
    monkeypatch.setattr(kill_drill, "finish", lambda *_: {"a": 1})
    figures = kill_figures.Figures()
    fails(
        lambda: kill_drill.one_run(
            scenario, tmp_path / "run", ({"a": 2}, 1.0), [], random.Random(0), figures
        ),
        "dann: a run that was killed ended otherwise: a: 2 and 1",
    )
    assert (figures.runs, figures.identical) == (1, 0)


def test_the_newest_of_several_checkpoints_is_cut_short(tmp_path):
    folder, rng = tmp_path / "checkpoints", random.Random(0)
    folder.mkdir()
    for number in (1, 2):
        assert not kill_drill.cut_short(tmp_path, rng)
        (folder / f"step-0000000{number}.ckpt").write_bytes(bytes(100))
    assert kill_drill.cut_short(tmp_path, rng)
    sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
    assert sizes[0] == 100 and sizes[1] < 100
