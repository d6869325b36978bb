"""Choose among finished runs of one task without target labels.

    python -m src.selection outputs/run-* [--by RULE] [--json FILE]

Prints what each rule says of each run, and which one it would choose; where target labels exist also how good
each choice is. The last line is the folder of the run that --by chooses.
"""

import argparse

from model_utils import cli
from model_utils.errors import UserError
from src import selection
from src.evaluation import result
from src.selection import pool as pools


def main():
    parser = cli.Parser(
        prog="python -m src.selection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument(
        "--by",
        metavar="RULE",
        help=f"{', '.join(selection.names())}; default {pools.DEFAULT}, or for methods that must not look at "
        f"the target {selection.WITHOUT_TARGET}",
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything there")
    options = parser.parse_args()
    if options.by:
        selection.find(options.by)
    pool = pools.Pool([pools.read(folder) for folder in dict.fromkeys(options.runs)])
    by = options.by or pool.default
    place = pool.choice(by)
    if place is None:
        raise UserError(f"by: rule {by} has no value for any of these runs; choose another")
    if options.json:
        write(pool, by, options.json)
    print("\n".join(pools.lines(pool)))
    print(f"\nchosen by {by}:\n{pool.candidates[place].folder}")
    return 0


def write(pool, by, path):
    """Write the table and the choices as JSON, whole or not at all."""
    content = {
        "runs": [str(candidate.folder) for candidate in pool.candidates],
        "rules": pool.table,
        "passes_gate": pool.gated,
        "target_accuracy_oracle": pool.accuracies,
        "by": by,
        "chosen": str(pool.candidates[pool.choice(by)].folder),
        "judged": {name: pool.judged(name) for name in pool.table},
    }
    result.write(content, path)


if __name__ == "__main__":
    cli.run(main)
