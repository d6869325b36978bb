"""Time from the start of the process to a target accuracy, MNIST → MNIST-M: ours and PyTorch's.

    python -m benchmarks.time_to_accuracy [--configs config.yaml …] [--seeds 0 1 2] [--minutes 20]
                                          [--every 460] [--stop] [--published DIR] [--folder DIR] [--save]

Runs, one after another, each configuration with each seed, and the published recipe in PyTorch
(benchmarks/torch_dann_train.py) with each seed for `--minutes` at most. A threshold is reached at the first
evaluation at or above it; evaluation time counts. Ours is evaluated on both test splits, PyTorch on one. Our
run folders stay in DIR/<configuration>-<seed>, if DIR is given. With --published the target is the MNIST-M
that Ganin et al. published, in DIR, instead of one made by create_mnistm.py; PyTorch is left out then.
`--stop` ends a run of ours at the evaluation that reaches the last threshold; what is printed as its last
evaluation is that one then. `--save` keeps the curves for docs/results.md.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import children, positive, report, times
from benchmarks.results import KEPT
from benchmarks.times import THRESHOLDS, reached
from model_utils import cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError
from model_utils.run_log import read_metrics
from src.evaluation import result


def our_curve(config, seed, arguments):
    """[(seconds, target accuracy), …] of one run of train.py; it stays in the folder, if one is given."""
    name = {"config": "dann"}.get(Path(config).stem, Path(config).stem)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.folder:
            folder = Path(arguments.folder, f"{name}-{seed}").absolute()
        keys = {"config": config, "seed": seed, "output_dir": folder, "eval_interval": arguments.every}
        if arguments.published:
            keys |= {"target_image_root": Path(arguments.published).absolute()}
            keys |= {"experiment": f"{name}_on_published_mnist_m"}
        words = ["train.py", *(f"--{key}={value}" for key, value in keys.items())]
        if arguments.stop:
            until_reached(words, folder)
        else:
            children.captured(words)
        return _curve(folder)


def _curve(folder):
    """What a run has measured so far: [(seconds, target accuracy), …]."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["seconds"], row["target_accuracy"]) for row in rows if row["kind"] == "test"]


def until_reached(words, folder):
    """Run `python` with these words until it ends, or until the last threshold is reached in this folder.

    Raises:
        UserError: it failed, or the folder holds a run already.
    """
    if (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder} holds a run already; give another --folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}-printed.log", "w", encoding="utf-8") as log:
        run = subprocess.Popen([sys.executable, *words], cwd=ROOT, env={**os.environ}, stdout=log, stderr=log)
    try:
        while run.poll() is None:
            time.sleep(1)
            if reached(_curve(folder), THRESHOLDS[-1]):
                run.send_signal(signal.SIGTERM)  # train.py saves its state and leaves
                run.wait()
                return
    finally:
        if run.poll() is None:
            run.kill()
    if run.returncode:
        raise UserError(f"{' '.join(words)} left with status {run.returncode}; see {log.name}")


def torch_curve(seed, minutes, every):
    """The same of the published recipe in PyTorch."""
    words = [
        "-m",
        "benchmarks.torch_dann_train",
        f"--seed={seed}",
        f"--minutes={minutes}",
        f"--every={every}",
    ]
    rows = [json.loads(line) for line in children.captured(words)[0].splitlines()]
    return [(row["seconds"], row["accuracy"]) for row in rows]


def summarise(name, curves):
    """Figures of one recipe over its seeds."""
    for threshold in THRESHOLDS:
        found = [reached(curve, threshold) for curve in curves]
        if all(found):
            report.figure(f"{name}, time to {100 * threshold:g} %", f"{statistics.median(found):.0f}", "s")
        else:
            missed = found.count(None)
            report.figure(
                f"{name}, time to {100 * threshold:g} %", f"not reached by {missed} of {len(found)}"
            )
    best = [max(accuracy for _, accuracy in curve) for curve in curves]
    last = [curve[-1][1] for curve in curves]
    report.figure(f"{name}, last evaluation", f"{100 * statistics.mean(last):.2f}", "%")
    report.figure(f"{name}, best evaluation (oracle)", f"{100 * statistics.mean(best):.2f}", "%")
    report.figure(f"{name}, whole time", f"{statistics.median(curve[-1][0] for curve in curves):.0f}", "s")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="*", default=["config.yaml"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=20, help="limit of a PyTorch run; 0 leaves it out")
    parser.add_argument("--every", type=positive, default=460, help="steps between evaluations")
    parser.add_argument("--stop", action="store_true", help="end our runs at the last threshold")
    parser.add_argument("--published", metavar="DIR", help="the published MNIST-M, as the target")
    parser.add_argument("--folder", metavar="DIR", help="keep our runs here")
    parser.add_argument("--save", action="store_true", help=f"write {times.KEPT} for docs/results.md")
    arguments = parser.parse_args()
    curves = {}
    for seed in arguments.seeds:
        for config in arguments.configs:
            curves.setdefault(config, []).append(our_curve(config, seed, arguments))
        if arguments.minutes and not arguments.published:
            name = "PyTorch, published recipe"
            curves.setdefault(name, []).append(torch_curve(seed, arguments.minutes, arguments.every))
    for name, several in curves.items():
        summarise(name, several)
    if arguments.save:
        save(curves, arguments)


def save(curves, arguments):
    """Keep the curves, with the command that measured them, where benchmarks/results.py finds them."""
    command = f"python -m benchmarks.time_to_accuracy --configs {' '.join(arguments.configs)}"
    command += f" --seeds {' '.join(map(str, arguments.seeds))} --every {arguments.every}"
    command += " --stop" if arguments.stop else ""
    command += " --published DIR" if arguments.published else f" --minutes {arguments.minutes:g}"
    content = {"command": f"{command} --save", "machine": result.machine(), "stopped": arguments.stop}
    content |= {"thresholds": THRESHOLDS, "curves": curves}
    with atomic(KEPT / (times.KEPT_PUBLISHED if arguments.published else times.KEPT)) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
