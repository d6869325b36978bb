"""Rules that judge a trained network without target labels, found by name: one module each.

A module has `score(evidence) -> float`, where more is better, or None where the evidence lacks what it needs;
or, for a rule over several candidates, `scores(probabilities) -> list of float`.
`python -m src.selection RUN_FOLDER …` chooses among runs; docs/selection.md explains the rules.
"""

import functools
import importlib
import pkgutil

from model_utils.errors import UserError

WITHOUT_TARGET = "source_accuracy"  # the one rule that looks at no target image
SHARED = ("evidence", "probe", "pool")  # modules that are not rules


def names():
    """Every rule's name, sorted."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name not in SHARED and not name.startswith("_"))


@functools.cache
def find(name):
    """The module of a rule; UserError that lists the rules if there is none."""
    if name not in names():
        raise UserError(f"by: {name!r:.60} is no rule; rules: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def of_one_run():
    """The names of the rules that judge a run by itself."""
    return [name for name in names() if hasattr(find(name), "score")]
