"""MASF's step, first and second order, ours and PyTorch's: python -m benchmarks.masf_step

The sides alternate in one run. Prints the medians over the rounds and their ratio, and each side's peak
memory in a process of its own. Other arguments are keys of the experiment: `--config configs/masf_pacs.yaml
--meta_batch_size 6 --steps 2` times AlexNet at 227x227. The default is configs/masf_rotated_mnist.yaml: five
source domains of 30 images. Images are random. Needs PyTorch (CPU), which the project itself does not.
"""

import argparse
import json
import os
import statistics
import sys
import types

import numpy as np

from benchmarks import positive, report
from benchmarks.measure import Other, resident, timed
from model_utils import cli
from model_utils.config import ROOT
from model_utils.errors import UserError

DEFAULT = "configs/masf_rotated_mnist.yaml"
ORDERS = ("first", "second")
WARM_UP = 3
SETS = {  # source domains and classes of each set
    "rotated_mnist": (5, 10),
    "digits": (2, 10),
    "demo": (3, 10),
    "pacs": (3, 7),
}


def resolve(words, order):
    """The configuration of a run on random images, from random weights."""
    from src.setup import settings as experiment

    given = any(word.startswith("--config") for word in words)
    chosen = [] if given else ["--config", str(ROOT / DEFAULT)]
    fixed = ["--device_target=CPU", f"--meta_order={order}", "--holdout=0", "--pretrained=none"]
    settings = experiment.load([*chosen, *words, *fixed])
    if settings.domain_set not in SETS:
        raise UserError(f"domain_set: {settings.domain_set!r} is not timed; give one of {', '.join(SETS)}")
    return settings


def batches(settings, seed=0):
    """{domain: (images (B, 3, S, S) in [0, 1], labels (B,))} of the source domains."""
    from src import networks

    rng, (domains, classes) = np.random.default_rng(seed), SETS[settings.domain_set]
    count, size = settings.meta_batch_size, networks.preparation(settings).size
    return {
        name: (
            rng.random((count, 3, size, size), dtype=np.float32),
            rng.integers(0, classes, count).astype(np.int32),
        )
        for name in map(str, range(domains))
    }


def our_step(settings):
    """A function that plays one episode of ours."""
    from src.setup.place import set_up
    from src.train_cells import find_method

    place = set_up(settings)
    print("; ".join(place.notes), file=sys.stderr)
    batch = batches(settings)
    # Random images stand in for the domains' files: all that the method asks its data for.
    task = types.SimpleNamespace(
        classes=tuple(map(str, range(SETS[settings.domain_set][1]))),
        labelled=lambda *_, **__: dict.fromkeys(batch),
        held_out=lambda *_, **__: None,
    )
    cell = find_method("masf")(settings, place, task)
    phase = cell.phases[0]
    cell.start_phase(phase)

    def step():
        phase.step = (phase.step + 1) % phase.steps
        return float(cell.train_step(phase, batch)["loss"])

    return step


def torch_step(settings):
    """The same for PyTorch: masks of dropout drawn anew at every step, the last domain the meta-test one."""
    import torch

    from benchmarks.torch_masf import TorchStep

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    classes = SETS[settings.domain_set][1]
    update = TorchStep(settings, second=settings.meta_order == "second", classes=classes)
    arrays = batches(settings).values()
    groups = [(torch.from_numpy(images), torch.from_numpy(labels).long()) for images, labels in arrays]
    kept = 1 - settings.dropout

    def masks(count):
        shapes = [(settings.meta_batch_size, *shape) for shape in update.network.dropout_shapes]
        return [tuple(torch.bernoulli(torch.full(s, kept)) / kept for s in shapes) for _ in range(count)]

    return lambda: float(update(groups, masks(len(groups) - 1), masks(len(groups)))["task"])


SIDES = {"ours": our_step, "PyTorch": torch_step}


def memory(side, order, words):
    """Peak memory in megabytes of a process that plays three episodes on one side."""
    other = Other(["-m", "benchmarks.masf_step", "--memory", side, "--order", order, *words])
    other.close()
    return other.first


def measure(order, options, words):
    """Both sides of one order, alternating."""
    settings = resolve(words, order)
    steps = {side: make(settings) for side, make in SIDES.items()}
    for step in steps.values():
        timed(step, WARM_UP)
    rounds = [[timed(step, options.steps) for step in steps.values()] for _ in range(options.rounds)]
    ours, theirs = map(statistics.median, zip(*rounds, strict=True))
    name = f"MASF {order} order, {settings.network}, {settings.meta_batch_size} images a domain"
    report.ratio(name, ours, theirs, "ms")
    for side in SIDES:
        report.figure(f"{name}, peak memory, {side}", f"{memory(side, order, words):.0f}", "MB")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--order", choices=ORDERS, help="only this order of the meta-gradient")
    parser.add_argument("--rounds", type=positive, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--steps", type=positive, default=20, help="steps of a round (default 20)")
    parser.add_argument("--memory", choices=tuple(SIDES), help=argparse.SUPPRESS)
    options, words = parser.parse_known_args()
    if options.memory:
        timed(SIDES[options.memory](resolve(words, options.order)), WARM_UP)
        print(json.dumps(resident("VmHWM")))
        return
    for order in (options.order,) if options.order else ORDERS:
        measure(order, options, words)


if __name__ == "__main__":
    cli.run(main)
