"""The training loop, driven with a method of a few numbers instead of a real one."""

import contextlib
import fcntl
import json
import logging
import os
import signal
import time
import types
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers import demo_config
from mindspore import nn

from model_utils import checkpoint, run_log
from model_utils.device import Device
from model_utils.errors import UserError
from src.evaluation.evaluate import Evaluator
from src.training import loop, whole_run
from src.training.contract import Phase
from src.training.trainer import Trainer


class Batches:
    """A training loader whose batch is a function of the step."""

    steps_per_epoch = 2

    def batch(self, step):
        return np.full((4, 1, 2, 2), step, np.float32), np.zeros(4, np.int32)


class TestSet(list):
    __test__ = False
    batch_size, total = 2, 3


class Tiny(nn.Cell):
    """(N, 1, 2, 2) -> (N, 2), by one weight that training counts up."""

    def __init__(self):
        super().__init__()
        self.weight = ms.Parameter(np.array([0.5], np.float32), name="weight")

    def features(self, images):
        return images[:, 0, 0, :1] * self.weight

    def classify(self, score):
        return ms.ops.concat((score, -score), 1)


class Counter(Trainer):
    """Adds the mean of its batch plus one to its weight; `losses` overrides the loss of a step (1-based)."""

    def __init__(self, losses=None, weights=None, phases=(("warm", 2), ("main", 4)), classes=("up", "down")):
        self.network = self.trained = self.whole = Tiny()
        self.config = demo_config(validator_images=0)
        self.held_out = self.cache = self.adapted = None
        self.evaluator = Evaluator(self.network, self.config, Device("CPU"))
        self.task = types.SimpleNamespace(
            classes=classes, target_domain=None, images={"source test": 3}, left_out={}
        )
        self.losses, self.weights, self.calls, self.started = losses or {}, weights or {}, 0, []
        self.phases = [Phase(name, steps, 2, {"source": Batches()}) for name, steps in phases]

    def begin_phase(self, phase):
        self.started.append((phase.name, phase.step, self.network.training))

    def train_step(self, phase, batch):
        self.calls += 1
        value = float(self.network.weight.asnumpy()[0]) + float(batch["source"][0].mean()) + 1
        ms.ops.assign(self.network.weight, ms.Tensor([self.weights.get(self.calls, value)], ms.float32))
        return {"loss": self.losses.get(self.calls, ms.Tensor(value, ms.float32)), "extra": 2.0}

    def state(self):
        return {"network": self.network}

    def weight(self):
        return float(self.network.weight.asnumpy()[0])


def domain_sets():
    images = np.ones((3, 1, 2, 2), np.float32)
    labels = np.array([0, 1, 0], np.int32)
    return {"source": TestSet([(images[:2], labels[:2]), (images[2:], labels[2:])])}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Curves are drawn by tests/test_commands.py; here they would take longer than all the rest."""
    monkeypatch.setattr("src.evaluation.plots.curves", lambda folder: None)
    yield
    run_log.log.handlers.clear()


def settings(folder, **changes):
    return demo_config(output_dir=folder, tensorboard=False, **changes)


def go(cell, place, folder, **changes):
    return whole_run.run(
        lambda: (cell, domain_sets()), settings(folder, **changes), place, time.perf_counter()
    )


def rows(folder, kind="train"):
    return [row for row in run_log.read_metrics(Path(folder) / "metrics.jsonl") if row["kind"] == kind]


def steps(folder):
    return sorted(int(path.stem[5:]) for path in checkpoint.listed(folder))


class StopAt(Counter):
    """Is sent `number` in the given step."""

    def __init__(self, step, number=signal.SIGTERM, **options):
        super().__init__(**options)
        self.stop_at, self.number = step, number

    def train_step(self, phase, batch):
        values = super().train_step(phase, batch)
        if self.calls == self.stop_at:
            os.kill(os.getpid(), self.number)
        return values


def test_a_run_trains_all_phases_and_writes_its_files(place, tmp_path):
    cell = Counter()
    assert go(cell, place, tmp_path) == 0
    assert cell.calls == 6
    # In training mode, before the first step of each phase.
    assert cell.started == [("warm", 0, True), ("main", 0, True)]
    assert cell.weight() == 0.5 + (1 + 2) + (1 + 2 + 3 + 4)
    assert steps(tmp_path) == [2, 4, 6]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [row["phase"] for row in rows(tmp_path)] == ["warm"] * 2 + ["main"] * 4
    assert all(row["extra"] == 2 for row in rows(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["steps"], result["accuracy"]) == (6, {"source": pytest.approx(2 / 3)})
    assert result["samples_per_second"] > 0
    assert (result["images"], result["left_out"]) == ({"source test": 3}, {})
    for path in (tmp_path / "network.ckpt", *checkpoint.listed(tmp_path)):
        assert checkpoint.read(path)[1]["classes"] == ["up", "down"]


def test_intervals_and_number_of_kept_checkpoints_are_obeyed(place, tmp_path):
    changes = {"save_checkpoint_steps": 1, "keep_checkpoint_max": 2, "eval_interval": 4, "log_interval": 100}
    go(Counter(phases=[("main", 7)]), place, tmp_path, **changes)
    assert steps(tmp_path) == [6, 7]
    assert [row["step"] for row in rows(tmp_path, "test")] == [4, 7]
    # The first step of a phase, and the last one of an epoch.
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 4, 6, 7]


def test_a_phase_of_no_steps_is_left_out(place, tmp_path):
    cell = Counter(phases=[("warm", 0), ("main", 2)])
    go(cell, place, tmp_path)
    assert [name for name, *_ in cell.started] == ["main"]


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_stopped_and_resumed_ends_as_if_never_stopped(place, tmp_path, stop):
    whole = Counter()
    go(whole, place, tmp_path / "whole")
    first = StopAt(stop)
    assert go(first, place, tmp_path / "parts") == 143
    assert first.calls == stop
    assert not (tmp_path / "parts" / "result.json").exists()
    second = Counter()
    assert go(second, place, tmp_path / "parts", resume=True) == 0
    assert second.calls == 6 - stop
    assert second.weight() == whole.weight()
    if stop < 6:
        name, begun = ("warm", stop) if stop < 2 else ("main", stop - 2)
        assert second.started[0] == (name, begun, True)
    for kind, value in (("train", "loss"), ("test", "source_accuracy")):
        logged, wanted = (
            [(row["step"], row[value]) for row in rows(tmp_path / run, kind)] for run in ("parts", "whole")
        )
        assert logged == wanted
    assert json.loads((tmp_path / "parts" / "result.json").read_text())["steps"] == 6


def test_ctrl_c_saves_and_leaves_with_status_130(place, tmp_path):
    assert go(StopAt(3, signal.SIGINT), place, tmp_path) == 130
    assert steps(tmp_path) == [2, 3]


def test_lines_logged_after_the_checkpoint_are_not_logged_twice(place, tmp_path):
    cell = Counter(losses={4: float("nan")})  # ends at step 4 without a checkpoint; the last one is of step 2
    with pytest.raises(UserError):
        go(cell, place, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')  # as a crash leaves it
    go(Counter(), place, tmp_path, resume=True)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_existing_run_is_refused_without_resume_and_nothing_is_lost(place, tmp_path):
    go(Counter(), place, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a run .*--resume true.*another --output_dir"):
        go(Counter(), place, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_resume_of_nothing_is_refused(place, tmp_path):
    cell = Counter()
    with pytest.raises(UserError, match="no checkpoint to continue from"):
        go(cell, place, tmp_path, resume=True)
    assert cell.calls == 0
    assert not (tmp_path / "train.log").exists()


def test_resume_with_other_settings_is_refused_and_names_them(place, tmp_path):
    go(Counter(), place, tmp_path)
    with pytest.raises(UserError, match=r"other settings \(lr .* -> 0.125\)"):
        go(Counter(), place, tmp_path, resume=True, lr=0.125)
    assert go(Counter(), place, tmp_path, resume=True, log_interval=7) == 0


def test_resume_with_other_classes_is_refused_and_names_them(place, tmp_path):
    """Also where their number is the same, and the order alone is another."""
    go(StopAt(3), place, tmp_path)
    for classes, difference in (
        (("left", "down"), "only in the data: left; only in the model: up"),
        (("down", "up"), "their order: up, down"),
    ):
        cell = Counter(classes=classes)
        with pytest.raises(UserError, match=f"resume: .*step-00000003.ckpt .*{difference}"):
            go(cell, place, tmp_path, resume=True)
        assert cell.calls == 0 and cell.weight() == 0.5
    assert go(Counter(), place, tmp_path, resume=True) == 0


def test_resume_of_a_run_that_did_not_store_its_classes_says_so(place, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        meta = loop.Run.meta
        earlier.setattr(loop.Run, "meta", lambda run: {k: v for k, v in meta(run).items() if k != "classes"})
        go(StopAt(3), place, tmp_path)
    assert go(Counter(), place, tmp_path, resume=True) == 0
    assert "does not name its classes: only their number is checked" in (tmp_path / "train.log").read_text()


def test_class_names_that_are_none_make_a_checkpoint_a_damaged_one(place, tmp_path, monkeypatch):
    with monkeypatch.context() as hostile:
        meta = loop.Run.meta
        hostile.setattr(loop.Run, "meta", lambda run: {**meta(run), "classes": [1, None]})
        go(StopAt(3), place, tmp_path)
    with pytest.raises(UserError, match="none of them is good"):
        go(Counter(), place, tmp_path, resume=True)


def test_resume_passes_over_damaged_checkpoints_and_sets_them_aside(place, tmp_path):
    go(Counter(), place, tmp_path, save_checkpoint_steps=1, keep_checkpoint_max=9)
    for path in checkpoint.listed(tmp_path)[:2]:
        path.write_bytes(path.read_bytes()[:-40])
    # Step 5 is trained and saved again; the damaged step 6 must not count as the one checkpoint to keep.
    cell = StopAt(1)
    assert go(cell, place, tmp_path, resume=True, save_checkpoint_steps=1, keep_checkpoint_max=1) == 143
    assert steps(tmp_path) == [5] and checkpoint.newest(tmp_path)[2]["step"] == 5
    log = (tmp_path / "train.log").read_text()
    assert "step-00000006.ckpt is damaged" in log and "step-00000005.ckpt is damaged" in log


def test_resuming_a_finished_run_evaluates_it_again(place, tmp_path):
    go(Counter(), place, tmp_path)
    (tmp_path / "result.json").unlink()
    cell = Counter()
    assert go(cell, place, tmp_path, resume=True) == 0
    assert cell.calls == 0
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] == {"source": pytest.approx(2 / 3)}


def test_a_finished_run_is_evaluated_again_in_the_last_phase_that_has_steps(place, tmp_path):
    for resume in (False, True):
        assert go(Counter(phases=(("main", 2), ("never", 0))), place, tmp_path, resume=resume) == 0
    assert "never" not in {row["phase"] for row in rows(tmp_path, "test")}


def test_a_run_that_is_killed_before_its_predictions_are_saved_is_not_finished(place, tmp_path, monkeypatch):
    """result.json marks a run as finished."""

    class Killed:
        measure = dict

        def save(self, folder):
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.probe, "for_run", lambda cell: Killed())
    with pytest.raises(KeyboardInterrupt):
        go(Counter(), place, tmp_path)
    assert steps(tmp_path) and not (tmp_path / "result.json").exists()


def test_what_only_one_rank_writes_is_written_together(tmp_path, monkeypatch):
    """Otherwise the others would wait for a rank whose disk is full. config.yaml is whole or absent."""
    inside, seen = [False], []

    class Watched(Device):
        @contextlib.contextmanager
        def together(self):
            inside[0] = True
            yield
            inside[0] = False

    class Metrics(run_log.Metrics):
        def __init__(self, *arguments, **keys):
            seen.append(("metrics", inside[0]))
            super().__init__(*arguments, **keys)

    def half(self, path):
        seen.append(("configuration", inside[0]))
        Path(path).write_text("lr: ")
        raise OSError("full")

    with monkeypatch.context() as changed:
        changed.setattr(run_log, "Metrics", Metrics)
        assert go(Counter(), Watched("CPU"), tmp_path / "good") == 0
        changed.setattr("model_utils.config.Config.write", half)
        with pytest.raises(OSError, match="full"):
            go(Counter(), Watched("CPU"), tmp_path / "full")
    assert seen == [("metrics", True), ("configuration", True)]
    assert not list((tmp_path / "full").glob("*.yaml")) and not list((tmp_path / "full").glob(".config*"))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_non_finite_loss_stops_with_phase_step_and_last_good_checkpoint(place, tmp_path, loss):
    with pytest.raises(UserError) as caught:
        go(Counter(losses={5: loss}), place, tmp_path, save_checkpoint_steps=1, keep_checkpoint_max=9)
    message = str(caught.value)
    assert f"the loss became {loss} in phase main, step 3 of 4" in message
    # Step 4's checkpoint holds the very weights that gave this loss.
    assert str(checkpoint.step_path(tmp_path, 3)) in message
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_non_finite_loss_in_the_first_step_says_that_there_is_no_checkpoint(place, tmp_path):
    with pytest.raises(UserError, match="phase warm, step 1 of 2; there is no good checkpoint"):
        go(Counter(losses={1: float("nan")}), place, tmp_path)


def test_non_finite_weights_are_never_saved(place, tmp_path):
    with pytest.raises(UserError, match="weight became infinite.*phase main, step 4 of 4.*step-00000004"):
        go(Counter(weights={6: float("inf")}), place, tmp_path)
    assert steps(tmp_path) == [2, 4]


def test_folder_in_use_is_refused(place, tmp_path):
    with open(tmp_path / ".lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing"):
            go(Counter(), place, tmp_path)
    assert go(Counter(), place, tmp_path) == 0


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/nothing"])
def test_folder_that_cannot_be_made_is_refused(place, tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="output_dir"):
        go(Counter(), place, tmp_path / folder)
    assert (tmp_path / "file").read_text() == "mine"


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_checkpoint_that_cannot_be_written_is_a_warning_until_the_last(place, tmp_path, monkeypatch):
    monkeypatch.setattr(ms, "save_checkpoint", full)
    cell = Counter()
    with pytest.raises(UserError, match="could not be written .No space left on device.*make room"):
        go(cell, place, tmp_path)
    assert cell.calls == 6
    text = (tmp_path / "train.log").read_text()
    assert text.count("could not be written") == 2


def raising(error):
    def raises(*_, **__):
        raise error

    return raises


def test_a_runtime_error_while_saving_is_no_full_disk(place, tmp_path, monkeypatch):
    for words in ("the tensor has no storage", "Allocate memory failed"):
        monkeypatch.setattr(ms, "save_checkpoint", raising(RuntimeError(words)))
        with pytest.raises(RuntimeError, match=words):
            go(Counter(), place, tmp_path / words)
    refused = RuntimeError("Failed to save the checkpoint")
    refused.__cause__ = OSError(13, "Permission denied")
    monkeypatch.setattr(ms, "save_checkpoint", raising(refused))
    with pytest.raises(UserError, match="could not be written .Permission denied.*put that right"):
        go(Counter(), place, tmp_path / "refused")
    refused.__cause__ = OSError(28, "No space left on device")
    with pytest.raises(UserError, match="could not be written .No space left on device.*make room"):
        go(Counter(), place, tmp_path / "full")


def test_metrics_lost_to_a_full_disk_are_told_once_and_cost_nothing_else(place, tmp_path, monkeypatch):
    monkeypatch.setattr(run_log.Events, "write", full)
    config = settings(tmp_path).replace(tensorboard=True)
    assert whole_run.run(lambda: (Counter(), domain_sets()), config, place, time.perf_counter()) == 0
    assert (tmp_path / "train.log").read_text().count("metrics are not being written") == 1
    assert len(rows(tmp_path)) == 6


def test_a_log_line_lost_to_a_full_disk_prints_no_traceback(place, tmp_path, capfd):
    run_log.setup(tmp_path)
    handler = next(h for h in run_log.log.handlers if isinstance(h, logging.FileHandler))
    handler.stream.close()
    handler.stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - closed by the handler
    run_log.log.info("hello")
    assert capfd.readouterr().err == ""
    with contextlib.suppress(OSError):
        handler.stream.close()
    handler.stream = None


def test_test_accuracies_are_remembered_as_oracle_through_a_resume(place, tmp_path):
    # With a negative weight the network is wrong where it was right.
    go(Counter(weights={3: -100.0}), place, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["accuracy"]["source"] == pytest.approx(1 / 3)
    assert result["oracle_accuracy"]["source"] == pytest.approx(2 / 3)
    (tmp_path / "result.json").unlink()
    go(Counter(), place, tmp_path, resume=True)
    assert json.loads((tmp_path / "result.json").read_text())["oracle_accuracy"] == result["oracle_accuracy"]
