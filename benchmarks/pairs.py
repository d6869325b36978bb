"""Methods on every pair of domains of a folder, on the features of a frozen backbone or fine-tuned.

    python -m benchmarks.pairs ROOT [--methods mcc supervised …] [--seeds 0 1 2] [--pairs photo-sketch …]
                               [--prefix photos] [--begin PREFIX] [--folder DIR] [--workers N] [--save=TITLE]
                               [--key value …]

ROOT holds <domain>/<class>/* images. For each seed, method and ordered pair of domains runs train.py with
configs/<prefix>_<method>.yaml, or configs/<prefix>.yaml where that is the method's, the first domain as
labelled source and the second as unlabelled target. A method that goes on with a trained network (shot)
gets that of the supervised run of the same pair and seed, and no source. With --begin PREFIX every run begins
with the network of the run in DIR that has PREFIX and is of the same method, pair and seed. A run that is in
DIR (default: outputs/pairs) already, finished and of the same command, is not repeated. With --workers N as
many runs go on at once, each with its share of the cores.

Prints the accuracy on all target images at the last checkpoint, in %: for each pair the mean over the seeds,
then the mean over the pairs, mean ± standard deviation of the sample over seeds. --save keeps all of it in
benchmarks/results/pairs.json, which docs/results.md shows.
"""

import argparse
import itertools
import sys
from pathlib import Path

from benchmarks import children, report
from model_utils import cli, config
from model_utils.config import ROOT
from model_utils.errors import UserError
from src.data.files import subfolders
from src.setup import settings as experiment
from src.train_cells import find_method

KEPT = ROOT / "benchmarks" / "results" / "pairs.json"


def configuration(prefix, method):
    """The name of the configuration file of a method."""
    for name in (f"{prefix}_{method}", prefix):
        path = ROOT / "configs" / f"{name}.yaml"
        if path.is_file() and config.read_yaml(path)["method"] == method:
            return name
    raise UserError(f"methods: there is no configs/{prefix}_{method}.yaml")


def run(root, pair, words, folder, cores, blind=False):
    """The content of result.json of the run of one pair; see `children.train`.

    Args:
        root: the folder of domains. pair: (source, target).
        words: further arguments of train.py.
        blind: whether the method gets no source images.
    """
    sides = [("source", pair[0]), ("target", pair[1])][blind:]
    words = [*words, *(f"--{side}_image_root={name}" for side, name in sides)]
    return children.train(words, [f"--dataset_path={root}"], folder, cores)


def everything(arguments, keys):
    """{(method, pair, seed): (accuracy in %, seconds)}"""
    jobs = list(itertools.product(arguments.seeds, arguments.methods, arguments.pairs))

    def one(job, cores):
        seed, method, pair = job
        name = configuration(arguments.prefix, method)
        words = [f"--config=configs/{name}.yaml", f"--seed={seed}", *keys]
        of_pair = f"{'-'.join(pair)}-seed{seed}"
        folder = arguments.folder / f"{name}-{of_pair}"
        goes_on_with = find_method(method).GOES_ON_WITH
        if goes_on_with or arguments.begin:
            begun = configuration(
                arguments.begin or arguments.prefix, "supervised" if goes_on_with else method
            )
            words.append(f"--{goes_on_with or 'pretrained'}={arguments.folder / f'{begun}-{of_pair}'}")
        result = run(arguments.root, pair, words, folder, cores, bool(goes_on_with))
        accuracy = 100 * result["accuracy"]["target"]
        print(
            f"{method} {'-'.join(pair)} seed {seed}: {accuracy:.2f} % in {result['seconds']:.0f} s",
            flush=True,
        )
        return (method, pair, seed), (accuracy, result["seconds"])

    return dict(children.side_by_side(one, jobs, arguments.workers))


def table(runs, kind="method"):
    """Lines of a Markdown table: pairs in columns, methods in rows; see `report.table_of_runs`."""
    pairs = sorted({pair for of_method in runs.values() for pair in of_method}, key=_order_of_pair)
    heads = [f"{one[0].upper()}→{other[0].upper()}" for one, other in map(_split, pairs)]
    return report.table_of_runs(runs, pairs, heads, kind)


def _split(pair):
    return tuple(pair.split("-"))


def _order_of_pair(pair):
    return [order(name) for name in _split(pair)]


def as_runs(found):
    """{method: {pair: {seed: [accuracy, seconds]}}} of what `everything` returns."""
    runs = {}
    for (method, pair, seed), (accuracy, seconds) in found.items():
        of_pair = runs.setdefault(method, {}).setdefault("-".join(pair), {})
        of_pair[str(seed)] = [round(accuracy, 4), round(seconds, 1)]
    return runs


def command(arguments, keys):
    """The command as anyone would type it: without the folders and cores of this machine."""
    words = ["--methods", *arguments.methods, "--seeds", *map(str, arguments.seeds)]
    every = {frozenset(pair) for pair in arguments.pairs}
    if len(arguments.pairs) != 2 * len(every) or len({name for pair in every for name in pair}) < 4:
        words += ["--pairs", *("-".join(pair) for pair in arguments.pairs)]
    if arguments.prefix != "photos":
        words += ["--prefix", arguments.prefix]
    if arguments.begin:
        words += ["--begin", arguments.begin]
    return " ".join(["python -m benchmarks.pairs PACS", *words, *keys])


def parse(argv):
    """(arguments, the words for train.py)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", metavar="ROOT", type=Path)
    parser.add_argument("--methods", nargs="+", default=["supervised", "dann", "adda", "mcc"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", nargs="+", metavar="SOURCE-TARGET", help="default: all of them")
    parser.add_argument("--prefix", default="photos")
    parser.add_argument("--begin", metavar="PREFIX", help="begin with the networks of these runs")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "pairs")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save", metavar="TITLE", help="keep the results under this title, as --save=TITLE")
    arguments, words = parser.parse_known_args(argv)
    keys = [f"--{name}={value}" for name, value in config.read_arguments(words).items()]
    names = subfolders(arguments.root)
    every = [pair for pair in itertools.product(sorted(names, key=order), repeat=2) if len({*pair}) == 2]
    chosen = arguments.pairs or ["-".join(pair) for pair in every]
    unknown = [name for name in chosen if tuple(name.split("-")) not in every]
    if unknown:
        raise UserError(f"pairs: {unknown[0]} is no pair of the domains {', '.join(names)}")
    arguments.pairs = [tuple(name.split("-")) for name in chosen]
    arguments.root, arguments.folder = arguments.root.absolute(), arguments.folder.absolute()
    for method in arguments.methods:
        experiment.load([f"--config=configs/{configuration(arguments.prefix, method)}.yaml", *keys])
    return arguments, keys


def order(name):
    """PACS as tables of it have it: photo, art_painting, cartoon, sketch; others by name after them."""
    known = ("photo", "art_painting", "cartoon", "sketch")
    return known.index(name) if name in known else len(known), name


def main():
    arguments, keys = parse(sys.argv[1:])
    found = everything(arguments, keys)
    print("\n".join(table(as_runs(found))))
    if arguments.save:
        report.keep_runs(KEPT, arguments.save, command(arguments, keys), as_runs(found))
    return 0


if __name__ == "__main__":
    cli.run(main)
