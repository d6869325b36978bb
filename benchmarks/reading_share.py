"""How much of a training step on photographs reading them takes: python -m benchmarks.reading_share

    python -m benchmarks.reading_share --source_image_root PACS/photo --target_image_root PACS/sketch
    python -m benchmarks.reading_share … --network efficientnet_lite0 --image_size 224

DANN as configs/dann_photos.yaml has it, HarDNet-39DS at 160 pixels unless other keys of train.py are given.
Steps that read, decode and crop their files, ahead of time and on the same cores, alternate with steps on one
batch that is there already. Prints the median of each and the share that reading adds. The first steps of a
stretch are not counted: their batches were made before it began.
"""

import argparse
import statistics

from benchmarks import positive, report
from benchmarks.measure import timed
from model_utils import cli

WARM_UP, AHEAD = 3, 3  # steps that compile; steps of a stretch whose batches may be there already
KEYS = {
    "config": "configs/dann_photos.yaml",
    "device_target": "CPU",
    "network": "hardnet39ds",
    "image_size": 160,
    "pretrained": "none",
    "validation_size": 0,
}


def training(words):
    """(batch, step): batch(i) reads the files of step i, step(batch) trains on them."""
    from src.data.tasks import open_task
    from src.setup import settings as experiment
    from src.setup.place import set_up
    from src.train_cells import find_method

    settings = experiment.load([*(f"--{name}={value}" for name, value in KEYS.items()), *words])
    place = set_up(settings)
    print("; ".join(place.notes))
    cell = find_method(settings.method)(settings, place, open_task(settings, place))
    phase = cell.phases[-1]
    cell.start_phase(phase)
    print(f"{settings.method}, {settings.network}, {settings.batch_size} images of each domain")
    return phase.batch, lambda batch: float(cell.train_step(phase, batch)["loss"])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=4, help="alternating stretches (default 4)")
    parser.add_argument("--steps", type=positive, default=8, help="steps that count in each (default 8)")
    arguments, words = parser.parse_known_args()
    batch, step = training(words)
    there = batch(0)
    for _ in range(WARM_UP):
        step(there)
    number, reading, alone = 1, [], []
    for _ in range(arguments.rounds):
        for counted in [False] * AHEAD + [True] * arguments.steps:
            at = number
            taken = timed(lambda at=at: step(batch(at)), 1)
            number += 1
            reading += [taken] if counted else []
        alone += [timed(lambda: step(there), 1) for _ in range(arguments.steps)]
    with_files, without = statistics.median(reading), statistics.median(alone)
    report.figure("step that reads its files", f"{with_files:.1f}", "ms")
    report.figure("step on a batch that is there", f"{without:.1f}", "ms")
    report.figure("share of reading", f"{100 * (1 - without / with_files):.1f}", "%")


if __name__ == "__main__":
    cli.run(main)
