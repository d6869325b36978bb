"""What is done to decoded images: crops and colours of files, size and channels of whole arrays of digits."""

import numpy as np

from src.data.preparation import LUMA

MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3
CROP_TRIES = 10
GREY_LEVELS = np.float32(1 / 255)


def crop_box(height, width, scale, draws):
    """(top, left, height, width) of a random resized crop (Szegedy et al. 2015, arXiv 1409.4842).

    scale: smallest and largest share of the area. draws: CROP_TRIES x 4 numbers in [0, 1): area, ratio of the
    sides, position. The first try that fits is taken, else the middle of the image.
    """
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        ratio = MIN_RATIO * (MAX_RATIO / MIN_RATIO) ** ratio_draw
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            return int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w
    w = min(width, round(height * MAX_RATIO))
    h = min(height, round(width / MIN_RATIO))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter(images, factors):
    """Brightness, contrast and saturation of uint8 (N, H, W, 3), times `factors` (N, 3), in that order."""
    brightness, contrast, saturation = (column[:, None, None, None] for column in factors.T)
    values = np.clip(images * brightness, 0, 255)
    mean = (values @ LUMA).mean((1, 2))[:, None, None, None]
    values = np.clip(mean + (values - mean) * contrast, 0, 255)
    grey = (values @ LUMA)[..., None]
    return np.clip(grey + (values - grey) * saturation + 0.5, 0, 255).astype(np.uint8)


def fit(images, channels, size, resize="area"):
    """Bring whole arrays to one shape: uint8 (N, H, W[, 3]) -> (N, size, size[, 3]), grey or RGB.

    RGB becomes grey by ITU-R 601 luma; grey becomes RGB later, per batch, to save memory.
    With "area" resizing averages areas when shrinking and interpolates linearly when growing; the grids in
    GRIDS interpolate linearly either way.

    Args:
        resize: "area", or a name in GRIDS.
    """
    if channels == 1 and images.ndim == 4:
        images = np.round(images @ LUMA).astype(np.uint8)
    if images.shape[1:3] == (size, size):
        return images
    if resize in GRIDS:
        return interpolated(images, size, GRIDS[resize])
    import cv2

    method = cv2.INTER_AREA if images.shape[1] > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (size, size), interpolation=method) for image in images])


# Where the pixels of a new grid of `size` lie in the old one of `length`.
GRIDS = {
    # The outermost pixels coincide: pixel i lies at i·(length - 1)/(size - 1).
    "corners": lambda length, size: np.linspace(0, length - 1, size),
    # The first pixels coincide: pixel i lies at i·length/size. This is `tf.image.resize_images` of
    # TensorFlow 1 without `align_corners`, which the authors of ADDA (Tzeng et al. 2017) call.
    "origin": lambda length, size: np.minimum(np.arange(size) * length / size, length - 1),
}


def interpolated(images, size, grid):
    """Bilinear resizing of uint8 (N, H, W[, 3]) to (N, size, size[, 3]).

    grid: function in GRIDS.
    """
    rows, columns = (_hat(grid(length, size), length) for length in images.shape[1:3])
    flat = images if images.ndim == 4 else images[..., None]
    resized = np.empty((len(images), size, size, flat.shape[3]), np.uint8)
    for start in range(0, len(images), 1024):
        part = flat[start : start + 1024].astype(np.float32)
        part = np.einsum("ih,nhwc->niwc", rows, part, optimize=True)
        part = np.einsum("jw,niwc->nijc", columns, part, optimize=True)
        resized[start : start + 1024] = np.rint(part)
    return resized if images.ndim == 4 else resized[..., 0]


def _hat(places, length):
    """float32 (places, length): the weights of linear interpolation at places from 0 to length - 1."""
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(length))).astype(np.float32)


def to_float(images, channels):
    """uint8 (N, H, W) or (N, H, W, 3) -> float32 (N, channels, H, W) in [0, 1]."""
    if images.ndim == 3:
        scaled = (images * GREY_LEVELS)[:, None]
        return np.repeat(scaled, channels, axis=1) if channels > 1 else scaled
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) * GREY_LEVELS


def flip(images, rng):
    """Mirror each image, left to right, with probability 1/2. images: float32 (N, C, H, W)."""
    mirrored = rng.random(len(images)) < 0.5
    images[mirrored] = images[mirrored, :, :, ::-1]
    return images
