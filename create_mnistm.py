"""Make MNIST-M from MNIST and BSDS500: python create_mnistm.py --help"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import argparse
import hashlib
import os
import reprlib
import signal
import sys
import time

import numpy as np

from model_utils import cli, paths
from src.data import blend, idx, mnist, mnist_m
from src.data.photos import BSDS500_TRAINING_PHOTOS, BSDS500_URL, fetch_bsds500, read_training_photos

CHUNK = 2000  # digits blended at a time: 5 MB
SHEET = "mnist_m_contact_sheet.png"
STREAM = {"train": 1, "test": 2}


def parse(arguments=None):
    parser = cli.Parser(
        allow_abbrev=False,
        description="Make MNIST-M: every MNIST digit inverts a random crop of a random BSDS500 training "
        "photograph (Ganin et al. 2015). The same seed gives the same bytes: compare the SHA-256 printed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--bst_path",
        type=_path,
        default="data/BSR_bsds500.tgz",
        help=f"{BSDS500_URL}, a .zip of it, or the unpacked folder",
    )
    add("--mnist_dir", type=_path, default="data/mnist", help="folder of the four idx files, gzipped or not")
    add("--mnistm_dir", type=_path, default="data/mnist_m", help="folder to write to; made if missing")
    add("--seed", type=_seed, default=42, help="0 to 4294967295")
    add("--download", type=_boolean, default=False, help="true: fetch MNIST and BSDS500 if they are missing")
    return parser.parse_args(arguments)


def _path(text):
    # Most likely a shell variable that is not set; as a path it would be the current folder.
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    path = os.path.expanduser(text)
    wrong = paths.problem(path)
    if wrong:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(path)} {wrong}")
    return path


def _seed(text):
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def _boolean(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def main():
    arguments = parse()
    import cv2  # noqa: F401 - before Ctrl-C may raise: an import must not be cut short

    with interrupts.raising():  # which removes the files that are not finished
        return make(arguments)


def make(arguments):
    """Read, blend and write everything."""
    # A killed run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.perf_counter()
    if arguments.download and not os.path.lexists(arguments.bst_path):
        fetch_bsds500(arguments.bst_path)
    _, photos = read_training_photos(arguments.bst_path)
    print(f"{len(photos)} training photographs in {arguments.bst_path}")
    digits = {split: mnist.load(arguments.mnist_dir, split, arguments.download) for split in STREAM}
    with idx.StagedFiles(arguments.mnistm_dir) as files:
        written = [
            line
            for split in STREAM
            for line in write_split(files, split, digits[split], photos, arguments.seed)
        ]
    for line in written:
        print(line)
    if len(photos) != BSDS500_TRAINING_PHOTOS:
        print(
            f"warning: BSDS500 has {BSDS500_TRAINING_PHOTOS} training photographs, here are {len(photos)}: "
            "the images and their SHA-256 will be others",
            file=sys.stderr,
        )
    total = sum(len(split.labels) for split in digits.values())
    print(f"MNIST-M: {total} images in {arguments.mnistm_dir}, {time.perf_counter() - start:.1f} s")


def write_split(files, split, digits, photos, seed):
    """Blend and write one split, and with the test split the contact sheet.

    files: an open StagedFiles. digits: a Split of MNIST. photos: list of uint8 (H, W, 3).
    Returns one line per file: path, count, SHA-256.
    """
    from tqdm import tqdm

    images_name, labels_name = mnist_m.FILES[split]
    count = len(digits.labels)
    images = Writer(files, images_name, (count, blend.CROP, blend.CROP, 3))
    draws = blend.uniforms(seed, STREAM[split], count)
    with tqdm(total=count, desc=split, unit="image", disable=None) as progress:
        for first in range(0, count, CHUNK):
            part = slice(first, first + CHUNK)
            blended = blend.invert(blend.random_crops(photos, draws[part]), digits.images[part] > 0)
            images.write(blended)
            progress.update(len(blended))
            if split == "test" and first == 0:
                write_sheet(files, blended, digits.labels[part])
    labels = Writer(files, labels_name, (count,))
    labels.write(digits.labels.astype(np.uint8))
    return [images.line(), labels.line()]


class Writer:
    """Writes an IDX file piece by piece and sums it up on the way."""

    def __init__(self, files, name, shape):
        self.file, self.path = files.open(name)
        self.count, self.digest = shape[0], hashlib.sha256()
        self._put(idx.header(shape))

    def _put(self, data):
        self.file.write(data)
        self.digest.update(data)

    def write(self, array):
        self._put(np.ascontiguousarray(array).data)

    def line(self):
        return f"{self.path}: {self.count}, sha256 {self.digest.hexdigest()}"


def write_sheet(files, images, labels):
    """A PNG of ten rows, one per digit, of ten images."""
    import cv2

    sheet = cv2.cvtColor(blend.contact_sheet(images, labels), cv2.COLOR_RGB2BGR)
    file, _ = files.open(SHEET)
    file.write(cv2.imencode(".png", sheet)[1].tobytes())


if __name__ == "__main__":
    cli.run(main)
