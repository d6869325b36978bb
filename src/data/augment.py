"""Augmentations of whole batches of small images; every one keeps labels and value range [0, 1]."""

import numpy as np


def intensity(images, rng):
    """Random contrast, brightness and inversion, drawn for each image and channel.

    Maps background 0 and stroke 1 to two random intensities, so that a digit may be dark on light, light
    on dark, or coloured, as MNIST-M's are. images: float32 (N, C, H, W) in [0, 1]; returns the same.
    """
    ends = rng.random((2, *images.shape[:2], 1, 1), dtype=np.float32)
    return ends[0] + (ends[1] - ends[0]) * images


def shift(images, rng, pixels=2):
    """Move each image by up to `pixels` in both directions, repeating the edge. Shapes as `intensity`."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    rows, columns = rng.integers(0, 2 * pixels + 1, (2, count))
    return np.ascontiguousarray(windows[np.arange(count), :, rows, columns])


AUGMENTATIONS = {"intensity": intensity, "shift": shift}
CHOICES = ("none", "intensity", "shift", "intensity+shift")


def build(name):
    """'intensity+shift' -> function (images, rng) -> images; 'none' -> None."""
    if name == "none":
        return None
    steps = [AUGMENTATIONS[part] for part in name.split("+")]

    def apply(images, rng):
        for step in steps:
            images = step(images, rng)
        return images

    return apply
