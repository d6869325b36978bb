"""Time and memory of create_mnistm.py: python -m benchmarks.create_mnistm --bst_path ... --mnist_dir ...

Runs the real command `--runs` times in a process of its own and prints the median and the largest wall time,
the peak memory (resident set, as the kernel counted it), and how long the result takes to open.
Limits: 8 s, 1 GB, and 1 s to have 60,000 images ready.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import positive, report
from model_utils import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def create(bst_path, mnist_dir, out):
    """Run the command; returns (seconds, peak resident MB) of that process."""
    command = [sys.executable, str(ROOT / "create_mnistm.py"), "--bst_path", bst_path]
    command += ["--mnist_dir", mnist_dir, "--mnistm_dir", out]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"create_mnistm.py left with status {process.returncode}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, kilobytes on Linux
    return seconds, usage.ru_maxrss / unit


def open_seconds(out):
    """Seconds to open the training images and to touch every one of them."""
    from src.data import load

    start = time.perf_counter()
    images = load("mnist_m", out, "train").images
    opened = time.perf_counter() - start
    images.max()
    return opened, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bst_path", default="data/BSR_bsds500.tgz")
    parser.add_argument("--mnist_dir", default="data/mnist")
    parser.add_argument("--runs", type=positive, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        runs = [create(arguments.bst_path, arguments.mnist_dir, out) for _ in range(arguments.runs)]
        seconds = [run[0] for run in runs]
        report.figure("create_mnistm.py, median", f"{statistics.median(seconds):.2f}", "s")
        report.figure("create_mnistm.py, longest", f"{max(seconds):.2f}", "s")
        report.figure("create_mnistm.py, peak memory", f"{max(run[1] for run in runs):.0f}", "MB")
        opened, touched = open_seconds(out)
        report.figure("MNIST-M, 60,000 images opened", f"{opened:.3f}", "s")
        report.figure("MNIST-M, 60,000 images opened and read", f"{touched:.3f}", "s")


if __name__ == "__main__":
    cli.run(main)
