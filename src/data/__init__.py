"""Digit data sets, looked up by name: `load("mnist", "data/mnist", "train")`.

A data set is one module in this folder with `load(root, split, download=False) -> Split`. It raises `Missing`
where none of its files is in `root`. Adding a module adds the data set.
"""

import difflib
import importlib
from pathlib import Path

from model_utils.errors import UserError
from src.data.split import Split, check_split

__all__ = ["Split", "available", "find", "load"]


def available():
    """Names of the data sets, sorted: the modules here that define `load(root, split, ...)`.

    Read from the source text, because importing every module to ask would cost seconds.
    """
    modules = Path(__file__).parent.glob("*.py")
    return sorted(m.stem for m in modules if "\ndef load(root, split" in m.read_text(encoding="utf-8"))


def find(name):
    """The module of the data set `name`; MNIST-M, mnistm and mnist_m are one.

    Raises UserError, naming the nearest, for a name that is not in `available()`.
    """
    names = available()
    by_key = {known.replace("_", ""): known for known in names}
    key = str(name).lower().replace("-", "").replace("_", "")
    if key not in by_key:
        near = difflib.get_close_matches(key, by_key, n=1, cutoff=0.5)
        hint = f" (did you mean '{by_key[near[0]]}'?)" if near else ""
        raise UserError(f"data set '{name}' does not exist{hint}; data sets: {', '.join(names)}")
    return importlib.import_module(f"src.data.{by_key[key]}")


def load(name, root, split, download=False):
    """Load one split of the data set `name`.

    name: see `find`.
    root: the data set's folder; the demo data sets carry their data and ignore it.
    split: "train" or "test".
    download: fetch the files if they are missing, where the data set has a stable address.
    Raises UserError for an unknown name or split, and for missing or damaged files.
    """
    return find(name).load(root, check_split(split), download)
