"""MNIST-M (Ganin et al. 2015): MNIST digits over photographs, 28x28 RGB.

Two forms are read: the IDX files that create_mnistm.py writes, and the published folder of 32x32 PNGs.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from src.data import idx
from src.data.decode import Unreadable
from src.data.decode import read as read_image
from src.data.download import ELSEWHERE
from src.data.files import shown, subfolders
from src.data.lists import read_lines
from src.data.split import Missing, Split, check_digits, check_split

FILES = {
    "train": ("mnist_m-train-images-idx4-ubyte", "mnist_m-train-labels-idx1-ubyte"),
    "test": ("mnist_m-t10k-images-idx4-ubyte", "mnist_m-t10k-labels-idx1-ubyte"),
}
SIZE = 28
PUBLISHED_SIZE = 32  # each image is a digit of 28x28 with a border of 2 pixels
THREADS = 2  # Python's lock lets more of them wait for each other: six take longer than one
AT_ONCE = 500  # images that a thread reads in one go: to hand out single ones takes longer than to read them


def load(root, split, download=False):
    """Load MNIST-M from `root`.

    root: the folder that create_mnistm.py wrote, or the published one with `mnist_m_train/` and
        `mnist_m_train_labels.txt` (the same for test) in it or in one of its subfolders.
    download: has no effect; MNIST-M has no stable address, the message says what to do.
    Returns a Split: images uint8 (N, 28, 28, 3) RGB; memory-mapped if create_mnistm.py wrote them, the middle
    28x28 pixels if they are the published ones.
    Raises UserError if neither form is there, or if it is incomplete or damaged.
    """
    paths = [Path(root, name) for name in FILES[check_split(split)]]
    present = [os.path.isfile(path) for path in paths]
    if all(present):
        return idx.read_pair(*paths, (SIZE, SIZE, 3))
    if any(present):
        missing = paths[present.index(False)]
        raise UserError(
            f"{missing}: missing beside {paths[present.index(True)].name}; run create_mnistm.py again"
        )
    folder = _find_published(root, split)
    if folder is None:
        raise Missing(
            f"MNIST-M: {paths[0].name} or a folder mnist_m_{split} not found in {root}; make it with: python "
            f"create_mnistm.py --mnistm_dir {root}"
            + (f" (download does not fetch it: {ELSEWHERE['MNIST-M']})" if download else "")
        )
    return _load_published(folder, split)


def _find_published(root, split):
    """The folder of images called mnist_m_<split> in `root`, beside it, or one folder deeper; or None."""
    root, name = Path(root).absolute(), f"mnist_m_{split}"
    beside = root.parent / name if root.name in ("mnist_m_train", "mnist_m_test") else root / name
    deeper = [root / inside / name for inside in (subfolders(root) if os.path.isdir(root) else ())]
    return next((folder for folder in [beside, *deeper] if os.path.isdir(folder)), None)


def _load_published(folder, split):
    names, labels = _read_labels(folder, split)
    images = np.empty((len(names), SIZE, SIZE, 3), np.uint8)

    def read(first):
        for index in range(first, min(first + AT_ONCE, len(names))):
            images[index] = _read_image(folder / names[index])

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(read, range(0, len(names), AT_ONCE)):
            pass
    return Split(images, labels)


def _read_labels(folder, split):
    """File names and labels from lines such as `00000000.png 5`."""
    name = f"mnist_m_{split}_labels.txt"
    path = next((place / name for place in (folder.parent, folder) if os.path.isfile(place / name)), None)
    if path is None:
        raise UserError(
            f"{folder.parent / name}: not found beside {folder.name}; unpack the published archive again"
        )
    names, labels = [], []
    for number, line in read_lines(path, "MNIST-M"):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in tuple("0123456789") or Path(fields[0]).name != fields[0]:
            raise UserError(
                f"{path}, line {number}: '{line[:60]}' is not '<file name> <digit>'; mend or remove the line"
            )
        names.append(fields[0])
        labels.append(int(fields[1]))
    if not names:
        raise UserError(f"{path}: lists no images; unpack the published archive again")
    return names, check_digits(np.array(labels), path)


def _read_image(path):
    try:
        image = read_image(path)
    except Unreadable as error:
        raise UserError(
            f"{shown(path)}: listed in the labels, but {error}; unpack the published archive again"
        ) from error
    if image.shape[:2] == (SIZE, SIZE):
        return image
    if image.shape[:2] != (PUBLISHED_SIZE, PUBLISHED_SIZE):
        raise UserError(
            f"{shown(path)}: {image.shape[1]}x{image.shape[0]} pixels, expected "
            f"{PUBLISHED_SIZE}x{PUBLISHED_SIZE}; unpack the published archive again"
        )
    border = (PUBLISHED_SIZE - SIZE) // 2
    return image[border:-border, border:-border]
