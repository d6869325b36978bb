"""Digits over photographs, as MNIST-M is made (Ganin et al. 2015, "Unsupervised Domain Adaptation by
Backpropagation", section 4): a digit inverts the colours of a random crop of a photograph.

The random numbers come from `numpy.random.RandomState` (Mersenne Twister seeded by an array), whose stream
NumPy froze for good (NEP 19), whereas the methods of `numpy.random.Generator` may change between versions.
Only `random_sample` is used, and turned into positions here, because integer draws depend on the platform's
integer width. Python's own `random.Random(seed + stream * 2**32).random()` yields the same numbers.
"""

import numpy as np

CROP = 28


def uniforms(seed, stream, count):
    """(count, 3) float64 in [0, 1), the same on every machine.

    seed: 0..2**32-1. stream: 1..2**32-1, tells apart the independent sequences of one seed.
    """
    return np.random.RandomState([seed, stream]).random_sample((count, 3))


def random_crops(photos, draws):
    """Cut one 28x28 crop for each row of `draws`.

    photos: list of uint8 RGB arrays (H, W, 3), H and W at least 28. draws: (N, 3) in [0, 1): which
    photograph, which row, which column; every photograph and every position in it is equally likely.
    Returns uint8 (N, 28, 28, 3).
    """
    which = (draws[:, 0] * len(photos)).astype(np.int64)
    room = np.array([(photo.shape[0] - CROP + 1, photo.shape[1] - CROP + 1) for photo in photos])
    corners = (draws[:, 1:] * room[which]).astype(np.int64)
    crops = np.empty((len(draws), CROP, CROP, 3), np.uint8)
    for crop, index, (top, left) in zip(crops, which.tolist(), corners.tolist(), strict=True):
        crop[:] = photos[index][top : top + CROP, left : left + CROP]
    return crops


def invert(crops, masks):
    """|crop - 255 * mask| in every channel, in place.

    crops: uint8 (N, H, W, 3). masks: bool (N, H, W), true where the digit is. Returns crops.
    For 8-bit values 255 - v is v with every bit flipped, hence the exclusive or.
    """
    crops ^= (masks.astype(np.uint8) * 255)[..., None]
    return crops


def contact_sheet(images, labels, per_digit=10):
    """Ten rows, row d showing the first `per_digit` images labelled d; uint8 (10*H, per_digit*W, 3)."""
    height, width = images.shape[1:3]
    sheet = np.zeros((10 * height, per_digit * width, 3), np.uint8)
    for digit in range(10):
        for column, index in enumerate(np.flatnonzero(labels == digit)[:per_digit]):
            place = np.s_[digit * height : (digit + 1) * height, column * width : (column + 1) * width]
            sheet[place] = images[index]
    return sheet
