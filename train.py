"""Train a method: python train.py [--config configs/X.yaml] [--key value …]; --help lists the keys."""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import sys
import time

from model_utils import cli


def main():
    started = time.perf_counter()
    from src.setup import settings as experiment

    settings = experiment.load(sys.argv[1:], "train.py")
    if settings is None:
        return 0
    from model_utils import modelarts
    from src.data.tasks import open_task
    from src.setup.place import set_up
    from src.train_cells import find_method
    from src.training import whole_run

    method = find_method(settings.method)
    settings = modelarts.prepare(settings)
    place = set_up(settings)

    def build():
        task = open_task(settings, place, method.known_classes(settings), method.LEAST_SOURCES)
        cell = method(settings, place, task)
        return cell, cell.test_sets()

    return whole_run.run(build, settings, place, started)


if __name__ == "__main__":
    cli.run(main)
