"""What each of two processes does for tests/test_failing_rank.py; `--out FOLDER` gets rank<N>.json of each.

    --fault NAME   only this one, and let the process end by it

Faults strike rank 1 in step 4 of 6, those of a batch in the last step; rank 0 is well.
Steps average a gradient over both ranks.
"""

import json
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np

from model_utils import cli, device
from model_utils.errors import UserError
from src.evaluation import plots
from src.setup.place import set_up
from src.training import whole_run
from tests import helpers, test_loop

FAULTS = ("loss", "user error", "bug", "first batch", "statistics")
WHOLE = "evaluation"


class Loader(test_loop.Batches):
    def __init__(self, fault, rank):
        self.fault, self.rank, self.calls = fault, rank, 0

    def batch(self, step):
        self.calls += 1
        if self.rank == 1 and self.calls == 4 and self.fault == "user error":
            raise UserError("a.jpg can't be read")
        if self.rank == 1 and self.calls == 4 and self.fault == "bug":
            raise KeyError("lost in a thread")
        if self.rank == 1 and self.fault == "first batch":
            raise OSError(5, "Input/output error")
        return super().batch(step)


class Averaging(test_loop.Counter):
    """A Counter whose weight moves by a mean over the ranks."""

    def __init__(self, fault, place):
        super().__init__()
        self.fault, self.place = fault, place
        self.reduce = device.gradient_reducer([self.network.weight], place)
        for phase in self.phases:
            phase.loaders = {"source": Loader(fault, place.rank)}

    def train_step(self, phase, batch):
        self.calls += 1
        struck = self.place.rank == 1 and self.calls == 4
        gradient = np.array([np.nan if struck and self.fault == "loss" else 1.0], np.float32)
        (mean,) = self.reduce((ms.Tensor(gradient),))
        ms.ops.assign(self.network.weight, self.network.weight + mean)
        if struck and self.fault == "statistics":
            ms.ops.assign(self.network.weight, ms.Tensor([np.inf], ms.float32))
        return {"loss": float(gradient[0]), "extra": 0.0}


class BrokenSet(test_loop.TestSet):
    def __iter__(self):
        raise KeyError("lost while it evaluated")


def go(fault, place, folder):
    settings = helpers.demo_config(output_dir=folder, tensorboard=False, save_checkpoint_steps=2)
    sets = test_loop.domain_sets()
    if fault == WHOLE and place.rank == 1:
        sets = {"source": BrokenSet()}
    return whole_run.run(lambda: (Averaging(fault, place), sets), settings, place, time.perf_counter())


def main():
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    out = Path(arguments["--out"])
    place = set_up(helpers.demo_config(cpu_operator=False))
    plots.curves = lambda folder: None  # no part of this
    if "--fault" in arguments:
        return go(arguments["--fault"], place, out / "whole")
    found = {}
    for fault in FAULTS:
        try:
            found[fault] = ["ended", go(fault, place, out / fault)]
        except Exception as error:
            found[fault] = [type(error).__name__, str(error)]
    (out / f"rank{place.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    cli.run(main)
