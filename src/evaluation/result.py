"""result.json: the record of a finished run or evaluation."""

import json
import os
import platform
import resource
import shlex
import sys
from importlib import metadata

from model_utils.checkpoint import atomic
from model_utils.errors import UserError
from src.data.files import shown


def _processor():
    """The processor's name, as the kernel gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            names = [line.split(":", 1)[1].strip() for line in handle if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def machine():
    """{"processor": its name, "cores": those that this process may use}."""
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0))}


def build(
    config,
    device,
    accuracy,
    steps,
    seconds,
    samples_per_second,
    oracle=None,
    top5=None,
    task=None,
    judged=None,
):
    """The JSON object of a run or evaluation.

    accuracy: {domain: top-1 in [0, 1] on its test split}, of the last weights. oracle: the best value each
    domain reached at any evaluation, chosen by test labels and named so that nobody takes it for a result.
    top5: the same as `accuracy` for the five largest logits, of methods that ask for it.
    judged: {rule of selection: value}, measured without target labels.
    task: the data, which say how many images were read and which were left out, and why.
    """
    ranked = {"top5_accuracy": top5} if top5 else {}
    return {
        "experiment": config.experiment,
        "method": config.method,
        "seed": config.seed,
        "network": config.network,
        **({"target_domain": task.target_domain} if task is not None and task.target_domain else {}),
        "device": device.target,
        "processes": device.world,
        "steps": steps,
        "seconds": round(seconds, 2),
        "samples_per_second": round(samples_per_second, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "accuracy": accuracy,
        **ranked,
        "oracle_accuracy": oracle or {},
        **({"selection": judged} if judged else {}),
        **({} if task is None else {"images": task.images, "left_out": task.left_out}),
        "command": shown(shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "mindspore": metadata.version("mindspore"),
            "numpy": metadata.version("numpy"),
        },
    }


def target_accuracy(content):
    """The accuracy in [0, 1] on the target, of the content of a result.json; None if it has none."""
    return content["accuracy"].get(content.get("target_domain") or "target")


def write(content, path):
    """Write a result file, whole or not at all."""
    try:
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"result {path} could not be written: {error.strerror}; choose another place"
        ) from error
