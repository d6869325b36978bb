"""Samples per second of DANN with 1 and 2 processes on the CPU: python -m benchmarks.processes

Runs train.py through the launcher, alternating, and prints the medians of result.json's samples_per_second
(the training steps alone: compiling, evaluation and checkpoints are not in it). A step takes batch_size source
and batch_size target images on every process.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "config": "configs/demo.yaml",
    "n_pretrain_epochs": 0,
    "n_epoch": 1,
    "eval_interval": 10**9,
    "save_checkpoint_steps": 10**9,
    "log_interval": 10**6,
}


def rate(processes, folder, extra):
    """Samples per second of one run."""
    keys = {**KEYS, "output_dir": folder}
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    command = ["bash", str(ROOT / "scripts/run_train_cpu.sh"), str(processes), *words, *extra]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))["samples_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="training steps of a run")
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()
    extra = ["--steps_per_epoch", str(arguments.steps), "--batch_size", str(arguments.batch_size)]
    rates = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for processes, measured in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                measured.append(rate(processes, folder, extra))
    medians = {processes: statistics.median(measured) for processes, measured in rates.items()}
    print(
        f"DANN, batch {arguments.batch_size}+{arguments.batch_size} on each process, {arguments.steps} steps"
    )
    for processes, measured in rates.items():
        shown = ", ".join(f"{value:.0f}" for value in measured)
        print(
            f"{processes} process{'es' if processes > 1 else '  '} {medians[processes]:8.0f} samples/s ({shown})"
        )
    print(f"ratio 2 : 1  {medians[2] / medians[1]:.2f}")


if __name__ == "__main__":
    main()
