"""Augmentations of whole batches of small images; every one keeps labels and value range [0, 1]."""

import numpy as np


def intensity(images, rng):
    """Random contrast, brightness and inversion, drawn for each image and channel.

    Maps background 0 and stroke 1 to two random intensities, so that a digit may be dark on light, light
    on dark, or coloured, as MNIST-M's are. images: float32 (N, C, H, W) in [0, 1]; returns the same.
    """
    ends = rng.random((2, *images.shape[:2], 1, 1), dtype=np.float32)
    return ends[0] + (ends[1] - ends[0]) * images


def texture(images, rng):
    """`intensity` with a random texture in place of each of the two tones: domain randomisation.

    The amplitudes of a texture's frequencies f fall as 1/f^a, with a from 1 to 2 for each image: those of
    natural images fall about as 1/f (Field 1987, J. Opt. Soc. Am. A 4). Mean, contrast and how alike the
    channels are vary, too. The stroke's texture is the negative of the background's or, with probability 1/2,
    that of another image. After Tobin et al. 2017, arXiv 1703.06907. Shapes as `intensity`.
    """
    ground = _textures(images.shape, rng)
    other = np.roll(ground, 1, 0)
    stroke = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, 1 - ground, other)
    return ground + (stroke - ground) * images


def _textures(shape, rng):
    """float32 (N, C, H, W) in [0, 1]."""
    from scipy import fft

    count, channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).astype(np.float32)
    frequency[0, 0] = np.inf  # the mean is drawn below
    fall = rng.uniform(1.0, 2.0, (count, 1, 1, 1)).astype(np.float32)
    parts = rng.standard_normal((2, count, channels + 1, *frequency.shape), np.float32)
    waves = (parts[0] + 1j * parts[1]) * frequency**-fall
    # One texture that all channels share, and each channel's own.
    own = 0.5 * rng.random((count, 1, 1, 1), np.float32)
    texture = fft.irfft2(waves[:, :1] + own * waves[:, 1:], (height, width))
    texture /= texture.std((1, 2, 3), keepdims=True) + np.float32(1e-6)
    contrast = rng.uniform(0.0, 0.25, (count, 1, 1, 1)).astype(np.float32)
    grey, colour = rng.random((count, 1, 1, 1), np.float32), rng.random((count, channels, 1, 1), np.float32)
    mean = (grey + own * colour) / (1 + own)
    return np.clip(mean + contrast * texture, 0, 1)


def invert(images, rng):
    """Turn half of the images into their negatives, all channels together. Shapes as `intensity`."""
    return np.where(rng.random((len(images), 1, 1, 1)) < 0.5, 1 - images, images)


def cutout(images, rng, size=8):
    """Cover a square of `size` pixels with one random colour (DeVries & Taylor 2017, arXiv 1708.04552).

    Its centre is any pixel, so that up to three quarters of it may lie outside. Shapes as `intensity`.
    """
    count, channels, height, width = images.shape
    rows, columns = rng.integers(0, height, (count, 1)), rng.integers(0, width, (count, 1))
    covered_rows, covered_columns = _near(rows, height, size), _near(columns, width, size)
    covered = covered_rows[:, None, :, None] & covered_columns[:, None, None, :]
    colours = rng.random((count, channels, 1, 1), dtype=np.float32)
    return np.where(covered, colours, images)


def _near(centres, length, size):
    """bool (N, length): which of `size` positions from centre - size // 2 on exist."""
    distance = np.arange(length) - centres + size // 2
    return (distance >= 0) & (distance < size)


def shift(images, rng, pixels=2):
    """Move each image by up to `pixels` in both directions, repeating the edge. Shapes as `intensity`."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    rows, columns = rng.integers(0, 2 * pixels + 1, (2, count))
    return np.ascontiguousarray(windows[np.arange(count), :, rows, columns])


def warp(images, rng, scale, degrees=12.0, shear=0.2, pixels=2.0):
    """Scale, turn, slant and move each image, bilinear, repeating the edge. Shapes as `intensity`.

    scale: (low, high), drawn log-uniformly for width and height together; the two then differ by up to 15 %.
    The turn is up to `degrees` either way, the slant up to `shear` columns a row, the move up to `pixels` in
    each direction: a 6 stays a 6 and does not become a 9.
    """
    import cv2

    count, channels, height, width = images.shape
    inverse, offset = _inverse_maps(rng, count, scale, degrees, shear, pixels)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    # cv2 wants where each output pixel comes from: A (p - centre) + centre + offset.
    maps = np.concatenate((inverse, (centre + offset - inverse @ centre)[:, :, None]), 2)
    result = np.empty_like(images)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for image, moved, map_ in zip(images, result, maps, strict=True):
        for channel in range(channels):
            cv2.warpAffine(image[channel], map_, (width, height), moved[channel], flags, cv2.BORDER_REPLICATE)
    return result


def _inverse_maps(rng, count, scale, degrees, shear, pixels):
    """Output-to-input maps about the centre: matrices (N, 2, 2) and moves (N, 2), both as (x, y)."""
    size = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]), (count, 1)))
    sides = size * np.exp(rng.uniform(-0.5, 0.5, (count, 1)) * np.log(1.15) * np.array([1, -1]))
    angle = np.deg2rad(rng.uniform(-degrees, degrees, count))
    slant = rng.uniform(-shear, shear, count)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.stack((cosine, -sine, sine, cosine), 1).reshape(-1, 2, 2)
    turn[:, :, 1] += turn[:, :, 0] * slant[:, None]
    return turn / sides[:, :, None], rng.uniform(-pixels, pixels, (count, 2))


def affine(images, rng):
    """`warp` about the original size."""
    return warp(images, rng, (0.85, 1.15))


def shrink(images, rng):
    """`warp` to 0.6 to 1 of the size: digits that fill their frame (USPS) get margins like MNIST's."""
    return warp(images, rng, (0.6, 1.0))


def enlarge(images, rng):
    """`warp` to 1 to 1.4 times the size: MNIST's 20x20 digits fill their frame of 28x28 as USPS's do."""
    return warp(images, rng, (1.0, 1.4))


AUGMENTATIONS = {
    "intensity": intensity,
    "texture": texture,
    "shift": shift,
    "affine": affine,
    "shrink": shrink,
    "enlarge": enlarge,
    "invert": invert,
    "cutout": cutout,
}
GEOMETRIC = ("shift", "affine", "shrink", "enlarge")
CHOICES = (
    "none",
    *GEOMETRIC,
    *(f"{tones}{rest}" for tones in ("intensity", "texture") for rest in ("", *(f"+{g}" for g in GEOMETRIC))),
)
# What a student sees in self-training; see src/losses/self_training.py.
STRONG = (
    "none",
    *(
        f"{first}{rest}"
        for first in ("invert", "invert+shift", "invert+affine", "shift", "affine")
        for rest in ("", "+cutout")
    ),
)


def build(name):
    """'intensity+shift' -> function (images, rng) -> images; 'none' -> None."""
    if name == "none":
        return None
    steps = [AUGMENTATIONS[part] for part in name.split("+")]

    def apply(images, rng):
        for step in steps:
            images = step(images, rng)
        return images

    apply.__name__ = name  # features of augmented images are kept under it
    return apply
