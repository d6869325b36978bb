"""Training step of DANN, ours against PyTorch's, alternating in one run: python -m benchmarks.step

Prints the median of each and the ratio of medians. `--plain` adds the same code with MindSpore's plain
operators, and `--reference` without the oneDNN setting as well (minutes on an AVX-512 host); each of the two
runs in a process of its own, because such settings hold for a whole process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import numpy as np

from benchmarks import report
from benchmarks.measure import timed
from model_utils import cli

BATCH, ROUNDS, STEPS = 64, 5, 10


def arrays(seed=0):
    """A source and a target batch of random images in [0, 1], and labels."""
    rng = np.random.default_rng(seed)
    source, target = (rng.random((BATCH, 3, 28, 28), dtype=np.float32) for _ in range(2))
    return source, rng.integers(0, 10, BATCH).astype(np.int32), target


def our_step(extra=()):
    """(settings, function that makes one update of ours, compiled by its first call)."""
    from src import data
    from src.data.split import Split
    from src.data.tasks import open_task
    from src.setup import settings as experiment
    from src.setup.place import set_up
    from src.train_cells import find_method

    settings = experiment.load(["--device_target", "CPU", "--validation_size", "0", *extra])
    place = set_up(settings)
    print("; ".join(place.notes), file=sys.stderr)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (2 * BATCH, 28, 28), np.uint8), np.zeros(2 * BATCH, np.int32))
    data.load = lambda *_, **__: split
    cell = find_method("dann")(settings, place, open_task(settings, place))
    phase = cell.phases[1]
    cell.start_phase(phase)
    source, labels, target = arrays()
    batch = {"source": (source, labels), "target": (target, None)}

    def step():
        phase.step += 1
        return float(cell.train_step(phase, batch)["loss"])

    return settings, step


def torch_step(settings):
    """The same update in PyTorch: batches joined or not, dropout and losses as `settings` say."""
    import torch

    from benchmarks.torch_dann import TorchStep

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    update = TorchStep(
        joint=settings.batch_norm == "joint",
        instance=settings.input_norm == "instance",
        entropy=settings.entropy_weight > 0,
        channel_dropout=settings.dropout_kind == "channel",
    )
    source, labels, target = arrays()
    tensors = torch.from_numpy(source), torch.from_numpy(labels).long(), torch.from_numpy(target)
    return lambda: update(*tensors, 0.5)


def alone(environment, extra, steps):
    """Median milliseconds of our step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", "--alone", str(steps), *extra]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    arguments, extra = parser.parse_known_args()
    settings, ours = our_step(extra)
    for _ in range(3):
        ours()
    if arguments.alone:
        print(json.dumps(statistics.median(timed(ours, 1) for _ in range(arguments.alone))))
        return
    theirs = torch_step(settings)
    for _ in range(3):
        theirs()
    pairs = [(timed(ours, STEPS), timed(theirs, STEPS)) for _ in range(ROUNDS)]
    ms_ours, ms_torch = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"DANN step, batch {BATCH}+{BATCH}, median of {ROUNDS} alternating pairs of {STEPS} steps")
    report.ratio("DANN step", ms_ours, ms_torch, "ms")
    if arguments.plain or arguments.reference:
        plain = alone({"DA_CPU_OPS": "0"}, extra, 10)
        report.figure("DANN step, plain operators", f"{plain:.1f}", "ms")
        report.figure("DANN step, plain operators : PyTorch", f"{plain / ms_torch:.2f}")
    if arguments.reference:
        slow = alone({"DA_CPU_OPS": "0", "ONEDNN_MAX_CPU_ISA": "DEFAULT"}, extra, 3)
        report.figure("DANN step, plain operators without the oneDNN setting", f"{slow:,.1f}", "ms")
        report.figure("DANN step, without the setting : with it, plain", f"{slow / plain:.0f}")


if __name__ == "__main__":
    cli.run(main)
