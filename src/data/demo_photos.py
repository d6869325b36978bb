"""The demo's target domain: digits over photographs, a small stand-in for MNIST-M.

Nothing is downloaded: the digits ship inside scikit-learn, the photographs inside scikit-image. Digits and
photographs of the test split are in no training split; `src/data/demo_digits.py` has the rule for the digits.
"""

import importlib.util
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from src.data import blend, demo_digits
from src.data.photos import decode, read_file
from src.data.split import Split, check_split

# The two motorcycles are a stereo pair, one scene, and so stay on one side.
PHOTOS = {
    "train": (
        "astronaut.png",
        "coffee.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
        "hubble_deep_field.jpg",
    ),
    "test": ("chelsea.png", "ihc.png", "rocket.jpg"),
}
DIGITS = {"train": demo_digits.TARGET_TRAIN, "test": demo_digits.TEST}
CROPS_PER_DIGIT = {"train": 10, "test": 5}
SHORT_SIDE = 321  # that of BSDS500's photographs: a crop shows as much of a scene as in MNIST-M
INK = 127  # enlarging 8x8 digits blurs them: above this is stroke, below it blur
SEED = 0


def load(root, split, download=False):
    """Load the demo's target images; `root` and `download` are ignored.

    Every digit comes over several random crops: 10 in training, 5 in testing.
    Returns a Split: images uint8 (N, 28, 28, 3) RGB, about 6,000 for training and 1,500 for testing.
    """
    digits = demo_digits.digits(DIGITS[check_split(split)])
    copies = CROPS_PER_DIGIT[split]
    masks, labels = np.tile(digits.images > INK, (copies, 1, 1)), np.tile(digits.labels, copies)
    draws = blend.uniforms(SEED, 1 if split == "train" else 2, len(labels))
    crops = blend.random_crops(photos(split), draws)
    return Split(blend.invert(crops, masks), labels)


def photos(split):
    """The bundled photographs of a split: uint8 RGB (H, W, 3), large ones scaled down."""
    # The folder inside the package; skimage.data's own functions may download what they do not find.
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise UserError("the demo data needs scikit-image: pip install -r requirements.txt")
    folder = Path(package.origin).parent / "data"
    return [_scale_down(decode(read_file(folder / name), folder / name)) for name in PHOTOS[split]]


def prepared(preparation):
    """All bundled photographs as a network gets them: float32 (N, C, S, S) by a `Preparation`."""
    whole = [*photos("train"), *photos("test")]
    return preparation.to_network(np.stack([preparation.view(photo) for photo in whole]))


def _scale_down(photo):
    import cv2

    height, width = photo.shape[:2]
    factor = SHORT_SIDE / min(height, width)
    if factor >= 1:
        return photo
    size = (round(width * factor), round(height * factor))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
