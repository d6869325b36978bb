"""Evaluate an ONNX file on the test splits: python eval_onnx.py --onnx_path FILE --dataset_path DIR"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import sys
import time

import model_utils
from model_utils import cli, config
from model_utils.errors import UserError

USAGE = """usage: python eval_onnx.py --onnx_path FILE [--dataset_path DIR] [--config FILE] [--key value …]

  --onnx_path FILE
        what export.py wrote; its recipe takes the place of config.yaml's, and what is given here still wins
"""


def load(argv):
    """(Model, Config) of a command line; None for both after --help or --version was printed."""
    from src.exported import model_files
    from src.setup import settings as experiment

    given = config.read_arguments(argv)
    if "version" in given:
        print(model_utils.named_version())
        return None, None
    path = given.pop("onnx_path", None)
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
    if "help" in given:
        print(USAGE)
        experiment.load(options, "eval_onnx.py")
        return None, None
    if not isinstance(path, str) or not path:
        raise UserError("onnx_path: give the .onnx file that export.py wrote, with --onnx_path")
    about = model_files.onnx_about(path)
    stored = {"experiment": "", **about["settings"], "method": about["method"]} if about else {}
    settings = experiment.load(options, "eval_onnx.py", stored=stored)
    if about and settings.method != about["method"]:
        raise UserError(f"onnx_path: {path} was trained with method {about['method']}, not {settings.method}")
    return model_files.open_onnx(path, settings.device_target, settings.device_id), settings


def main():
    started = time.perf_counter()
    model, settings = load(sys.argv[1:])
    if model is None:
        return 0
    from model_utils import modelarts, run_log
    from model_utils.device import Device
    from src import networks
    from src.evaluation import result
    from src.evaluation.test_data import open_test_sets
    from src.exported import inference
    from src.train_cells import find_method

    run_log.setup()
    run_log.log.info("device: %s", model.place)
    settings = modelarts.prepare(settings)
    place = Device("GPU" if "CUDA" in model.place else "CPU")
    if model.names is None:
        run_log.log.warning("warning: %s does not name its classes: only their number is checked", model.path)
    method = find_method(settings.method)
    preparation = model.preparation if model.about else networks.preparation(settings)
    task, test_sets = open_test_sets(settings, place, model.names or model.classes, method, preparation)
    begun = time.perf_counter()
    scores = {domain: inference.score(model, loader) for domain, loader in test_sets.items()}
    seconds = time.perf_counter() - begun
    shares = {domain: score.accuracies() for domain, score in scores.items()}
    for domain, values in shares.items():
        for name, value in values.items():
            title = f"{name} accuracy" if len(shares) == 1 else f"{domain} {name} accuracy"
            run_log.log.info("%s: %s", title, round(value, 6))
    count = sum(score.count for score in scores.values())
    for score in scores.values():
        run_log.log.info("%d of %d images right, %d among the five best", score.top1, score.count, score.top5)
    run_log.log.info("%d images in %.1f s", count, seconds)
    if settings.result:
        top1 = {domain: values["top-1"] for domain, values in shares.items()}
        top5 = {domain: values["top-5"] for domain, values in shares.items() if "top-5" in values}
        total = time.perf_counter() - started
        content = result.build(settings, place, top1, 0, total, count / seconds, top5=top5, task=task)
        result.write(content, settings.result)
    return 0


if __name__ == "__main__":
    cli.run(main)
