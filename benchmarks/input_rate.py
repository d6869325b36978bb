"""Images per second that loaders of files make: python -m benchmarks.input_rate --root DIR

DIR holds train/ and val/. Batches of 64 crops, decoded anew and from memory, with nothing else to do; and
evaluation's resize and centre crop. Training needs a fifth of it at most.
"""

import argparse
import statistics
import time

from benchmarks import positive, report
from model_utils import cli

BATCH = 64


def open_data(root, cache):
    """The `Task` of a folder."""
    from model_utils.config import Config
    from model_utils.device import Device
    from model_utils.key import Key
    from model_utils.keys import COMMON
    from src.data.keys import keys
    from src.data.tasks import open_task

    table = {**COMMON, **keys(dataset_path=root, cache=cache), "num_classes": Key(0, "")}
    return open_task(Config({name: key.default for name, key in table.items()}, table), Device("CPU"))


def training_rates(root, preparation, cache, rounds):
    """Images per second of each epoch."""
    loader = open_data(root, cache).labelled(preparation, BATCH)["train"]
    loader.batch(0)
    rates = []
    for epoch in range(rounds):
        begun = time.perf_counter()
        first = epoch * loader.steps_per_epoch
        for step in range(first + 1, first + loader.steps_per_epoch):
            loader.batch(step)
        rates.append(BATCH * (loader.steps_per_epoch - 1) / (time.perf_counter() - begun))
        loader.batch(first + loader.steps_per_epoch)
    loader.close()
    return rates


def evaluation_rate(root, preparation):
    """Images per second of one pass."""
    begun = time.perf_counter()
    count = sum(len(labels) for _, labels in open_data(root, "none").test(preparation, BATCH)["val"])
    return count / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of train/ and val/")
    parser.add_argument("--image_size", type=positive, default=128)
    parser.add_argument("--rounds", type=positive, default=3)
    arguments = parser.parse_args()
    from src.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation

    root, size, rounds = arguments.root, arguments.image_size, arguments.rounds
    preparation = Preparation(size, 3, 0.875, IMAGENET_MEAN, IMAGENET_STD, crop_scale_min=0.35, flip=True)
    decoded = training_rates(root, preparation, "none", rounds)
    # In the first epoch nothing is in memory yet.
    kept = training_rates(root, preparation, "memory", rounds + 1)[1:]
    evaluated = [evaluation_rate(root, preparation) for _ in range(rounds)]
    name = f"crops of {size} x {size}"
    report.figure(f"{name}, decoded anew", f"{statistics.median(decoded):.0f}", "images/s")
    report.figure(f"{name}, from memory", f"{statistics.median(kept):.0f}", "images/s")
    report.figure(f"evaluation at {size} x {size}", f"{statistics.median(evaluated):.0f}", "images/s")


if __name__ == "__main__":
    cli.run(main)
