"""infer.py over a folder of images against its model alone on batches that are prepared already.

    python -m benchmarks.infer_rate MODEL FOLDER [--batch_size 16] [--rounds 3]

Prints images per second of both, medians of rounds that take turns, and their ratio.
"""

import argparse
import statistics
import time

import numpy as np

from benchmarks import report
from model_utils import cli
from src.data.files import find
from src.data.reading import Reader
from src.exported import inference, model_files


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = model_files.open_model(options.model, "CPU")
    files = find([options.folder])
    files = files[: len(files) // options.batch_size * options.batch_size]
    views = [model.preparation.view(image) for _, image in Reader(files).stream(range(len(files)))]
    batches = [
        model.preparation.to_network(np.stack(views[start : start + options.batch_size]))
        for start in range(0, len(views), options.batch_size)
    ]
    model.logits(batches[0])

    def whole():
        return sum(1 for _ in inference.predictions(model, Reader(files), options.batch_size))

    def alone():
        return sum(len(model.logits(batch)) for batch in batches)

    rates = {whole: [], alone: []}
    for _ in range(options.rounds):
        for job, found in rates.items():
            begun = time.perf_counter()
            count = job()
            found.append(count / (time.perf_counter() - begun))
    whole_rate, alone_rate = (statistics.median(found) for found in rates.values())
    report.figure("infer.py over a folder", f"{whole_rate:.0f}", "images/s")
    report.figure("its model alone", f"{alone_rate:.0f}", "images/s")
    report.figure("infer.py : model alone", f"{whole_rate / alone_rate:.2f}")
    return 0


if __name__ == "__main__":
    cli.run(main)
