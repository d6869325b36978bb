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

import numpy as np

from benchmarks import positive, report
from benchmarks.measure import Other, resident, timed
from model_utils import cli, config

DEFAULT = "configs/masf_rotated_mnist.yaml"
ORDERS = ("first", "second")
WARM_UP = 3


def resolve(words, order):
    """The configuration of a run on random images."""
    given = any(word.startswith("--config") for word in words)
    chosen = [] if given else ["--config", str(config.ROOT / DEFAULT)]
    return config.load([*chosen, *words, "--device_target=CPU", f"--meta_order={order}", "--holdout=0"])


def batches(settings, names, seed=0):
    """{domain: (images (B, 3, S, S) in [0, 1], labels (B,))} for `names`."""
    from src.data import domains

    rng = np.random.default_rng(seed)
    count, size, classes = (
        settings.meta_batch_size,
        domains.image_size(settings),
        domains.class_count(settings),
    )
    return {
        name: (
            rng.random((count, 3, size, size), dtype=np.float32),
            rng.integers(0, classes, count).astype(np.int32),
        )
        for name in names
    }


def our_step(settings):
    """A function that plays one episode of ours."""
    from src.data import domains
    from src.setup.place import set_up
    from src.train_cells import masf

    place = set_up(settings)
    print("; ".join(place.notes), file=sys.stderr)
    names = domains.source_domains(settings)
    # Random images stand in for the domains' files.
    domains.build_loaders = lambda *_: dict.fromkeys(names)
    domains.held_out = lambda *_: None
    cell = masf.build(settings, place)
    cell.start_phase(cell.phases[0])
    batch, phase = batches(settings, names), cell.phases[0]

    def step():
        phase.step = (phase.step + 1) % phase.steps
        return float(cell.train_step(phase, batch)["loss"])

    return step


def torch_step(settings):
    """The same for PyTorch: masks of dropout drawn anew at every step, the last domain the meta-test one."""
    import torch

    from benchmarks.torch_masf import TorchStep
    from src.data import domains

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    update = TorchStep(settings, second=settings.meta_order == "second")
    arrays = batches(settings, domains.source_domains(settings)).values()
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
