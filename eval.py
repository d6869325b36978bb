"""Evaluate a checkpoint on the test splits: python eval.py --ckpt_path FILE_OR_RUN_FOLDER [--key value …]"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import sys
import time

from model_utils import cli, config
from model_utils.errors import UserError


def load_weights(network, settings, method):
    """Fill the network from whichever checkpoint keys were given; returns what was loaded, in words."""
    from model_utils import checkpoint

    parts = method.published_parts(network, settings) if hasattr(method, "published_parts") else {}
    given = {key: (part, path) for key, (part, path) in parts.items() if path}
    if given and settings.ckpt_path:
        raise UserError(f"give either ckpt_path or {' and '.join(parts)}, not both")
    if given:
        missing = [key for key in parts if key not in given]
        if missing:
            raise UserError(f"{', '.join(given)} needs {' and '.join(missing)} as well")
        for key, (part, path) in given.items():
            checkpoint.load_cell(part, path, key)
        return ", ".join(path for _, path in given.values())
    if not settings.ckpt_path:
        raise UserError("ckpt_path: give a checkpoint, or the output_dir of a run, with --ckpt_path")
    return str(checkpoint.load_network(network, settings.ckpt_path))


def main():
    started = time.perf_counter()
    settings = config.load(sys.argv[1:], "eval.py", checkpoint_key="ckpt_path")
    if settings is None:
        return 0
    from model_utils import modelarts, run_log
    from src import ops
    from src.evaluation import result
    from src.evaluation.evaluate import evaluator
    from src.setup.place import set_up
    from src.train_cells import accuracy_lines, find_method

    method = find_method(settings.method)
    settings = modelarts.prepare(settings)
    place = set_up(settings)
    run_log.setup(rank=place.rank)
    for note in place.notes:
        run_log.log.info(note)
    network = method.build_network(settings)
    source = load_weights(network, settings, method)
    run_log.log.info("checkpoint: %s", source)
    ops.accelerate(network)
    test_sets = method.test_sets(settings, place)
    begun = time.perf_counter()
    counted = evaluator(network, settings, place)
    accuracies = counted.accuracies(test_sets)
    count = sum(loader.total for loader in test_sets.values())
    seconds = time.perf_counter() - begun
    for domain, value in accuracies.items():
        run_log.log.info("%s domain accuracy: %.4f", domain, value)
    for line in accuracy_lines(settings.method, accuracies, counted.top5_accuracy):
        run_log.log.info(line)
    run_log.log.info("%d images in %.1f s", count, seconds)
    if settings.result and place.is_main:
        total = time.perf_counter() - started
        content = result.build(
            settings, place, accuracies, 0, total, count / seconds, top5=counted.top5_accuracy
        )
        result.write(content, settings.result)
    return 0


if __name__ == "__main__":
    cli.run(main)
