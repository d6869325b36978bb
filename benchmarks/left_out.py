"""Methods that never see the target, each domain of a folder left out in turn, on kept features.

    python -m benchmarks.left_out ROOT [--methods deepall masf …] [--seeds 0 1 2] [--folder DIR] [--workers N]
                                  [--save=TITLE] [--key value …]

ROOT holds <domain>/<class>/* images. For each seed, method and domain runs train.py with
configs/photos_<method>.yaml on the other domains. A run that is in DIR (default: outputs/left_out) already,
finished and of the same command, is not repeated; with --workers N as many runs go on at once.

Prints the accuracy on all images of the domain left out at the last checkpoint, in %: the mean over seeds,
then the mean over domains, mean ± standard deviation of the sample over seeds. --save keeps all of it in
benchmarks/results/left_out.json, which docs/results.md shows.
"""

import argparse
import itertools
from pathlib import Path

from benchmarks import children, pairs, report
from model_utils import cli, config
from model_utils.config import ROOT
from src.data.files import subfolders
from src.setup import settings as experiment

KEPT = ROOT / "benchmarks" / "results" / "left_out.json"


def everything(options, keys):
    """{method: {domain: {seed: [accuracy in %, seconds]}}}"""
    jobs = list(itertools.product(options.methods, options.domains, options.seeds))

    def one(job, cores):
        method, domain, seed = job
        words = [f"--config=configs/photos_{method}.yaml", f"--target_domain={domain}", f"--seed={seed}"]
        given = [f"--domains_image_root={options.root}", f"--feature_folder={options.folder / 'features'}"]
        folder = options.folder / f"{method}-{domain}-seed{seed}"
        result = children.train([*words, *keys], given, folder, cores)
        accuracy = 100 * result["accuracy"][domain]
        print(
            f"{method} without {domain}, seed {seed}: {accuracy:.2f} % in {result['seconds']:.0f} s",
            flush=True,
        )
        return job, [round(accuracy, 4), round(result["seconds"], 1)]

    found = {}
    for (method, domain, seed), values in children.side_by_side(one, jobs, options.workers):
        found.setdefault(method, {}).setdefault(domain, {})[str(seed)] = values
    return found


def table(runs):
    """Lines of a Markdown table: domains left out in columns, methods in rows."""
    domains = sorted({domain for of_method in runs.values() for domain in of_method}, key=pairs.order)
    return report.table_of_runs(runs, domains, domains)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", metavar="ROOT", type=Path)
    parser.add_argument("--methods", nargs="+", default=["deepall", "masf"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "left_out")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save", metavar="TITLE", help="keep the results under this title, as --save=TITLE")
    options, words = parser.parse_known_args()
    keys = [f"--{name}={value}" for name, value in config.read_arguments(words).items()]
    options.root, options.folder = options.root.absolute(), options.folder.absolute()
    options.domains = sorted(subfolders(options.root), key=pairs.order)
    for method in options.methods:
        experiment.load([f"--config=configs/photos_{method}.yaml", *keys])
    found = everything(options, keys)
    print("\n".join(table(found)))
    if options.save:
        command = ["python -m benchmarks.left_out PACS", "--methods", *options.methods]
        command += ["--seeds", *map(str, options.seeds), *keys]
        report.keep_runs(KEPT, options.save, " ".join(command), found)
    return 0


if __name__ == "__main__":
    cli.run(main)
