"""Weights inside a Python package: found without running its code, converted once, always checked."""

import hashlib
import importlib.util
import logging
import re
import zipfile
from pathlib import Path

import numpy as np

from model_utils import cache
from model_utils.checkpoint import atomic
from model_utils.errors import UserError, shortened

log = logging.getLogger("run")

# MindSpore's names of a batch normalisation's parameters, and PyTorch's.
PYTORCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def find(package, folder, file):
    """Path of a file of an installed package, whole and unchanged.

    Args:
        package: the name that pip knows.
        folder: the package's top-level module, which is not imported.
        file: path in it, whose name holds the beginning of its SHA-256: `name-0123abcd.pth`.

    Raises:
        UserError: not installed, or the file is missing or damaged.
    """
    mend = f"pip install --force-reinstall {package}, or set pretrained to none"
    spec = importlib.util.find_spec(folder)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"pretrained: {package} is not installed; pip install {package}, or set pretrained to none"
        )
    path = Path(spec.submodule_search_locations[0]) / file
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"pretrained: {path}: {error.strerror or error}; {mend}") from error
    if not digest.startswith(re.search(r"-([0-9a-f]{8,})\.", path.name).group(1)):
        raise UserError(f"pretrained: {path} is damaged; {mend}")
    return path


def checked(values, shapes, path):
    """{name: float32 array} in the order of `shapes`.

    Raises:
        UserError: a name is missing or left over, a shape is another, or a value is not finite.
    """
    missing = [name for name in shapes if name not in values]
    wrong = [
        f"{name} {getattr(values[name], 'shape', type(values[name]).__name__)} for {shape}"
        for name, shape in shapes.items()
        if name in values and getattr(values[name], "shape", None) != shape
    ]
    extra = sorted(set(values) - set(shapes))
    parts = (("missing", missing), ("left over", extra), ("other shape", wrong))
    problems = "; ".join(f"{title}: {shortened(found, 3)}" for title, found in parts if found)
    if problems:
        raise UserError(f"{path} holds other weights than expected ({problems}); use another file")
    with np.errstate(over="ignore"):
        arrays = {name: np.array(values[name], np.float32, order="C") for name in shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} is infinite or not a number; use another file")
    return arrays


def converted(path, title, shapes, read):
    """`read(path)`, from the cache where it was converted before.

    Args:
        path: a file that `find` returned.
        title: what the cached file's name begins with.
        shapes: {name: shape} of all arrays.
        read: path -> {name: float32 array}.
    """
    folder = cache.folder()
    if folder is None:
        return read(path)
    cached = Path(folder) / f"{title}-{path.stem.rsplit('-', 1)[-1]}.npz"
    try:
        with np.load(cached, allow_pickle=False) as content:
            return checked({name: content[name] for name in content.files}, shapes, cached)
    except FileNotFoundError:
        log.debug("%s: converting %s", cached, path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, UserError) as error:
        log.warning("%s could not be read (%s): it is made again", cached, error)
    values = read(path)
    try:
        with atomic(cached) as temporary:
            np.savez(temporary, **values)
    except OSError as error:
        log.warning("%s could not be written: %s", cached, error.strerror or error)
    return values
