"""Try several configurations and choose one without target labels.

    python sweep.py --config configs/photos.yaml --space configs/spaces/mcc.yaml --trials 20
                    [--seeds 1] [--workers 1] [--minutes M] [--output_dir outputs/sweep] [--sampler tpe]
                    [--objective information] [--by RULE] [--key value …]

Each trial is an ordinary run of train.py with the values that the sampler chose from the space; further keys
are given to every one. A sweep that was stopped goes on when the same command is given again. At the end
stands what each rule of selection would choose (docs/selection.md), and winner.yaml, which train.py takes.
With --objective leave_one_source_out, for sets of domains, each trial leaves every source out in turn.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import argparse
import sys
import time
from pathlib import Path

from tqdm import tqdm

import model_utils
from model_utils import child, cli, config, paths
from model_utils.errors import UserError

OWN = ("seed", "output_dir", "resume", "report")  # keys of train.py that the sweep itself sets


def parse(argv):
    """(options, the words of every train.py, the space)."""
    parser = cli.Parser(
        prog="sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--space", required=True, metavar="FILE", help="YAML file: what to try")
    parser.add_argument("--trials", type=cli.positive, default=20, help="how many (default 20)")
    parser.add_argument("--seeds", type=cli.positive, default=1, help="runs of each trial (default 1)")
    parser.add_argument(
        "--workers",
        type=cli.positive,
        default=1,
        help="trials at once, each on its share of the cores (default 1)",
    )
    parser.add_argument("--minutes", type=float, help="begin no trial after this time")
    parser.add_argument("--output_dir", default="outputs/sweep", metavar="DIR")
    parser.add_argument("--sampler", choices=("tpe", "random"), default="tpe")
    parser.add_argument("--sweep_seed", type=int, default=0, help="of the sampler (default 0)")
    parser.add_argument(
        "--objective",
        help="the rule that the sampler follows (default information; for methods that must not see the "
        "target source_accuracy), or leave_one_source_out",
    )
    parser.add_argument(
        "--prune", choices=("true", "false"), default="false", help="stop trials whose objective is poor"
    )
    parser.add_argument("--oracle", choices=("true", "false"), default="false")
    parser.add_argument(
        "--by", metavar="RULE", help="the rule that chooses at the end (default ensv, if it has a value)"
    )
    parser.add_argument("--version", action="version", version=model_utils.named_version())
    options, words = parser.parse_known_args(argv)
    return options, words


def prepare(options, words):
    """(the words of every train.py, checked; the space; words of runs that leave a source out, or None)"""
    from src import selection
    from src.selection import pool
    from src.setup import settings as experiment
    from src.sweeps import leave_one_out, space, study
    from src.train_cells import find_method
    from src.training import run_folder

    given = config.read_arguments(words)
    settings = experiment.load(words)
    if settings is None:
        raise UserError("help and version: ask train.py for those of its keys")
    names = experiment.aliases(settings.method)
    taken = [name for name in given if getattr(found := names.get(name, name), "key", found) in OWN]
    if taken:
        raise UserError(f"{taken[0]}: a sweep sets this for each of its runs; leave it out")
    sees_target = find_method(settings.method).SEES_TARGET
    options.objective = options.objective or ("information" if sees_target else selection.WITHOUT_TARGET)
    study.check_objective(options.objective, options.oracle == "true", sees_target)
    leaves_out = options.objective == leave_one_out.NAME
    if options.prune == "true" and (leaves_out or options.objective == study.TARGET):
        raise UserError(
            f"prune: trials are stopped by rules without labels that each evaluation measures; objective "
            f"{options.objective} is none"
        )
    if options.by:
        selection.find(options.by)
        if leaves_out:
            raise UserError(f"by: with objective {options.objective} the objective chooses; leave it out")
    options.output_dir = Path(paths.expanded(options.output_dir, "output_dir")).absolute()
    run_folder.check_outside(options.output_dir, settings)
    found = space.read(options.space, settings.keys)
    left_out = leave_one_out.words(settings) if leaves_out else None
    taken = [name for name in found if left_out and name in leave_one_out.KEYS]
    if taken:
        raise UserError(f"space: {taken[0]}: objective {options.objective} sets it; leave it out")
    taken = [name for name in found if not left_out and name in pool.TASK]
    if taken:
        raise UserError(
            f"space: {taken[0]}: it decides on the target images, and rules choose among runs with the same "
            "ones; leave it out"
        )
    both = [name for name in found if name in settings.given]
    if both:
        raise UserError(f"{both[0]}: it is in the space and on the command line; give it in one of them")
    if not left_out and not settings.validator_images:
        raise UserError("validator_images: 0, but rules of selection need target images; leave it out")
    return [f"--{name}={value}" for name, value in given.items()], found, left_out


def main():
    options, words = parse(sys.argv[1:])
    words, space, left_out = prepare(options, words)
    from src.sweeps import study
    from src.training import run_folder

    folder, begun = options.output_dir, time.monotonic()
    with run_folder.claim(folder, what="sweep", lock=".sweep.lock"):
        sweep = study.Sweep(folder, words, space, options, left_out)
        done = sweep.finished()
        quiet = not sys.stderr.isatty()
        with tqdm(total=options.trials, initial=done, unit="trial", disable=quiet) as bar:
            while sweep.finished() < options.trials:
                if options.minutes and time.monotonic() - begun > 60 * options.minutes:
                    print(
                        f"{options.minutes:g} minutes are over: {sweep.finished()} of {options.trials} trials"
                    )
                    break
                try:
                    lines = sweep.batch()
                except child.Stopped as stop:
                    print("stopped; the same command goes on from here")
                    return 128 + stop.args[0]
                bar.update(len(lines))
                tqdm.write("\n".join(lines))
        return conclude(sweep, options, folder, words)


def conclude(sweep, options, folder, words):
    """Print the table, draw the picture, write winner.yaml."""
    from src.sweeps import study

    for number, line in sweep.failures().items():
        print(f"trial {number} failed: {line}")
    if not sweep.objectives():
        raise UserError(without_a_result(sweep))
    number, seed, how = by_objective(sweep, options) if sweep.left_out else by_rule(sweep, options, folder)
    oracle = ", sampled by target labels (oracle)" if options.oracle == "true" else ""
    line = f"trial {number} of {len(sweep.study.trials)}, {how}{oracle}"
    study.write_winner(folder / "winner.yaml", words, sweep.values(number), seed, line)
    print(f"\n{line}: {sweep.values(number)}\ntrain.py --config {folder / 'winner.yaml'} trains it again")
    return 0


def without_a_result(sweep):
    """Why there is nothing to choose from, in one line."""
    failed, pruned = len(sweep.failures()), sweep.pruned()
    if not failed + pruned:
        return "no trial has ended; give more --minutes, and the same command goes on"
    if not pruned:
        return "every trial failed; their lines stand above"
    return f"no trial ran to its end: {failed} failed, {pruned} were pruned; leave out --prune, or try more"


def by_objective(sweep, options):
    """(number of the trial with the highest objective, its first seed, how it was chosen); prints all."""
    found = sweep.objectives()
    for number, value in sorted(found.items(), key=lambda pair: -pair[1]):
        print(f"trial {number}: {options.objective} {value:.4f}: {sweep.values(number)}")
    return max(found, key=found.get), 0, f"chosen by {options.objective}"


def by_rule(sweep, options, folder):
    """(number of the trial that a rule chooses, the run's seed, how it was chosen); prints what each rule
    says.
    """
    from src.selection import pool as pools
    from src.sweeps import picture

    runs = sweep.runs()
    chosen, how = runs[0], "the only run with a result"
    if len(runs) > 1:
        pool = pools.Pool([pools.read(run) for run in runs])
        print("\n".join(pools.lines(pool)))
        by = options.by or pool.default
        place = pool.choice(by)
        if place is None:
            raise UserError(f"by: rule {by} has no value for these runs; choose another")
        chosen, how = runs[place], f"chosen by {by}"
        if pool.accuracies:
            picture.draw(pool, folder / "rules.png")
    number, seed = chosen.parent.name.removeprefix("trial-"), chosen.name.removeprefix("seed-")
    return int(number), int(seed), how


if __name__ == "__main__":
    cli.run(main)
