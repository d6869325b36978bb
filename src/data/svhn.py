"""SVHN, cropped digits (Netzer et al. 2011): 73,257 + 26,032 house-number digits, 32x32 RGB."""

import os
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from src.data.download import fetch
from src.data.split import Missing, Split, check_digits, check_split

URL = "http://ufldl.stanford.edu/housenumbers/"
MD5 = {  # as torchvision checks them
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
MAX_SAMPLES = 1_000_000  # the "extra" file has 531,131


def load(root, split, download=False):
    """Load SVHN from `train_32x32.mat` or `test_32x32.mat` in `root`.

    The files hold X, uint8 (32, 32, 3, N), and y, (N, 1), where 10 stands for the digit 0.
    download: fetch the file into `root` if it is missing.
    Returns a Split: images uint8 (N, 32, 32, 3) RGB.
    Raises UserError if the file is missing, unreadable, or of another layout, or cannot be fetched.
    """
    path = Path(root, f"{check_split(split)}_32x32.mat")
    if not os.path.isfile(path):
        if not download:
            raise Missing(
                f"SVHN: {path.name} not found in {root}; fetch it with --download true, or get it from {URL}"
            )
        fetch("SVHN", root, path.name, [URL + path.name], f"md5:{MD5[path.name]}")
    images, labels = _read(path)
    labels = np.where(labels == 10, 0, np.where(labels == 0, -1, labels))  # a plain 0 would be out of range
    return Split(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), check_digits(labels, path))


def _read(path):
    """X and y, with their layout checked before the bulk is read."""
    from scipy.io import loadmat, whosmat

    try:
        shapes = {name: shape for name, shape, _ in whosmat(path)}
        _check_shapes(shapes, path)
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1)
    except UserError:
        raise
    # The parser meets a stranger's bytes and raises whatever it trips over: ValueError, TypeError,
    # zlib.error, struct.error, KeyError, MemoryError, NotImplementedError for HDF5 ...
    except Exception as error:
        raise UserError(f"{path}: not a readable MATLAB 5 file ({error}); get it again from {URL}") from error
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: X is {images.dtype} and y {labels.dtype}, expected integers; get it again from {URL}"
        )
    return images, labels.astype(np.int64)


def _check_shapes(shapes, path):
    for name in ("X", "y"):
        if name not in shapes:
            found = ", ".join(shapes) or "nothing"
            raise UserError(f"{path}: no variable '{name}' in it (found: {found}); get it again from {URL}")
    images, labels = shapes["X"], shapes["y"]
    count = images[-1]
    fits = len(images) == 4 and images[:3] == (32, 32, 3) and labels in ((count, 1), (1, count))
    if not fits or not 0 < count <= MAX_SAMPLES:
        raise UserError(
            f"{path}: X is {images} and y {labels}, expected (32, 32, 3, N) and (N, 1); "
            f"get it again from {URL}"
        )
