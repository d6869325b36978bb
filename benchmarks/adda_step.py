"""200 adversarial steps of ADDA, ours and PyTorch's, alternating in one run: python -m benchmarks.adda_step

Prints the median over the rounds of each and their ratio. Arguments are keys of the experiment, e.g.
`--config configs/adda_mnist_usps.yaml` to time the recommended recipe's step (PyTorch's stays the paper's).
"""

import os
import statistics
import sys

import numpy as np

from benchmarks import measure, report
from model_utils import cli

BATCH, ROUNDS, STEPS = 128, 3, 200


def arrays(seed=0):
    """A source and a target batch of random images in [0, 1], and labels."""
    rng = np.random.default_rng(seed)
    source, target = (rng.random((BATCH, 1, 28, 28), dtype=np.float32) for _ in range(2))
    return source, rng.integers(0, 10, BATCH).astype(np.int32), target


def our_step(extra=()):
    """A function that makes one adversarial update of ours."""
    from src import data
    from src.data.split import Split
    from src.data.tasks import open_task
    from src.setup import settings as experiment
    from src.setup.place import set_up
    from src.train_cells import adda

    fixed = [
        "--method",
        "adda",
        "--device_target",
        "CPU",
        "--batch_size",
        str(BATCH),
        "--validation_size",
        "0",
    ]
    settings = experiment.load([*fixed, "--protocol", "full", *extra])
    place = set_up(settings)
    print("; ".join(place.notes), file=sys.stderr)
    split = Split(np.zeros((BATCH, 28, 28), np.uint8), np.zeros(BATCH, np.int32))
    data.load = lambda *_, **__: split
    cell = adda.Method(settings, place, open_task(settings, place))
    phase = cell.phases[-1]
    cell.start_phase(phase)
    adda.copy_weights(cell.network, cell.parts["source_network"])
    source, labels, target = arrays()
    batch = {"source": (source, labels), "target": (target, None)}

    def step():
        phase.step = (phase.step + 1) % phase.steps
        return float(cell.train_step(phase, batch)["loss"])

    return step


def torch_step():
    """The same for PyTorch."""
    import torch

    from benchmarks.torch_adda import TorchStep

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    update = TorchStep()
    source, _, target = (torch.from_numpy(array) for array in arrays())
    return lambda: update(source, target)


def main():
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    ours, theirs = our_step(sys.argv[1:]), torch_step()
    for _ in range(5):
        ours(), theirs()
    pairs = [(measure.seconds(ours, STEPS), measure.seconds(theirs, STEPS)) for _ in range(ROUNDS)]
    seconds, torch_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"ADDA, {STEPS} adversarial steps, batch {BATCH}+{BATCH}, median of {ROUNDS} alternating pairs")
    report.ratio(f"ADDA, {STEPS} adversarial steps", seconds, torch_seconds, "s", digits=2)


if __name__ == "__main__":
    cli.run(main)
