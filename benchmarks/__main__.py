"""Every benchmark one after another, and one table at the end.

    python -m benchmarks [NAME …] [--list] [--save]

Each runs in a process of its own, because the settings of a run hold for a whole process. `--save` keeps the
figures in benchmarks/results/figures.json, from which docs/results.md is written; with names only those are
exchanged. Nothing else should use the machine meanwhile. The comparisons need PyTorch
(requirements-benchmark.txt), some the data: what fails is said and left out, and the exit status is 1.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks import report, results
from model_utils import cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError
from src.evaluation import result

PLAN = ROOT / "benchmarks" / "plan.yaml"


def measure(command):
    """Run one command; returns (its figures, exit status)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.jsonl"
        words = shlex.split(command)
        words[0] = sys.executable if words[0] == "python" else words[0]
        environment = {**os.environ, report.VARIABLE: str(path)}
        done = subprocess.run(words, cwd=ROOT, env=environment, check=False)
        rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        about = {"command": command, "machine": result.machine()}
        return [{**json.loads(row), **about} for row in rows], done.returncode


def table(rows):
    """The figures in two columns."""
    width = max((len(row["name"]) for row in rows), default=0)
    return "\n".join(f"{row['name']:<{width}}  {row['text']:>10} {row['unit']}".rstrip() for row in rows)


def save(rows, commands, kept=results.KEPT):
    """Put `rows` in place of what the same commands gave before, in the order of the plan."""
    order = list(yaml.safe_load(PLAN.read_text(encoding="utf-8")).values())
    old = [row for row in results.figures(kept)["figures"] if row["command"] not in commands]
    merged = sorted(
        [*old, *rows], key=lambda row: order.index(row["command"]) if row["command"] in order else len(order)
    )
    path = Path(kept) / results.FIGURES
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps({"figures": merged}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def main():
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; default: all")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--save", action="store_true", help="keep the figures")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in plan]
    if unknown:
        raise UserError(f"no benchmark {', '.join(unknown)}; there are {', '.join(plan)}")
    chosen = {name: plan[name] for name in arguments.names or plan}
    if arguments.list:
        print("\n".join(f"{name:<20} {command}" for name, command in chosen.items()))
        return 0
    rows, failed = [], []
    for name, command in chosen.items():
        print(f"== {name}: {command}", flush=True)
        new, status = measure(command)
        rows += new
        if status or not new:
            failed.append(name)
    print(f"\n{table(rows)}")
    if arguments.save:
        save(rows, {chosen[name] for name in chosen if name not in failed})
    if failed:
        print(f"gave no figures: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
