"""What each of two processes does for tests/test_distributed.py; `--out FOLDER` gets .npz and .json of each.

The test reads them and asserts; here nothing is judged.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from model_utils import cli, collectives, device
from model_utils.errors import UserError
from src import ops
from src.data.loaders import Arrays, ArrayTestLoader
from src.data.preparation import Preparation
from src.data.split import Split
from src.evaluation.evaluate import Evaluator
from src.losses.classification import cross_entropy
from src.setup.place import set_up
from src.training import whole_run
from tests import helpers

BATCH = 6  # of each rank
HARDNET_BATCH = 24  # as well
COUNTS = (1, 2, 7, 301)


def rows(seed, count):
    rng = np.random.default_rng(seed)
    return rng.random((count, 3, 28, 28), np.float32), rng.integers(0, 10, count).astype(np.int32)


class Loss(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, labels):
        return cross_entropy(self.network(images), labels)


def gradients(place, sync):
    """Of DANN's network: averaged over ranks, and of the joined batch on this rank alone.

    Without `sync`, batch normalisation uses its running statistics (evaluation mode), so that each image's
    loss depends on that image only; with it, batches are normalised by the statistics of the joined batch.
    """
    from src import networks

    ms.set_seed(1)
    network, alone = (networks.build(helpers.demo_config(input_norm="none"), 10) for _ in range(2))
    for mine, others in zip(alone.get_parameters(), network.get_parameters(), strict=True):
        mine.set_data(ms.Tensor(others.asnumpy()))
    settings = helpers.demo_config(sync_bn=sync)
    collectives.broadcast(list(network.get_parameters()), place.rank)
    collectives.broadcast(list(alone.get_parameters()), place.rank)
    device.synchronise_batch_norm([network], settings, place)
    found = {}
    for name, cell, part in (
        ("averaged", network, slice(place.rank, None, 2)),
        ("joined", alone, slice(None)),
    ):
        cell.set_train(sync)
        weights = ms.ParameterTuple(cell.trainable_params())
        reduce = device.gradient_reducer(weights, place if cell is network else device.Device("CPU"))
        step = Step(ms.value_and_grad(Loss(cell), None, weights), reduce)
        step = step.jitted if cell is network else step.plain
        images, labels = rows(5, 2 * BATCH)
        for weight, value in zip(
            weights, step(ms.Tensor(images[part]), ms.Tensor(labels[part])), strict=True
        ):
            found[f"{name} {weight.name}"] = value.asnumpy()
        for parameter in cell.get_parameters():
            if not parameter.requires_grad:
                found[f"{name} {parameter.name}"] = parameter.asnumpy()
    return found


class Step:
    def __init__(self, grad, reduce):
        self.grad, self.reduce = grad, reduce
        self.jitted = ms.jit(self.plain)

    def plain(self, images, labels):
        _, values = self.grad(images, labels)
        return self.reduce(values)


def update(place):
    """Of HarDNet: one update by both ranks, and one on this rank alone that accumulates over both batches.

    Batch normalisation uses each batch's own statistics either way, so that the two are the same sums.
    """
    keys = {"optimizer": "momentum", "lr_max": 0.01, "lr_decay_mode": "constant", "ema_decay": 0}
    images = np.random.default_rng(7).standard_normal((2, HARDNET_BATCH, 3, 32, 32), np.float32)
    labels = np.random.default_rng(8).integers(0, 6, (2, HARDNET_BATCH)).astype(np.int32)
    found = {}
    for name, where, parts in (("both", place, [place.rank]), ("alone", device.Device("CPU"), [0, 1])):
        settings = helpers.tiny_config("hardnet", gradient_accumulation=len(parts), **keys)
        cell = helpers.build(settings, where, seed=3)
        cell.trained.masks = ()  # masks are drawn for each rank and part
        cell.network.set_train(True)
        before = {parameter.name: parameter.asnumpy().copy() for parameter in cell.network.trainable_params()}
        batch = {"train": (np.concatenate(images[parts]), np.concatenate(labels[parts]))}
        cell.train_step(cell.phases[0], batch)
        for parameter in cell.network.trainable_params():
            found[f"{name} {parameter.name}"] = parameter.asnumpy() - before[parameter.name]
    return found


def broadcast_of_all_types(place):
    kinds = (np.float32, np.int32, np.int64, np.float16, np.int8, np.uint8, np.bool_, np.float64)
    parameters = [
        ms.Parameter(ms.Tensor((np.arange(3) + 3 * place.rank).astype(kind)), name=f"p{index}")
        for index, kind in enumerate(kinds)
    ]
    collectives.broadcast(parameters, place.rank)
    return [[str(p.dtype), p.asnumpy().astype(float).tolist()] for p in parameters]


def joint_failure(place):
    try:
        with place.together():
            if place.rank == 1:
                raise UserError("mine")
    except UserError as error:
        return type(error).__name__, str(error)


def accuracies(place):
    """Of test sets of several sizes, over both ranks and on this rank alone."""
    from src import networks

    ms.set_seed(2)
    network = networks.build(helpers.demo_config(input_norm="none"), 10)
    collectives.broadcast(list(network.get_parameters()), place.rank)
    ops.accelerate(network)
    network.set_train(False)
    settings, found = helpers.demo_config(mode="pynative"), {}
    both, alone = (Evaluator(network, settings, where) for where in (place, device.Device("CPU")))
    for count in COUNTS:
        rng = np.random.default_rng(count)
        images = rng.integers(0, 256, (count, 28, 28, 3), np.uint8)
        arrays = Arrays([Split(images, None)], Preparation(28))
        single = ArrayTestLoader(arrays, rng.integers(0, 10, count).astype(np.int32), 64)
        # Labels of which about half are right.
        right = np.concatenate([alone.ranking(x)[: len(y), 0] for x, y in single])
        labels = np.where(rng.random(count) < 0.5, right, (right + 1) % 10).astype(np.int32)
        sharded = ArrayTestLoader(arrays, labels, 64, place.rank, place.world)
        whole = ArrayTestLoader(arrays, labels, 64)
        shares = [
            counted.accuracies({"it": loader})["it"] for counted, loader in ((both, sharded), (alone, whole))
        ]
        found[count] = [*shares, len(sharded.indices)]
    return found


def run(place, folder, stop_after=None, **changes):
    """A run of the loop, where SIGTERM reaches rank 1 in step `stop_after`: (exit status, its last state)."""
    keys = {"validation_size": 0, "n_pretrain_epochs": 0, "eval_batch_size": 50, "tensorboard": "false"}
    keys["mode"] = "graph"  # collectives inside a compiled step, as users run them
    settings = helpers.demo_config(output_dir=folder, **keys, **changes)
    # Different on each rank: equal weights must come from rank 0, not from equal seeds.
    cell = helpers.build(settings, place, seed=10 + place.rank)
    train_step, steps = cell.train_step, [0]

    def step(phase, batch):
        steps[0] += 1
        if place.rank == 1 and steps[0] == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return train_step(phase, batch)

    cell.train_step = step

    tests = helpers.test_sets(settings, place)
    status = whole_run.run(lambda: (cell, tests), settings, place, time.perf_counter())
    return status, helpers.values(cell)


def main():
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    out = Path(arguments["--out"])
    place = set_up(helpers.demo_config())
    arrays = {}
    for sync in (False, True):
        arrays |= {f"{'sync' if sync else 'plain'} {name}": v for name, v in gradients(place, sync).items()}
    if "--hardnet" in arguments:
        arrays |= {f"update {name}": value for name, value in update(place).items()}
    facts = {"types": broadcast_of_all_types(place), "failure": joint_failure(place)}
    facts["sum"] = place.all_sum(place.rank + 1, 2**23)
    facts["accuracies"] = accuracies(place)
    facts["straight"], straight = run(place, out / "straight", save_checkpoint_steps=2)
    facts["stopped"], _ = run(place, out / "resumed", stop_after=4, save_checkpoint_steps=2)
    facts["resumed"], resumed = run(place, out / "resumed", resume=True, save_checkpoint_steps=2)
    arrays |= {f"straight {name}": value for name, value in straight.items()}
    arrays |= {f"resumed {name}": value for name, value in resumed.items()}
    np.savez(out / f"rank{place.rank}.npz", **arrays)
    (out / f"rank{place.rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main)
