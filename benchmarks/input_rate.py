"""Images per second that the image folder loader makes: python -m benchmarks.input_rate --root DIR/train

Batches of 64 crops, decoded anew and from memory, with nothing else to do; and evaluation's resize and centre
crop. Training needs a fifth of it at most.
"""

import argparse
import statistics
import time

from benchmarks import positive, report
from model_utils import cli

BATCH = 64


def training_rates(folder, size, cache, rounds):
    """Images per second of each epoch."""
    from src.data.image_folder import FolderTrainLoader

    loader = FolderTrainLoader(folder, BATCH, 0, size, scale=(0.35, 1.0), cache=cache)
    loader.batch(0)
    rates = []
    for epoch in range(rounds):
        begun = time.perf_counter()
        first = epoch * loader.steps_per_epoch
        for step in range(first + 1, first + loader.steps_per_epoch):
            loader.batch(step)
        rates.append(BATCH * (loader.steps_per_epoch - 1) / (time.perf_counter() - begun))
        loader.batch(first + loader.steps_per_epoch)
    return rates


def evaluation_rate(folder, size):
    """Images per second of one pass."""
    from src.data.image_folder import FolderTestLoader

    begun = time.perf_counter()
    count = sum(len(labels) for _, labels in FolderTestLoader(folder, BATCH, size))
    return count / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of class folders")
    parser.add_argument("--image_size", type=positive, default=128)
    parser.add_argument("--rounds", type=positive, default=3)
    arguments = parser.parse_args()
    from src.data.image_folder import scan

    folder = scan(arguments.root)
    size = arguments.image_size
    decoded = training_rates(folder, size, "none", arguments.rounds)
    # In the first epoch nothing is in memory yet.
    kept = training_rates(folder, size, "memory", arguments.rounds + 1)[1:]
    evaluated = [evaluation_rate(folder, size) for _ in range(arguments.rounds)]
    name = f"crops of {size} x {size}"
    report.figure(f"{name}, decoded anew", f"{statistics.median(decoded):.0f}", "images/s")
    report.figure(f"{name}, from memory", f"{statistics.median(kept):.0f}", "images/s")
    report.figure(f"evaluation at {size} x {size}", f"{statistics.median(evaluated):.0f}", "images/s")


if __name__ == "__main__":
    cli.run(main)
