"""Runs on several hosts, broken in every way: python -m benchmarks.hosts_drill [DRILL …] [--save]

The hosts are network namespaces on this machine (benchmarks/namespaces.py); that needs root. Each drill
starts a short training run on all of them with the launcher, does its harm, and compares how every host ended
with what must be. `--save` keeps outcomes and times in benchmarks/results/hosts_drill.json; `--table` prints
them as the table of docs/distributed.md. Times are those of a machine whose hosts share its cores.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.host_drills import Drills
from benchmarks.namespaces import missing
from model_utils import cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError

KEPT = ROOT / "benchmarks" / "results" / "hosts_drill.json"


def names():
    """The drills in their order."""
    return [name.removeprefix("drill_") for name in vars(Drills) if name.startswith("drill_")]


def described(name):
    """(what is done, what must be) of a drill."""
    done, must = getattr(Drills, f"drill_{name}").__doc__.split(" | ")
    return " ".join(done.split()), " ".join(must.split())


def table(outcomes):
    """Lines of a Markdown table of kept outcomes, {drill: outcome}."""
    lines = ["| drill | must be | ended | seconds | statuses |", "|---|---|---|---|---|"]
    for name, outcome in outcomes.items():
        done, must = described(name)
        if "not run" in outcome:
            lines.append(f"| {done} | {must} | not run: {outcome['not run']} | | |")
            continue
        ended = "so" if not outcome["wrong"] else "; ".join(outcome["wrong"])
        statuses = ", ".join(str(status) for status in outcome["statuses"])
        if "resumed" in outcome:
            statuses += "; resumed " + ", ".join(map(str, outcome["resumed"]))
        lines.append(f"| {done} | {must} | {ended} | {outcome['seconds']:.0f} | {statuses} |")
    return "\n".join(lines)


def kept(path=KEPT):
    """The kept outcomes, {drill: outcome}, in the order of the drills."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"drills": {}}
    return {name: found["drills"][name] for name in names() if name in found["drills"]}


def save(outcomes, path=KEPT):
    """Put these outcomes in the place of earlier ones."""
    content = {"machine": f"{os.cpu_count()} cores", "drills": {**kept(path), **outcomes}}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=f"default: all of {', '.join(names())}")
    parser.add_argument("--save", action="store_true", help="keep the outcomes")
    parser.add_argument(
        "--table", action="store_true", help="print the kept outcomes as a table, run nothing"
    )
    parser.add_argument("--folder", help="keep what the runs write there; default: a folder that goes away")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.drills if name not in names()]
    if unknown:
        raise UserError(f"no drill {', '.join(unknown)}; there are {', '.join(names())}")
    if arguments.table:
        print(table(kept()))
        return 0
    if reason := missing():
        print(f"skipped: no hosts can be made here: {reason}")
        return 0
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        drills = Drills(Path(arguments.folder or temporary).absolute())
        for name in arguments.drills or names():
            print(f"== {name}", flush=True)
            outcome = getattr(drills, f"drill_{name}")()
            print(json.dumps(outcome, indent=1), flush=True)
            if outcome.get("wrong"):
                failed.append(name)
            if arguments.save:
                save({name: outcome})
    print("failed: " + ", ".join(failed) if failed else "all ended as they must")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
