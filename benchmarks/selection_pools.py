"""What each rule of selection chooses in pools of runs whose target labels are known.

    python -m benchmarks.selection_pools ROOT [--pairs photo-art_painting …] [--trials 10] [--folder DIR]
                                         [--workers N] [--save] [--key value …]

For each pair of domains in ROOT, <domain>/<class>/*, there is one pool: random trials of sweep.py over
configs/spaces/mcc.yaml with configs/photos.yaml, and as many over configs/spaces/dann.yaml with
configs/photos_dann.yaml. Prints, for each rule, the regret in points (best minus chosen; mean and worst over
the pools), the mean rank correlation with target accuracy, and how often the choice lay in the
worst quarter. A sweep that is there already is not repeated. --save keeps all of it in
benchmarks/results/selection.json, which docs/results.md shows.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from benchmarks import children
from model_utils import cli, config
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from src.selection import pool as pools

KEPT = ROOT / "benchmarks" / "results" / "selection.json"
SWEEPS = (("photos", "mcc"), ("photos_dann", "dann"))
PAIRS = ("photo-art_painting", "photo-cartoon", "art_painting-cartoon", "cartoon-photo")


def sweep(options, pair, name, space, cores, keys):
    """Run one sweep to its end; its folder."""
    folder = options.folder / f"{pair}-{space}"
    source, target = pair.split("-")
    words = [f"--config=configs/{name}.yaml", f"--space=configs/spaces/{space}.yaml"]
    words += ["--sampler=random", f"--trials={options.trials}", f"--output_dir={folder}"]
    words += [f"--source_image_root={options.root / source}", f"--target_image_root={options.root / target}"]
    words += [f"--feature_folder={options.folder / 'features'}", *keys]
    children.run(["sweep.py", *words], folder, cores)
    print(f"done: {folder.name}", flush=True)
    return folder


def judge(folders):
    """What each rule chooses among the runs in some sweeps: {"accuracies", "rules": {name: judged}}."""
    runs = sorted(path.parent for folder in folders for path in folder.glob("trial-*/seed-*/predictions.npz"))
    pool = pools.Pool([pools.read(run) for run in runs])
    rules = {name: pool.judged(name) for name in pool.table}
    for judged in rules.values():
        judged["chosen"] = "/".join(Path(judged["chosen"]).parts[-3:])
    return {"accuracies": [round(value, 2) for value in pool.accuracies], "rules": rules}


def table(found):
    """Lines of a Markdown table over pools: {name: what `judge` gives}."""
    lines = [
        "| rule | regret, mean | regret, worst | rank correlation, mean | choices in the worst quarter |",
        "|---|---|---|---|---|",
    ]
    names = sorted({name for pool in found.values() for name in pool["rules"]})
    for name in names:
        judged = [pool["rules"][name] for pool in found.values() if pool["rules"].get(name)]
        regrets = [one["regret"] for one in judged]
        known = [one["rank_correlation"] for one in judged if one["rank_correlation"] is not None]
        correlation = f"{statistics.mean(known):+.2f}" if known else "–"
        worst = f"{sum(one['worst_quarter'] for one in judged)} of {len(judged)}"
        lines.append(
            f"| `{name}` | {statistics.mean(regrets):.2f} | {max(regrets):.2f} | {correlation} | {worst} |"
        )
    return lines


def pool_lines(found):
    """Lines of a Markdown table of the pools themselves."""
    lines = ["| pool | runs | worst | median | best (oracle) |", "|---|---|---|---|---|"]
    for name, pool in found.items():
        values = pool["accuracies"]
        shown = (min(values), statistics.median(values), max(values))
        lines.append(f"| {name} | {len(values)} | {' | '.join(f'{value:.2f}' for value in shown)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", metavar="ROOT", type=Path)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "pools")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save", action="store_true")
    options, words = parser.parse_known_args()
    keys = [f"--{name}={value}" for name, value in config.read_arguments(words).items()]
    options.root, options.folder = options.root.absolute(), options.folder.absolute()

    def one(job, cores):
        return sweep(options, *job, cores, keys)

    jobs = [(pair, *names) for pair in options.pairs for names in SWEEPS]
    folders = children.side_by_side(one, jobs, options.workers)
    each = len(SWEEPS)
    found = {pair: judge(folders[n * each : (n + 1) * each]) for n, pair in enumerate(options.pairs)}
    print("\n".join([*pool_lines(found), "", *table(found)]))
    if options.save:
        command = " ".join(["python -m benchmarks.selection_pools PACS", *sys.argv[2:]])
        with atomic(KEPT) as temporary:
            temporary.write_text(
                json.dumps({"command": command, "pools": found}, indent=1) + "\n", encoding="utf-8"
            )
    return 0


if __name__ == "__main__":
    cli.run(main)
