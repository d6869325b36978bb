"""MNIST (LeCun et al. 1998): 60,000 + 10,000 handwritten digits, 28x28 grey."""

import os
from pathlib import Path

from src.data import idx
from src.data.download import fetch as download_file
from src.data.split import Missing, Split, check_split

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# MD5 of the gzipped files as published.
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
)


def load(root, split, download=False):
    """Load MNIST from the idx files in `root` or `root`/MNIST/raw, gzipped or not.

    Returns a Split: images uint8 (N, 28, 28), ink 255 on 0; plain files are memory-mapped.
    download: fetch missing files into `root` first.
    Raises UserError if files are missing, damaged, or do not belong together, or cannot be fetched.
    """
    stems = FILES[check_split(split)]
    paths = [find(root, stem) for stem in stems]
    if None in paths:
        missing = [stem for stem, path in zip(stems, paths, strict=True) if path is None]
        if not download:
            raise Missing(
                f"MNIST: {' and '.join(missing)} (plain or .gz) not found in {root or '(empty path)'} or its "
                "MNIST/raw; "
                "fetch them with --download true, or put the files there (source_image_root or "
                "target_image_root names the folder, for create_mnistm.py --mnist_dir)"
            )
        for stem in missing:
            fetch(root, stem)
        paths = [find(root, stem) for stem in stems]
    return Split(*idx.read_pair(*paths, (28, 28)))


def find(root, stem):
    """Path of the file called `stem` in one of its usual spellings and places, or None."""
    for folder in (Path(root), Path(root, "MNIST", "raw")):
        for spelling in (stem, stem.replace("-idx", ".idx")):
            for name in (spelling, spelling + ".gz"):
                if os.path.isfile(folder / name):
                    return folder / name
    return None


def fetch(root, stem):
    """Download `stem`.gz into `root`, trying the mirrors in turn; returns its path.

    Only a file of the published MD5 gets there. UserError naming the mirrors if none has it.
    """
    name = stem + ".gz"
    return download_file("MNIST", root, name, [mirror + name for mirror in MIRRORS], f"md5:{MD5[stem]}")
