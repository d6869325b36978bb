"""Evaluate a checkpoint on the test splits: python eval.py [--ckpt_path FILE_OR_RUN_FOLDER] [--key value …]

Without --ckpt_path it is the newest one of output_dir.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import sys
import time

from model_utils import cli


def main():
    started = time.perf_counter()
    from src.setup import settings as experiment

    settings = experiment.load(sys.argv[1:], "eval.py", checkpoint_key="ckpt_path")
    if settings is None:
        return 0
    from model_utils import modelarts, run_log
    from src import ops
    from src.evaluation import result
    from src.evaluation.evaluate import Evaluator
    from src.evaluation.test_data import open_test_sets
    from src.exported import trained
    from src.setup.place import set_up
    from src.train_cells import find_method

    method = find_method(settings.method)
    settings = modelarts.prepare(settings)
    place = set_up(settings.replace(amp_level="O0"))  # evaluation is float32, however the network was trained
    run_log.setup(rank=place.rank)
    for note in place.notes:
        run_log.log.info(note)
    loaded = trained.find(settings, method, "ckpt_path")
    network = loaded.network
    run_log.log.info("checkpoint: %s", loaded.path)
    ops.accelerate(network)
    task, test_sets = open_test_sets(settings, place, loaded.classes, method, network.preparation)
    begun = time.perf_counter()
    counted = Evaluator(network, settings, place, method.COUNTS_TOP5)
    accuracies = counted.accuracies(test_sets)
    seconds = time.perf_counter() - begun
    for domain, value in accuracies.items():
        run_log.log.info("%s domain accuracy: %.4f", domain, value)
    for line in method.accuracy_lines(accuracies, counted.top5_accuracy):
        run_log.log.info(line)
    count = sum(counted.counts.values())
    run_log.log.info("%d images in %.1f s", count, seconds)
    if settings.result and place.is_main:
        total = time.perf_counter() - started
        content = result.build(
            settings, place, accuracies, 0, total, count / seconds, top5=counted.top5_accuracy, task=task
        )
        result.write(content, settings.result)
    return 0


if __name__ == "__main__":
    cli.run(main)
