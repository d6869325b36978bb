"""Packages that a program can do without until the moment it needs them."""

import importlib
import os

from model_utils.errors import UserError

# Set before a package is imported, unless they are set. onnxruntime would keep a number of the machine and a
# store of its telemetry in the user's cache folder.
VARIABLES = {"onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"}}


def require(name, purpose):
    """The module `name`; where it is missing or broken, a UserError that says what it is needed for.

    purpose: completes "… is needed".
    """
    for variable, value in VARIABLES.get(name, {}).items():
        os.environ.setdefault(variable, value)
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package that is installed wrongly raises whatever it likes
        package = name.partition(".")[0]
        reason = reason_of(error)
        raise UserError(
            f"the package {package} is needed {purpose}, and can't be imported ({reason}); "
            "pip install -r requirements.txt"
        ) from error


def reason_of(error):
    """One line of an exception: its kind, and the beginning of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
