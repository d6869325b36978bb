"""Which versions this repository was tested with; checked before MindSpore is imported."""

import re
import sys
import warnings
from importlib import metadata

from model_utils.errors import UserError

TESTED_MINDSPORE = ("2.7.0", "2.8.0", "2.9.0", "2.10.0")
OLDEST_PYTHON, OLDEST_MINDSPORE, BROKEN_NUMPY = (3, 10), (2, 7), (2, 0)


def _numbers(version):
    """'2.10.0rc1' -> (2, 10), '2rc1' -> (2, 0): the first two numbers of a version."""
    found = [re.match(r"\d*", piece)[0] for piece in version.split(".")[:2]]
    return tuple(int(digits or 0) for digits in (*found, "0")[:2])


def _installed(*packages):
    """The version of the first of `packages` that is installed, or None."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def check():
    """Raise UserError where a version is known to break; warn in one line where it was not tested.

    numpy 2 kills MindSpore's PyNative mode (`numpy.core.multiarray failed to import`), and the
    failure surfaces far from its cause, which is why this runs first.
    """
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise UserError(f"Python {sys.version.split()[0]} is too old: use Python 3.10, 3.11 or 3.12")
    numpy = _installed("numpy")
    if numpy and _numbers(numpy) >= BROKEN_NUMPY:
        raise UserError(f'numpy {numpy} breaks MindSpore\'s PyNative mode: pip install "numpy>=1.26,<2"')
    mindspore = _installed("mindspore", "mindspore-dev")  # mindspore-dev: its nightly builds
    if mindspore is None:
        raise UserError("MindSpore is not installed: pip install -r requirements.txt")
    if _numbers(mindspore) < OLDEST_MINDSPORE:
        raise UserError(f"MindSpore {mindspore} is too old: pip install mindspore=={TESTED_MINDSPORE[-1]}")
    if mindspore not in TESTED_MINDSPORE:
        warnings.warn(
            f"MindSpore {mindspore} was not tested; tested: {', '.join(TESTED_MINDSPORE)}", stacklevel=2
        )
