"""The primitives in compiled steps, for benchmarks/operators.py: python -m benchmarks.compiled METHOD|NETWORK

Trains the method's configuration of tests/tiny, or makes one step of supervised training of the network, with
MindSpore's own operators, which are what Ascend and GPU use (DA_CPU_OPS=0), and prints the primitives of the
compiled steps as JSON. Needs the packages of requirements-dev.txt.
The graphs are those that MindSpore's compiler has validated, before a device changes them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from model_utils import cli
from model_utils.config import ROOT
from model_utils.errors import UserError

PRIMITIVE = re.compile(r"^ *%\d+\([^)]*\) = (?:PrimFunc_|Prim_)?([A-Z]\w*)\(", re.M)
# What the compiler itself puts into a graph: order, tuples, side effects.
OF_THE_COMPILER = {"Depend", "Load", "MakeTuple", "Partial", "Switch", "TupleGetItem", "UpdateState"}


def primitives(folder):
    """Sorted names of the primitives in the graphs that MindSpore has written to a folder."""
    found = set()
    for path in Path(folder).rglob("*_validate_*.ir"):
        found |= set(PRIMITIVE.findall(path.read_text(encoding="utf-8", errors="replace")))
    return sorted(found - OF_THE_COMPILER)


def listed(name):
    """`primitives` of one method or network, from a process of its own.

    Raises:
        UserError: it failed, or left no graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {"DA_CPU_OPS": "0", "MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.compiled", "--step", name],
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        found = primitives(folder)
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{name}: no graphs were written (status {done.returncode}): {last}")
    return found


def step(name):
    """Compile and run a few steps of a method, or one of a network."""
    from src.setup import settings
    from src.setup.place import set_up
    from src.train_cells import method_names
    from tests import helpers

    place = set_up(settings.load(["--device_target=CPU"]))
    keys = {} if name in method_names() else {"network": name, "train_iterations": 1}
    config = helpers.tiny_config("supervised" if keys else name, **keys)
    helpers.train(helpers.build(config, place))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step(arguments.name)
    else:
        print(json.dumps(listed(arguments.name)))


if __name__ == "__main__":
    cli.run(main)
