"""Loaders of a frozen backbone's features, in place of loaders of images.

Each takes the place of a loader of loaders.py and gives the same images in the same order: features (B, D)
where that one gives images (B, C, S, S). Where the features come from, `src/training/feature_cache.py` says.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np

from model_utils.noise import generator
from src.data.loaders import TestLoader, TrainLoader
from src.data.reading import Ahead

CHUNK = 64  # images that go through the backbone at once


class Pictures:
    """The images behind a loader, each known by a digest of its content.

    Args:
        loader: a TrainLoader or TestLoader of files or of arrays.

    Attributes:
        digests: list of str, one for each image; None for a file that can't be opened.
    """

    def __init__(self, loader):
        self.loader = loader

    @functools.cached_property
    def digests(self):
        if self.loader.files is None:
            arrays = self.loader.arrays
            return [_digest(row.tobytes()) for part in arrays.originals for row in part]
        workers, files = self.loader.reader.workers, self.loader.files
        groups = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
        futures = [workers.submit(_digests, group) for group in groups]
        return [digest for future in futures for digest in future.result()]

    def plain(self, indices):
        """Yield (indices, images) in chunks, as evaluation sees them, without unreadable files."""
        if self.loader.files is None:
            for start in range(0, len(indices), CHUNK):
                part = indices[start : start + CHUNK]
                yield part, self.loader.preparation.normalise(self.loader.arrays.batch(part))
            return
        found, images = [], []
        for index, image in self.loader.viewed(indices):
            found.append(index)
            images.append(image)
            if len(images) == CHUNK:
                yield np.array(found), self.loader.preparation.to_network(np.stack(images))
                found, images = [], []
        if images:
            yield np.array(found), self.loader.preparation.to_network(np.stack(images))

    def augmented(self, indices, view):
        """Yield (indices, images) in chunks, augmented as the loader does it; all of them must be readable.

        view: number of the view. What is drawn depends on it, on the position in `indices`, and on nothing
        else, so that every run can use the same views.
        """
        parts = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]

        def rng(number):
            return generator(0, "augmented view", view, number)

        if self.loader.files is None:
            for number, part in enumerate(parts):
                yield part, self.loader.made(part, rng(number))[0]
            return

        def make(number):
            if number == len(parts):
                return 0, None, None  # `Ahead` looks beyond the end
            return self.loader.begin(parts[number].copy(), rng(number))

        ahead = Ahead(self.loader.reader.workers, make, depth=1)
        try:
            for number, part in enumerate(parts):
                yield part, ahead.get(number)[0]
        finally:
            ahead.close()

    def bad(self):
        """{index: reason} of the files that could not be read so far."""
        return {} if self.loader.files is None else self.loader.reader.bad

    def note_bad(self, index, reason):
        """Account for a file that is known to be unreadable, as if it had just been read.

        Raises:
            UserError: as `Reader.image` does.
        """
        self.loader.reader.note(index, reason)
        self.loader.reader.image(index)


def _digest(content):
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digests(files):
    found = []
    for file in files:
        try:
            found.append(_digest(Path(file).read_bytes()))
        except OSError:
            found.append(None)
    return found


class FeatureTrainLoader(TrainLoader):
    """Shuffled batches of features: `batch(step)` -> (float32 (B, D), labels int32 (B,) or None).

    Each image is seen in one of its views, drawn by seed and step: as evaluation sees it, or augmented.

    Args:
        loader: the loader of images whose place it takes.

    `fill` has to come before the first batch.
    """

    def __init__(self, loader):
        super().__init__(loader.count, loader.labels, loader.plan)
        self.loader, self.pictures = loader, Pictures(loader)
        self.blocks, self.rows, self.stand_in = (), None, None

    def fill(self, blocks, rows):
        """blocks: arrays (views, images, D); rows: the place of each of this loader's images in them, or -1
        for one that can't be read: the next good one takes its place.
        """
        self.blocks, self.rows = blocks, rows
        self.views = sum(len(block) for block in blocks)
        good = np.flatnonzero(rows >= 0)
        self.stand_in = good[np.searchsorted(good, np.arange(len(rows))) % len(good)]

    def batch(self, step):
        indices = self.stand_in[self._indices(step)]
        rng = generator(self.plan.seed, f"view {self.plan.stream or self.plan.name}", step, self.plan.rank)
        views, rows = rng.integers(0, self.views, len(indices)), self.rows[indices]
        features = np.empty((len(indices), self.blocks[0].shape[2]), np.float32)
        begin = 0
        for block in self.blocks:
            own = (views >= begin) & (views < begin + len(block))
            features[own] = block[views[own] - begin, rows[own]]
            begin += len(block)
        return features, None if self.labels is None else self.labels[indices]


class FeatureTestLoader(TestLoader):
    """Every image's features once, in order: (float32 (B, D), labels int32 (B,)) as evaluation sees them."""

    def __init__(self, loader):
        super().__init__(loader.count, loader.labels, loader.batch_size)
        self.indices, self.classes, self.files = loader.indices, loader.classes, loader.files
        self.loader, self.pictures = loader, Pictures(loader)
        self.block, self.rows = None, None

    @property
    def total(self):
        return self.loader.total

    def fill(self, blocks, rows):
        """See FeatureTrainLoader; there is one block, of one view."""
        self.block, self.rows = blocks[0][0], rows

    def _batches(self, indices):
        good = indices[self.rows[indices] >= 0]
        for start in range(0, len(good), self.batch_size):
            part = good[start : start + self.batch_size]
            yield np.ascontiguousarray(self.block[self.rows[part]]), self.labels[part]
