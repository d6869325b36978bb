"""Batches for training and testing, of whole arrays and of files."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from model_utils.noise import generator
from src.data import decode
from src.data.preparation import resize
from src.data.reading import Ahead
from src.data.transforms import CROP_TRIES, crop_box, fit, jitter, to_float

FITTED_BYTES = 2**28  # arrays that would grow larger than this are resized batch by batch


@dataclasses.dataclass(frozen=True)
class Plan:
    """How training batches are drawn.

    Attributes:
        name: names the random streams: "source", "target", a domain, "train".
        batch_size: images per step and rank.
        seed: chooses order and augmentation together with name, epoch, step and rank.
        rank, world: this process and how many there are.
        augment: None, or a function (images float32 (N, C, H, W) in [0, 1], rng) -> the same.
        key: the configuration key of batch_size, for messages.
        stream: names the random stream of augmentations, where it is another than `name`.
    """

    name: str
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    augment: object = None
    key: str = "batch_size"
    stream: str = ""


class Arrays:
    """Whole arrays of digits, one or several data sets, as a network gets them.

    Args:
        splits: list of `Split`; indices count through all of them.
        preparation: a `Preparation`; digits are resized whole, neither cropped nor mirrored.
        resize: how they are resized; see `fit`.
    """

    def __init__(self, splits, preparation, resize="area"):
        self.preparation, self.resize = preparation, resize
        self.originals = [split.images for split in splits]
        self.ends = np.cumsum([len(part) for part in self.originals])
        self.parts = [self._fit(part) if self._fits(len(part)) else part for part in self.originals]

    def __len__(self):
        return int(self.ends[-1])

    def original(self, index):
        """One image as it is stored: uint8 (H, W) or (H, W, 3)."""
        part = int(np.searchsorted(self.ends, index, "right"))
        return self.originals[part][index - (self.ends[part - 1] if part else 0)]

    def _fits(self, count):
        side = self.preparation.size
        return count * side * side * self.preparation.channels <= FITTED_BYTES

    def _fit(self, images):
        return fit(images, self.preparation.channels, self.preparation.size, self.resize)

    def batch(self, indices):
        """float32 (N, C, S, S) in [0, 1]."""
        channels, which = self.preparation.channels, np.searchsorted(self.ends, indices, "right")
        if len(self.parts) == 1:
            return to_float(self._fit(self.parts[0][indices]), channels)
        side = self.preparation.size
        images = np.empty((len(indices), channels, side, side), np.float32)
        for number, part in enumerate(self.parts):
            rows = which == number
            if rows.any():
                begin = self.ends[number - 1] if number else 0
                images[rows] = to_float(self._fit(part[indices[rows] - begin]), channels)
        return images


class TrainLoader:
    """Shuffled batches: `batch(step)` -> (images float32 (B, C, S, S), labels int32 (B,) or None).

    The same step gives the same batch. Each epoch is a new permutation of all images, shared out over the
    ranks without overlap; what does not fill a batch is left out.

    Attributes:
        files: paths of all images by index; None if they are not files.
        numbered: whether the place of an image stands where its label would.
        strong: whether images are always augmented strongly.

    Raises:
        UserError: fewer images than one step of all ranks needs.
    """

    files, numbered, strong, color_jitter = None, False, False, 0.0

    def __init__(self, count, labels, plan):
        self.count, self.labels, self.plan, self.batch_size = count, labels, plan, plan.batch_size
        self.steps_per_epoch = count // (plan.batch_size * plan.world)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{plan.key}: {plan.batch_size} x {plan.world} processes is more than the {count} training "
                f"images of domain {plan.name}; choose a smaller {plan.key}"
            )
        self._epoch, self._order = None, None

    def batch(self, step):
        """The batch of training step `step`, from 0."""
        raise NotImplementedError

    def close(self):
        """Drop the batches that were begun ahead of time."""

    def _indices(self, step):
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = generator(self.plan.seed, f"order {self.plan.name}", epoch).permutation(self.count)
            self._epoch, self._order = epoch, order[self.plan.rank :: self.plan.world]
        start = position * self.batch_size
        return self._order[start : start + self.batch_size]

    def _rng(self, step):
        stream = f"augment {self.plan.stream or self.plan.name}"
        return generator(self.plan.seed, stream, step, self.plan.rank)


class ArrayTrainLoader(TrainLoader):
    """Training batches of `Arrays`: brought to [0, 1], augmented, normalised."""

    def __init__(self, arrays, labels, plan):
        super().__init__(len(arrays), labels, plan)
        self.arrays, self.preparation = arrays, arrays.preparation

    def batch(self, step):
        return self.made(self._indices(step), self._rng(step))

    def made(self, indices, rng):
        """(images, labels) at `indices`, augmented with the random numbers of `rng`."""
        images = self.arrays.batch(indices)
        if self.plan.augment is not None:
            images = self.plan.augment(images, rng)
        return self.preparation.normalise(images), None if self.labels is None else self.labels[indices]


class FileTrainLoader(TrainLoader):
    """Training batches of files, made ahead of time; in place of a bad file comes the next good one.

    Random numbers are drawn in this order, each only where it is in use: crops (`crop_scale_min` below 1),
    mirroring, colours; then those of `plan.augment`.

    Args:
        reader: a `Reader`, used by nothing else.
        labels: int32 (N,), or None.
        plan: a `Plan`.
        preparation: a `Preparation`; its crop_scale_min and flip say how images vary.
        color_jitter: j; brightness, contrast and saturation are multiplied by factors in [1 - j, 1 + j].
    """

    def __init__(self, reader, labels, plan, preparation, color_jitter=0.0):
        super().__init__(len(reader.files), labels, plan)
        self.reader, self.preparation, self.color_jitter = reader, preparation, color_jitter
        self.files = reader.files
        self.crops = preparation.crop_scale_min < 1
        reader.prepare = None if self.crops else preparation.view
        self._ahead = Ahead(reader.workers, self._make)

    def batch(self, step):
        return self._ahead.get(step)

    def close(self):
        self._ahead.close()

    def viewed(self, indices):
        """Yield (index, image uint8 (S, S, 3)) of the good files among these, as evaluation sees them."""
        for index, image in self.reader.stream(indices):
            yield index, self.preparation.view(image) if self.crops else image

    def _make(self, step):
        return self.begin(self._indices(step).copy(), self._rng(step))

    def begin(self, indices, rng):
        """What `Ahead` wants of a batch: of the files at `indices`, augmented with the random numbers of
        `rng`.
        """
        count = len(indices)
        draws = rng.random((count, CROP_TRIES, 4)) if self.crops else None
        flips = rng.random(count) < 0.5 if self.preparation.flip else np.zeros(count, bool)
        factors = 1 + self.color_jitter * (2 * rng.random((count, 3)) - 1) if self.color_jitter else None
        side = self.preparation.size
        batch = np.empty((count, side, side, 3), np.uint8)

        def fill(row):
            indices[row], image = self.reader.next_good(indices[row])
            if self.crops:
                image = self._crop(image, draws[row])
            batch[row] = image[:, ::-1] if flips[row] else image

        def finish():
            varied = batch if factors is None else jitter(batch, factors)
            return self._to_network(varied, rng), None if self.labels is None else self.labels[indices]

        return count, fill, finish

    def _crop(self, image, draws):
        top, left, height, width = crop_box(*image.shape[:2], (self.preparation.crop_scale_min, 1.0), draws)
        return resize(image[top : top + height, left : left + width], *[self.preparation.size] * 2)

    def _to_network(self, images, rng):
        if self.plan.augment is None:
            return self.preparation.to_network(images)
        channels = self.preparation.channels
        images = to_float(fit(images, channels, self.preparation.size), channels)
        return self.preparation.normalise(self.plan.augment(images, rng))


class TestLoader:
    """Every image once, in order; each rank sees its own share.

    Iterating gives (images float32 (B, C, S, S), labels int32 (B,)); the last batch may be short. `total`
    counts the images of all ranks, without the files that this rank has found to be unreadable so far.

    Attributes:
        files: paths of all images by index; None if they are not files.
        indices: which of them this rank sees, in order.
    """

    __test__ = False  # a loader, not a test case
    files = None

    def __init__(self, count, labels, batch_size, rank=0, world=1):
        self.count, self.labels, self.batch_size = count, labels, batch_size
        self.indices, self.classes = np.arange(count)[rank::world], ()

    @property
    def total(self):
        return self.count

    def __iter__(self):
        yield from self._batches(self.indices)

    def seen(self):
        """The indices of the images that iterating gives, int (N,), once it has been iterated over."""
        return self.indices

    def sample(self, count, seed):
        """(images, labels) of up to `count` images, spread evenly over this rank's share; drawn by seed."""
        indices = self.indices
        if count < len(indices):
            step = len(indices) / count
            start = generator(seed, "sample").random()
            indices = indices[((np.arange(count) + start) * step).astype(int)]
        images, labels = zip(*self._batches(indices), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def identities(self, indices):
        """[bytes] that name the images at `indices`: the end of a path, or the pixels of a digit."""
        return [os.fsencode(os.path.join(*Path(self.files[index]).parts[-2:])) for index in indices]

    def stored(self, index):
        """One image as it is stored: uint8 (H, W) or (H, W, 3). decode.Unreadable: it can't be read."""
        return decode.read(self.files[index])

    def _batches(self, indices):
        raise NotImplementedError


class ArrayTestLoader(TestLoader):
    """Test batches of `Arrays`."""

    def __init__(self, arrays, labels, batch_size, rank=0, world=1):
        super().__init__(len(arrays), labels, batch_size, rank, world)
        self.arrays, self.preparation = arrays, arrays.preparation

    def identities(self, indices):
        return [self.arrays.original(index).tobytes() for index in indices]

    def stored(self, index):
        return self.arrays.original(index)

    def _batches(self, indices):
        for start in range(0, len(indices), self.batch_size):
            part = indices[start : start + self.batch_size]
            yield self.preparation.normalise(self.arrays.batch(part)), self.labels[part]


class FileTestLoader(TestLoader):
    """Test batches of files: resized, cut from the middle; a file that can't be read is named and left out.

    Raises, while iterating:
        UserError: of some class no image can be read.
    """

    def __init__(self, reader, labels, batch_size, preparation, rank=0, world=1):
        super().__init__(len(reader.files), labels, batch_size, rank, world)
        self.reader, self.preparation, self.files = reader, preparation, reader.files
        reader.prepare = preparation.view

    @property
    def total(self):
        return self.count - len(self.reader.bad)

    def seen(self):
        return np.array([index for index in self.indices if index not in self.reader.bad], int)

    def viewed(self, indices):
        """Yield (index, image uint8 (S, S, 3)) of the good files among these."""
        yield from self.reader.stream(indices)

    def _batches(self, indices):
        images, labels = [], []
        for index, image in self.viewed(indices):
            images.append(image)
            labels.append(self.labels[index])
            if len(images) == self.batch_size:
                yield self._batch(images, labels)
                images, labels = [], []
        if images:
            yield self._batch(images, labels)
        self._probe(indices)

    def _batch(self, images, labels):
        return self.preparation.to_network(np.stack(images)), np.array(labels, np.int32)

    def _probe(self, indices):
        """Of a class that this rank could read nothing of, other ranks may have images: look for one."""
        bad = np.array([index in self.reader.bad for index in indices], bool)
        for label in set(self.labels[indices[bad]]) - set(self.labels[indices[~bad]]):
            for index in np.flatnonzero(self.labels == label):
                if self.reader.image(int(index)) is not None:  # raises, if that was the last one
                    break
