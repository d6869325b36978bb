"""The methods, found by their names: one module of this package each, which holds a class `Method`.

`Method` is a subclass of `src.training.trainer.Trainer`; src/training/contract.py says what it defines.
Nothing else in the repository knows how many methods there are.
"""

import difflib
import importlib
import pkgutil

from model_utils.errors import UserError


def method_names():
    """The methods that exist: the modules of this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find_method(name):
    """Class `Method` of the module `name`; UserError that lists the methods if there is none."""
    names = method_names()
    if name not in names:
        nearest = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"method: {name!r} does not exist; {hint}methods: {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{name}").Method
