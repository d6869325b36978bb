"""MASF against DeepAll (plain training on the joined sources), each domain left out in turn.

    python -m benchmarks.generalisation SET [--targets DOMAIN …] [--seeds 0 1 2] [--methods masf deepall]
                                        [--folder DIR] [--hosts A,B,…] [--key value …]

SET names the configurations configs/masf_SET.yaml and configs/deepall_SET.yaml. Runs train.py once for each
seed, domain left out and method, one after another, with all other keys as given; the run folders stay in
DIR/<method>-<domain>-<seed> (default DIR: outputs/generalisation/SET). A run that is there already, finished
and of the same command, is not repeated. With --hosts each run is one of several hosts, a process on each:
start the same command on all of them; the run folders stay on the first.

Prints, for each domain left out, its test accuracy at the last checkpoint: mean ± standard deviation of the
sample over the seeds, and MASF's gain over DeepAll paired by seed, in percentage points.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from benchmarks import report, together
from model_utils import child, cli, config
from model_utils.config import ROOT
from model_utils.errors import UserError
from src.data.files import LeftOut
from src.data.sets import SETS, open_set
from src.data.tasks import rooted
from src.setup import settings as experiment
from src.train_cells import find_method

METHODS = ("masf", "deepall")
RESUME = " --resume=true"


def settings_of(method, name, keys):
    """The resolved configuration of configs/<method>_<name>.yaml with `keys`, words of a command line."""
    path = ROOT / "configs" / f"{method}_{name}.yaml"
    if not path.is_file():
        found = sorted(file.stem.split("_", 1)[1] for file in path.parent.glob(f"{method}_*.yaml"))
        raise UserError(f"{name}: there is no {path.relative_to(ROOT)}; sets: {', '.join(found)}")
    return experiment.load([f"--config={path}", *keys])


def train(words, party):
    """Run train.py to its end, on the hosts of `party`.

    Raises:
        UserError: it failed. child.Stopped: a signal came.
    """
    status = party.train(words)
    if status:
        raise UserError(
            f"python train.py {' '.join(words)} left with status {status}; its message stands above"
        )


def run(method, name, target, seed, folder, keys, party):
    """{"accuracy": …} as in result.json, of a new run or of the one that is in `folder` already."""
    words = [f"--config=configs/{method}_{name}.yaml", f"--target_domain={target}", f"--seed={seed}"]
    words += [f"--output_dir={folder}", *keys]
    path = Path(folder) / "result.json"
    part = Path(folder).name
    # A run that was interrupted goes on where it stopped.
    kept, unfinished = party.agree(part, [_kept(path, words), (Path(folder) / "checkpoints").is_dir()])
    if kept:
        print(f"kept: {folder}", flush=True)
        return kept
    words += [RESUME.strip()] if unfinished else []
    print(f"+ python train.py {' '.join(words)}", flush=True)
    train(words, party)
    return party.agree(f"{part}, done", _accuracy(path) if path.is_file() else None)


def _accuracy(path):
    return {"accuracy": json.loads(path.read_text(encoding="utf-8"))["accuracy"]}


def _kept(path, words):
    """{"accuracy": …} of a result that is there already, else None; UserError if it is another command's."""
    if not path.is_file():
        return None
    command = json.loads(path.read_text(encoding="utf-8"))["command"]
    before = config.read_arguments(shlex.split(command)[2:])
    before.pop("resume", None)
    given = config.read_arguments(map(str, words))
    if before != {**({"device_target": "auto"} if "device_target" in before else {}), **given}:
        raise UserError(f"{path} comes from another command ({command}); give another --folder")
    return _accuracy(path)


def table(accuracies, targets, methods):
    """Lines of a Markdown table.

    accuracies: {(method, target): [accuracy in [0, 1] for each seed, in the same order for all methods]}.
    """
    compared = all(method in methods for method in METHODS)
    heads = [*methods, *(["gain", "gain of each seed"] if compared else [])]
    lines = [f"| left out | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for target in targets:
        percent = {method: [100 * value for value in accuracies[method, target]] for method in methods}
        cells = [report.spread(percent[method]) for method in methods]
        if compared:
            gains = [ours - plain for ours, plain in zip(*(percent[m] for m in METHODS), strict=True)]
            cells += [report.spread(gains, sign="+"), ", ".join(f"{gain:+.2f}" for gain in gains)]
        lines.append(f"| {target} | {' | '.join(cells)} |")
    return lines


def summarise(name, accuracies, targets, methods):
    """Print the table, and hand the means to the table of `python -m benchmarks`."""
    print(f"\nTest accuracy on the domain left out, %, {name}")
    print("\n".join(table(accuracies, targets, methods)))
    for target in targets:
        for method in methods:
            values = [100 * value for value in accuracies[method, target]]
            report.figure(f"{name}, {target} left out, {method}", report.spread(values), "%")


def parse(argv):
    """(arguments, the words for train.py)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("set", metavar="SET")
    parser.add_argument("--targets", nargs="+", metavar="DOMAIN", help="default: every domain of the set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--folder", metavar="DIR")
    parser.add_argument("--caller", default=os.getcwd(), help="folder that relative paths start from")
    arguments, words = parser.parse_known_args(argv)
    keys, own = [], {}
    for name, value in config.read_arguments(words).items():
        if name in ("config", "seed", "target_domain", "output_dir", "resume", "method"):
            raise UserError(f"{name}: this command sets it; see --help for its own options")
        if name in together.OPTIONS:
            if value is True:
                raise UserError(f"{name} needs a value")
            own[name] = value
            continue
        text = "true" if value is True else value
        here = Path(arguments.caller) / text
        # Folders are the caller's, the commands run in the repository's root.
        keys.append(f"--{name}={here if name.endswith(('_root', '_path')) and here.exists() else text}")
    folder = arguments.folder or ROOT / "outputs" / "generalisation" / arguments.set
    arguments.folder = Path(arguments.caller, folder)
    arguments.party = together.party(own)
    return arguments, keys


def main():
    arguments, keys = parse(sys.argv[1:])
    resolved = [settings_of(method, arguments.set, keys) for method in arguments.methods]
    first, left_out = rooted(resolved[0]), LeftOut(False)
    targets = arguments.targets or SETS[first.domain_set](first, left_out).names
    for target in targets:
        open_set(first.replace(target_domain=target), left_out, find_method(first.method).LEAST_SOURCES)
    accuracies = {}
    for seed in arguments.seeds:
        for target in targets:
            for method in arguments.methods:
                folder = arguments.folder / f"{method}-{target}-{seed}"
                try:
                    result = run(method, arguments.set, target, seed, folder, keys, arguments.party)
                except child.Stopped as stop:
                    return 128 + stop.args[0]
                accuracies.setdefault((method, target), []).append(result["accuracy"][target])
    summarise(arguments.set, accuracies, targets, arguments.methods)
    return 0


if __name__ == "__main__":
    cli.run(main)
