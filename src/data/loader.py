"""Batches of digit images, assembled as whole arrays; a batch is a pure function of the step."""

import numpy as np

from model_utils.errors import UserError
from model_utils.noise import generator


def fit(images, channels, size):
    """Bring a data set to one shape: uint8 (N, H, W[, 3]) -> (N, size, size[, 3]), grey or RGB.

    RGB becomes grey by ITU-R 601 luma; grey becomes RGB later, per batch, to save memory.
    Resizing averages areas when shrinking and interpolates linearly when growing.
    """
    if channels == 1 and images.ndim == 4:
        images = np.round(images @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    if images.shape[1:3] == (size, size):
        return images
    import cv2

    method = cv2.INTER_AREA if images.shape[1] > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (size, size), interpolation=method) for image in images])


def to_float(images, channels):
    """uint8 (N, H, W) or (N, H, W, 3) -> float32 (N, channels, H, W) in [0, 1]."""
    if images.ndim == 3:
        scaled = (images * np.float32(1 / 255))[:, None]
        return np.repeat(scaled, channels, axis=1) if channels > 1 else scaled
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) * np.float32(1 / 255)


def split_validation(split, size, seed):
    """(training part, validation part of `size` samples), drawn by seed; size 0 gives (split, None)."""
    if size == 0:
        return split, None
    count = len(split.labels)
    if size >= count:
        raise UserError(
            f"validation_size: {size} leaves nothing of {count} training images; choose a smaller one"
        )
    order = generator(seed, "validation").permutation(count)
    held, kept = np.sort(order[:size]), np.sort(order[size:])
    return type(split)(split.images[kept], split.labels[kept]), type(split)(
        split.images[held], split.labels[held]
    )


class TrainLoader:
    """Shuffled training batches of one domain.

    `batch(step)` gives (images float32 (B, C, S, S) in [0, 1], labels int32 (B,)), or None in place of the
    labels when `labelled` is False: a target's labels end here. Each epoch is a new permutation of all
    samples, shared out over the ranks without overlap; what does not fill a batch is left out.

    Args:
        split: images uint8 and labels.
        batch_size: samples per step and rank.
        seed, domain: choose the order and the augmentation together with epoch, step and rank.
        channels, size: the shape of the images handed out.
        augment: None or a function (images, rng) -> images.
        rank, world: this process and how many there are.

    Raises:
        UserError: fewer samples than one step of all ranks needs.
    """

    def __init__(
        self,
        split,
        batch_size,
        seed,
        domain,
        channels=3,
        size=28,
        augment=None,
        labelled=True,
        rank=0,
        world=1,
    ):
        self.images = fit(split.images, channels, size)
        self.labels = split.labels if labelled else None
        self.batch_size, self.channels, self.augment = batch_size, channels, augment
        self.seed, self.domain, self.rank, self.world = seed, domain, rank, world
        self.steps_per_epoch = len(self.images) // (batch_size * world)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size: {batch_size} x {world} processes is more than the {len(self.images)} training "
                f"images of domain {domain}; choose a smaller batch_size"
            )
        self._epoch, self._order = None, None

    def _indices(self, step):
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = generator(self.seed, f"order {self.domain}", epoch).permutation(len(self.images))
            self._epoch, self._order = epoch, order[self.rank :: self.world]
        start = position * self.batch_size
        return self._order[start : start + self.batch_size]

    def batch(self, step):
        """The batch of training step `step` (0-based); the same step gives the same batch."""
        indices = self._indices(step)
        images = to_float(self.images[indices], self.channels)
        if self.augment is not None:
            rng = generator(self.seed, f"augment {self.domain}", step, self.rank)
            images = self.augment(images, rng)
        return images, None if self.labels is None else self.labels[indices]


class TestLoader:
    """Every sample of a test split, once, in order; each rank sees its own share.

    Iterating gives (images float32 (B, C, S, S) in [0, 1], labels int32 (B,)); the last batch may be short.
    """

    __test__ = False  # a loader, not a test case

    def __init__(self, split, batch_size=500, channels=3, size=28, rank=0, world=1):
        self.images = fit(split.images, channels, size)[rank::world]
        self.labels = split.labels[rank::world]
        self.batch_size, self.channels = batch_size, channels
        self.total = len(split.labels)

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield to_float(self.images[part], self.channels), self.labels[part]
