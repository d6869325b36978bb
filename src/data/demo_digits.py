"""The demo's source domain: scikit-learn's handwritten digits (1,797 of 8x8), made to look like MNIST.

Nothing is downloaded: the digits ship inside scikit-learn. Within each class the k-th digit goes by k % 6:

| k % 6   | used for                              |
|---------|---------------------------------------|
| 0, 1, 2 | source train (demo_digits)            |
| 3, 4    | target train (demo_photos)            |
| 5       | test, of demo_digits and demo_photos  |

so test digits are in no training split, and source and target are trained on different digits, as in
unsupervised adaptation. The 13 writers of the set appear in all three.
"""

import numpy as np

from src.data.split import Split, check_split

GROUP_SIZE = 6
SOURCE_TRAIN, TARGET_TRAIN, TEST = (0, 1, 2), (3, 4), (5,)
BOX = 20  # MNIST centres each digit's 20x20 box in 28x28


def load(root, split, download=False):
    """Load the demo's source digits; `root` and `download` are ignored.

    Returns a Split: images uint8 (N, 28, 28), ink 255 on 0; about 900 for training and 300 for testing.
    """
    return digits(SOURCE_TRAIN if check_split(split) == "train" else TEST)


def digits(groups):
    """The digits whose rank within their class, modulo 6, is in `groups`, as a Split of (N, 28, 28)."""
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)  # 0..16
    rank = np.empty(len(labels), np.int64)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        rank[members] = np.arange(len(members))
    chosen = np.isin(rank % GROUP_SIZE, groups)
    return Split(_enlarge(small[chosen].reshape(-1, 8, 8)), labels[chosen].astype(np.int32))


def _enlarge(small):
    """(N, 8, 8) in 0..16 to uint8 (N, 28, 28): cubic, clipped where it overshoots, centred."""
    import cv2

    large = np.zeros((len(small), 28, 28), np.uint8)
    margin = (28 - BOX) // 2
    for image, place in zip(small.astype(np.float32), large, strict=True):
        enlarged = cv2.resize(image * (255 / 16), (BOX, BOX), interpolation=cv2.INTER_CUBIC)
        place[margin:-margin, margin:-margin] = np.clip(np.rint(enlarged), 0, 255)
    return large
