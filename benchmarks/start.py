"""What a user waits for, and the memory it takes: python -m benchmarks.start

Runs the real commands on MNIST → MNIST-M (config.yaml; data/mnist, data/mnist_m as the README makes them):
60 training steps, then eval.py on both test splits, in processes of their own, `--runs` times. Prints the
medians of: the time from the start of the process to the first training step and to the end, the evaluation
of 20,000 images, and the peak resident memory of a training run.
"""

import argparse
import json
import re
import statistics
import tempfile
from pathlib import Path

from benchmarks import children, positive, report
from model_utils import cli

STEPS = 60


def command(script, *arguments):
    """Run a command of the repository; returns its log."""
    return "".join(children.captured([script, *map(str, arguments)]))


def once(folder):
    """(first step s, whole run s, evaluation s, peak MB) of one run into `folder`."""
    log = command("train.py", "--output_dir", folder, "--n_epoch", 1, "--steps_per_epoch", STEPS)
    first = float(re.search(r"first training step done ([\d.]+) s", log).group(1))
    result = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    log = command("eval.py", "--ckpt_path", folder)
    evaluation = float(re.search(r"20000 images in ([\d.]+) s", log).group(1))
    return first, result["seconds"], evaluation, result["peak_memory_mb"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=positive, default=3)
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(once(folder))
    first, whole, evaluation, memory = (statistics.median(column) for column in zip(*runs, strict=True))
    report.figure("DANN, start of the process to the first training step", f"{first:.1f}", "s")
    report.figure(f"DANN, {STEPS} steps, from start to result.json", f"{whole:.1f}", "s")
    report.figure("evaluation of 20,000 images", f"{evaluation:.1f}", "s")
    report.figure("DANN, peak memory of a run", f"{memory / 1024:.1f}", "GB")


if __name__ == "__main__":
    cli.run(main)
