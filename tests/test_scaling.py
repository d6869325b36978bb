"""The page on several processes: its arithmetic, its bytes, and that it is what the figures give."""

import json

import pytest

from benchmarks import links, scaling
from tests import helpers
from tests.helpers import fails


def test_the_time_of_a_ring():
    # 1 Gbit over 2 processes: each sends it once; over 4 processes one and a half times.
    assert scaling.seconds_of_ring(125_000_000, 2, 1) == pytest.approx(1.0)
    assert scaling.seconds_of_ring(125_000_000, 4, 10) == pytest.approx(0.15)


def test_speed_up_is_the_number_of_processes_without_a_network_and_less_with_one():
    assert scaling.speed_up(0.1, 0, 8, 1) == 8
    assert scaling.speed_up(1.0, 125_000_000, 2, 1) == pytest.approx(1.0)
    for processes in scaling.PROCESSES:
        rates = [scaling.speed_up(0.03, 10**6, processes, gigabits) for gigabits in scaling.GIGABITS]
        assert rates == sorted(rates) and rates[-1] < processes


def test_bytes_counted_are_those_of_the_parameters_that_are_trained(place):
    changes = {"bottleneck": 0, "adapt_batch_norm": False}
    name, count, messages = scaling.sent_by("mcc", changes, "adapt")
    cell = helpers.build(helpers.tiny_config("mcc", **changes), place)
    trained = sum(parameter.size for parameter in cell.network.trainable_params())
    assert (name, count, messages) == ("digits", 4 * trained, 1)
    kept = json.loads(scaling.KEPT.read_text(encoding="utf-8"))
    assert kept["methods"]["MCC"] == {"network": name, "bytes": count, "messages": messages}


def test_every_method_is_counted():
    from src.train_cells import method_names

    assert {method for method, *_ in scaling.METHODS.values()} == set(method_names())
    assert {counted for counted, *_ in scaling.TIMED.values()} <= set(scaling.METHODS)


def test_a_time_that_nobody_kept_is_one_line():
    fails(lambda: scaling.step_of("DANN", {"figures": []}), "DANN step, ours", "python -m benchmarks --save")


def test_the_page_is_what_the_figures_give():
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in (scaling.KEPT, links.KEPT)]
    assert scaling.PAGE.read_text(encoding="utf-8") == scaling.page(*kept)
