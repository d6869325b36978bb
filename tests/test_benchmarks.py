"""The commands of benchmarks/ explain themselves and refuse bad input in one line; figures are not tested."""

import subprocess
import sys

import pytest
from helpers import ROOT, environment, refused, succeeded

NAMES = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def benchmark(name, *arguments):
    """Run `python -m benchmarks.NAME` to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_help_says_how_to_start_it(name):
    wanted = "python -m benchmarks" if name == "__main__" else f"benchmarks.{name}"
    assert wanted in succeeded(benchmark(name, "--help")).replace("\n", " ").replace("  ", " ")


def test_folder_without_a_result_is_one_line(tmp_path):
    refused(benchmark("results", "--keep", tmp_path / "none"), "none", "result.json")


@pytest.mark.parametrize(
    "name, option", [("layers", "--rounds"), ("processes", "--rounds"), ("create_mnistm", "--runs")]
)
def test_number_of_rounds_is_checked(name, option):
    done = benchmark(name, option, 0)
    assert done.returncode == 2
    assert option in done.stderr and "at least 1" in done.stderr and "Traceback" not in done.stderr
