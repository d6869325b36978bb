"""benchmarks/pairs.py: its table, and what it keeps."""

import json

import pytest
from helpers import fails

from benchmarks import pairs, report

RUNS = {
    "mcc": {
        "photo-sketch": {"0": [30.0, 9.0], "1": [40.0, 8.0], "2": [50.0, 7.0]},
        "art_painting-photo": {"0": [90.0, 9.0], "1": [92.0, 8.0], "2": [94.0, 7.0], "3": [10.0, 7.0]},
    },
    "shot": {"photo-sketch": {"0": [20.0, 1.0]}, "art_painting-photo": {"0": [80.0, 1.0]}},
    "adda": {"photo-sketch": {"0": [20.0, 1.0]}},
}


def test_a_row_takes_the_seeds_that_all_pairs_have():
    head, _, *rows = pairs.table(RUNS)
    assert head == "| method | P→S | A→P | mean | seeds |"
    assert rows == [
        "| mcc | 40.0 | 92.0 | 66.00 ± 6.00 | 0, 1, 2 |",
        "| shot | 20.0 | 80.0 | 50.00 | 0 |",
    ]


def test_results_are_kept_under_their_title(tmp_path):
    for command, seed, values in (("one", 0, (33.33333, 8.04)), ("two", 1, (44.0, 8.0))):
        runs = pairs.as_runs({("mcc", ("photo", "sketch"), seed): values})
        report.keep_runs(tmp_path / "pairs.json", "A", command, runs)
    content = json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))
    assert content["A"]["commands"] == ["one", "two"]
    assert content["A"]["runs"] == {"mcc": {"photo-sketch": {"0": [33.3333, 8.0], "1": [44.0, 8.0]}}}


@pytest.mark.parametrize(
    "words, part",
    ((["--pairs", "photo-moon"], "photo-moon is no pair"), (["--methods", "dan"], "configs/photos_dan.yaml")),
)
def test_refusals(tmp_path, words, part):
    for name in ("photo", "sketch"):
        (tmp_path / name).mkdir()
    fails(lambda: pairs.parse([str(tmp_path), *words]), part)


def test_each_method_has_its_configuration():
    assert pairs.configuration("photos", "mcc") == "photos"
    assert pairs.configuration("photos", "shot") == "photos_shot"
