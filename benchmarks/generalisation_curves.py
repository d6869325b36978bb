"""Accuracy of MASF and DeepAll over iterations: python -m benchmarks.generalisation_curves RUNS DOMAIN PNG

RUNS holds runs of `python -m benchmarks.generalisation`: <method>-<domain left out>-<seed>. Draws, for each
method, the test accuracy on the source domains (their mean) and on DOMAIN, which was left out: means over the
seeds that are there. More points: give the runs a smaller --eval_interval.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks import results
from benchmarks.generalisation import METHODS
from model_utils import cli
from model_utils.errors import UserError

LINES = {"source": "--", "target": "-"}


def curve(folder, target):
    """(iterations (n,), mean accuracy on the source domains (n,), accuracy on `target` (n,)) of one run."""
    rows = results.test_rows(folder)
    named = [accuracies for *_, accuracies in rows]
    sources = [np.mean([value for domain, value in row.items() if domain != target]) for row in named]
    return np.array([step for _, step, *_ in rows]), np.array(sources), np.array([r[target] for r in named])


def averaged(folder, method, target):
    """The mean curve of a method over its seeds, and how many they are."""
    runs = [path.parent for path in sorted(Path(folder).glob(f"{method}-{target}-*/result.json"))]
    if not runs:
        raise UserError(f"{folder} holds no finished run {method}-{target}-<seed>; see --help")
    curves = [curve(run, target) for run in runs]
    if any(not np.array_equal(steps, curves[0][0]) for steps, _, _ in curves):
        raise UserError(f"{folder}: runs of {method} were evaluated at different iterations")
    return *(np.mean([part[i] for part in curves], axis=0) for i in range(3)), len(runs)


def draw(folder, target, path):
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for colour, method in zip(("C0", "C1"), METHODS, strict=True):
        steps, source, domain, count = averaged(folder, method, target)
        for kind, values in (("source", source), ("target", domain)):
            axes.plot(steps, 100 * values, LINES[kind], color=colour, label=f"{method}, {kind}")
    axes.set(xlabel="iteration", ylabel="test accuracy, %", title=f"{target} left out; seeds: {count}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="RUNS")
    parser.add_argument("target", metavar="DOMAIN")
    parser.add_argument("out", metavar="PNG")
    options = parser.parse_args()
    draw(options.folder, options.target, options.out)
    print(options.out)


if __name__ == "__main__":
    cli.run(main)
