"""Which versions this repository was tested with; checked before MindSpore is imported."""

import sys
import warnings
from importlib import metadata

from model_utils.errors import UserError

TESTED_MINDSPORE = ("2.10.0",)
OLDEST_MINDSPORE = (2, 7)


def _numbers(version):
    """'2.10.0rc1' -> (2, 10): the first two numbers of a version."""
    parts = []
    for piece in version.split(".")[:2]:
        digits = "".join(char for char in piece if char.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def _installed(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check():
    """Raise UserError where a version is known to break; warn in one line where it was not tested.

    numpy 2 kills MindSpore's PyNative mode (`numpy.core.multiarray failed to import`), and the
    failure surfaces far from its cause, which is why this runs first.
    """
    if sys.version_info < (3, 10):  # noqa: UP036 - that is what is being told
        raise UserError(f"Python {sys.version.split()[0]} is too old: use Python 3.10, 3.11 or 3.12")
    numpy = _installed("numpy")
    if numpy and _numbers(numpy) >= (2, 0):
        raise UserError(f'numpy {numpy} breaks MindSpore\'s PyNative mode: pip install "numpy>=1.26,<2"')
    mindspore = _installed("mindspore")
    if mindspore is None:
        raise UserError("MindSpore is not installed: pip install -r requirements.txt")
    if _numbers(mindspore) < OLDEST_MINDSPORE:
        raise UserError(f"MindSpore {mindspore} is too old: pip install mindspore==2.10.0")
    if mindspore not in TESTED_MINDSPORE:
        warnings.warn(
            f"MindSpore {mindspore} was not tested; tested: {', '.join(TESTED_MINDSPORE)}", stacklevel=2
        )
