"""Samples per second of DANN with 1 and 2 processes on the CPU: python -m benchmarks.processes

Runs train.py through the launcher, alternating, and takes the time between two logged steps: the compilation
before, and the evaluation and the checkpoint after them, are not in it. A step takes batch_size
source and batch_size target images on every process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import positive, report
from model_utils import cli
from model_utils.errors import UserError
from model_utils.run_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "config": "configs/demo.yaml",
    "n_pretrain_epochs": 0,
    "n_epoch": 1,
    "eval_interval": 10**9,
    "save_checkpoint_steps": 10**9,
    "log_interval": 10,
}


def rate(processes, folder, steps, batch_size):
    """Samples per second of one run."""
    keys = {**KEYS, "output_dir": folder, "steps_per_epoch": steps, "batch_size": batch_size}
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    command = ["bash", str(ROOT / "scripts/run_train_cpu.sh"), str(processes), *words]
    # The script takes `python` from the path, unless the repository has an environment of its own.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{' '.join(command)} failed ({done.returncode}): {last}")
    rows = [row for row in read_metrics(Path(folder) / "metrics.jsonl") if row["kind"] == "train"]
    if len(rows) < 3:
        raise UserError(f"--steps: {steps} are too few to time; give more than {KEYS['log_interval'] + 1}")
    first, last = rows[1], rows[-1]
    samples = 2 * batch_size * processes * (last["step"] - first["step"])
    return samples / (last["seconds"] - first["seconds"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--steps", type=int, default=60, help="training steps of a run")
    parser.add_argument("--batch_size", type=positive, default=64)
    arguments = parser.parse_args()
    rates = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for processes, measured in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                measured.append(rate(processes, folder, arguments.steps, arguments.batch_size))
    medians = {processes: statistics.median(measured) for processes, measured in rates.items()}
    print(
        f"DANN, batch {arguments.batch_size}+{arguments.batch_size} on each process, {arguments.steps} steps"
    )
    for processes, measured in rates.items():
        print(f"processes {processes}: {', '.join(f'{value:.0f}' for value in measured)} samples/s")
        report.figure(f"DANN, processes {processes}", f"{medians[processes]:.0f}", "samples/s")
    report.figure("DANN, 2 processes : 1", f"{medians[2] / medians[1]:.2f}")


if __name__ == "__main__":
    cli.run(main)
