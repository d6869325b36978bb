"""What each rule of selection chooses in pools of runs whose target labels are known.

    python -m benchmarks.selection_pools [--pacs DIR] [--digits DIR] [--pools photo-cartoon mnist-usps …]
                                         [--trials 20] [--folder DIR] [--workers N] [--save] [--key value …]

A pool is as many random trials of sweep.py as --trials says:

- for a pair of domains in --pacs, <domain>/<class>/*, half of them over configs/spaces/mcc.yaml with
  configs/photos.yaml, half over configs/spaces/dann.yaml with configs/photos_dann.yaml;
- mnist-mnist_m: 1,000 steps of DANN with config.yaml, over configs/spaces/dann.yaml;
- usps-mnist and mnist-usps: 650 steps of ADDA with its configuration, over configs/spaces/adda.yaml.

Beside each pool stands the recipe as its configuration has it, trained as long and with the same seed: for
digits it is run here, for PACS it is what benchmarks/results/pairs.json holds.

The digits are in --digits, in the folders mnist, mnist_m and usps. Prints, for each rule, the regret in
points (best minus chosen; mean and worst over the pools), the mean rank correlation with target accuracy, and
how often the choice lay in the worst quarter; for each pool also the share of a run's time that measuring the
rules took, the median over its runs. A sweep that is there already is not repeated. --save adds the pools to
those in benchmarks/results/selection.json, which docs/results.md shows, and prints figures over all.
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks import children, pairs, report
from model_utils import cli, config, run_log
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError
from src.selection import pool as pools
from src.selection.pool import DEFAULT

KEPT = ROOT / "benchmarks" / "results" / "selection.json"
FROZEN = "PACS, every pair of domains, frozen EfficientNet-Lite0"  # title in pairs.json
PAIRS = ("photo-art_painting", "photo-cartoon", "art_painting-cartoon", "cartoon-photo")
ADDA = (
    "--iterations=300",
    "--discriminator_iterations=50",
    "--adversary_iterations=300",
    "--steps_per_epoch=300",
)
# Of a pool of digits: the configuration, the space, further words.
DIGITS = {
    "mnist-mnist_m": (
        "config.yaml",
        "dann",
        ("--n_pretrain_epochs=0", "--n_epoch=1", "--steps_per_epoch=1000"),
    ),
    "usps-mnist": ("configs/adda_usps_mnist.yaml", "adda", ADDA),
    "mnist-usps": ("configs/adda_mnist_usps.yaml", "adda", ADDA),
}


def sweeps(options, pool):
    """[(space, trials, words)] of the sweeps of one pool."""
    source, target = pool.split("-")
    if pool in DIGITS:
        configuration, space, words = DIGITS[pool]
        return [(space, options.trials, [f"--config={configuration}", *words, *_roots(options.digits, pool)])]
    words = [*_roots(options.pacs, pool), f"--feature_folder={options.folder / 'features'}"]
    half = options.trials // 2
    return [
        ("mcc", half, ["--config=configs/photos.yaml", *words]),
        ("dann", half, ["--config=configs/photos_dann.yaml", *words]),
    ]


def _roots(folder, pool):
    sides = zip(("source", "target"), pool.split("-"), strict=True)
    return [f"--{side}_image_root={folder / name}" for side, name in sides]


def run(options, pool, space, trials, words, cores):
    """Run one sweep to its end; its folder."""
    folder = options.folder / f"{pool}-{space}"
    words = [*words, f"--space=configs/spaces/{space}.yaml", "--sampler=random", f"--trials={trials}"]
    children.run(["sweep.py", *words, f"--output_dir={folder}"], folder, cores)
    print(f"done: {folder.name}", flush=True)
    return folder


def recipe(options, pool, keys, cores):
    """{"recipe": accuracy in %} of a pool of digits' recipe as it stands, with seed 0; {} for PACS."""
    if pool not in DIGITS:
        return {}
    configuration, _, words = DIGITS[pool]
    words = [f"--config={configuration}", *words, *keys, "--seed=0"]
    folder = options.folder / f"{pool}-recipe"
    result = children.train(words, _roots(options.digits, pool), folder, cores)
    return {"recipe": 100 * result["accuracy"]["target"]}


def _recipe_of_pair(pair):
    """The same of a pair of domains, out of pairs.json; None if it is not there."""
    runs = report.kept_runs(pairs.KEPT).get(FROZEN, {"runs": {}})["runs"]
    return runs.get("mcc", {}).get(pair, {}).get("0", [None])[0]


def judge(folders):
    """What each rule chooses among the runs in some sweeps: {"accuracies", "rules": {name: judged}}."""
    runs = sorted(path.parent for folder in folders for path in folder.glob("trial-*/seed-*/predictions.npz"))
    pool = pools.Pool([pools.read(run) for run in runs])
    rules = {name: pool.judged(name) for name in pool.table}
    for judged in rules.values():
        judged["chosen"] = "/".join(Path(judged["chosen"]).parts[-3:])
    shares = statistics.median(time_share(run) for run in runs)
    accuracies = [round(value, 2) for value in pool.accuracies]
    return {"accuracies": accuracies, "time_share": round(shares, 4), "rules": rules}


def time_share(run):
    """The share of a run's time that measuring the rules took, in [0, 1]."""
    rows = run_log.read_metrics(run / "metrics.jsonl")
    at = {
        kind: {r["step"]: r["seconds"] for r in rows if r["kind"] == kind} for kind in ("test", "selection")
    }
    spent = sum(seconds - at["test"][step] for step, seconds in at["selection"].items())
    return spent / json.loads((run / "result.json").read_text(encoding="utf-8"))["seconds"]


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
    heads = ("pool", "runs", "worst", "median", "the recipe as it stands", f"chosen by `{DEFAULT}`")
    heads += ("best (oracle)", "share of time")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, pool in found.items():
        values = pool["accuracies"]
        chosen = pool["rules"][DEFAULT]["accuracy"]
        figures = (
            min(values),
            statistics.median(values),
            pool["recipe"] if "recipe" in pool else _recipe_of_pair(name),
            chosen,
            max(values),
        )
        shown = ["–" if value is None else f"{value:.2f}" for value in figures]
        share = f"{100 * pool['time_share']:.1f} %" if "time_share" in pool else "–"
        lines.append(f"| {' | '.join([name, str(len(values)), *shown, share])} |")
    return lines


def kept(path=KEPT):
    """{pool: {"command", "accuracies", "rules"}} of what was saved; {} if nothing was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _command(options, pool, keys):
    """The command of one pool, without the folders and cores of this machine."""
    data = "--digits DIR" if pool in DIGITS else "--pacs PACS"
    return " ".join(["python -m benchmarks.selection_pools", data, "--pools", pool, *keys])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--pacs", metavar="DIR", type=Path)
    parser.add_argument("--digits", metavar="DIR", type=Path)
    parser.add_argument("--pools", nargs="+", help="default: four pairs of PACS, and those of digits")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "pools")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save", action="store_true")
    options, words = parser.parse_known_args()
    keys = [f"--{name}={value}" for name, value in config.read_arguments(words).items()]
    pools_wanted = options.pools or [*(PAIRS if options.pacs else ()), *(DIGITS if options.digits else ())]
    for pool in pools_wanted:
        folder = "digits" if pool in DIGITS else "pacs"
        if getattr(options, folder) is None:
            raise UserError(f"{pool}: say where its images are with --{folder} DIR")
        setattr(options, folder, getattr(options, folder).absolute())
    options.folder = options.folder.absolute()
    if not pools_wanted:
        raise UserError("there is no pool; give --pacs DIR or --digits DIR")

    def one(job, cores):
        pool, (space, trials, words) = job
        return pool, run(options, pool, space, trials, [*words, *keys], cores)

    jobs = [(pool, of_sweep) for pool in pools_wanted for of_sweep in sweeps(options, pool)]
    done = children.side_by_side(one, jobs, options.workers)
    recipes = children.side_by_side(
        lambda pool, cores: recipe(options, pool, keys, cores), pools_wanted, options.workers
    )
    found = {
        pool: {
            "command": _command(options, pool, keys),
            **known,
            **judge([folder for name, folder in done if name == pool]),
        }
        for pool, known in zip(pools_wanted, recipes, strict=True)
    }
    if options.save:
        found = kept() | found
        with atomic(KEPT) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*pool_lines(found), "", *table(found)]))
    return 0


if __name__ == "__main__":
    cli.run(main)
