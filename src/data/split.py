"""What every data set hands out: the images and labels of one split."""

from typing import NamedTuple

import numpy as np

from model_utils.errors import UserError

SPLITS = ("train", "test")
DIGITS = tuple(str(digit) for digit in range(10))  # names of the classes


class Missing(UserError):
    """None of a data set's files is in its folder, which may then hold images of another kind."""


class Split(NamedTuple):
    """One split of a data set, as whole arrays.

    images: uint8, (N, H, W) grey or (N, H, W, 3) RGB, values 0..255; may be a read-only memory map.
    labels: int32, (N,), the digit 0..9.
    """

    images: np.ndarray
    labels: np.ndarray

    def take(self, chosen):
        """The samples at positions, under a mask, or in a slice."""
        return Split(self.images[chosen], self.labels[chosen])

    def without_labels(self):
        """The images alone; `labels` is None."""
        return Split(self.images, None)


def check_split(split):
    """Return `split` if it is "train" or "test"; UserError otherwise."""
    if split not in SPLITS:
        raise UserError(f"split '{split}' does not exist: choose 'train' or 'test'")
    return split


def check_digits(labels, where):
    """Return `labels` (any integer array, (N,)) as int32; UserError naming `where` unless all are 0..9."""
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        raise UserError(
            f"{where}: label {labels[wrong[0]]} of sample {wrong[0]} is not a digit 0 to 9 "
            f"({wrong.size} such labels); this is not the file of a digit data set, or it is damaged"
        )
    return labels.astype(np.int32)
