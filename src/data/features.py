"""Loaders of a frozen backbone's features, in place of loaders of images.

Each takes the place of a loader of loaders.py and gives the same images in the same order: features (B, D)
where that one gives images (B, C, S, S). Where the features come from, `src/training/feature_cache.py` says.
"""

import functools

import numpy as np

from model_utils.digests import digest
from model_utils.noise import generator
from src.data import decode
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
            return [digest(row.tobytes()) for part in arrays.originals for row in part]
        workers, files = self.loader.reader.workers, self.loader.files
        groups = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
        futures = [workers.submit(_digests, group) for group in groups]
        return [name for future in futures for name in future.result()]

    def plain(self, indices):
        """Yield (indices, images) in chunks, as evaluation sees them, without unreadable files."""
        if self.loader.files is None:
            for start in range(0, len(indices), CHUNK):
                part = indices[start : start + CHUNK]
                yield part, self.loader.preparation.normalise(self.loader.arrays.batch(np.array(part)))
        else:
            to_network = self.loader.preparation.to_network
            yield from _chunks(self.loader.viewed(indices), lambda images: to_network(np.stack(images)))

    def augmented(self, indices, view):
        """Yield (indices, images) in chunks, augmented as the loader does it; all of them must be readable.

        view: number of the view. What is drawn depends on it and on the image's content and on nothing else,
        so that every run can use the same views.
        """

        def rng(index):
            return generator(0, "augmented view", view, int(self.digests[index], 16))

        rows = [np.array([index]) for index in indices]
        if self.loader.files is None:
            made = ((row[0], self.loader.made(row, rng(row[0]))[0]) for row in rows)
            yield from _chunks(made, np.concatenate)
            return

        def make(number):
            if number >= len(rows):
                return 0, None, None  # `Ahead` looks beyond the end
            return self.loader.begin(rows[number].copy(), rng(rows[number][0]))

        ahead = Ahead(self.loader.reader.workers, make, depth=CHUNK)
        try:
            made = ((row[0], ahead.get(number)[0]) for number, row in enumerate(rows))
            yield from _chunks(made, np.concatenate)
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


def _chunks(pairs, join):
    """(index, image) one by one -> (indices, images) by `CHUNK`; join: list of images -> float32 array."""
    indices, images = [], []
    for index, image in pairs:
        indices.append(index)
        images.append(image)
        if len(images) == CHUNK:
            yield indices, join(images)
            indices, images = [], []
    if images:
        yield indices, join(images)


def _digests(files):
    found = []
    for file in files:
        try:
            found.append(digest(decode.content(file)))
        except decode.Unreadable:
            found.append(None)
    return found


class FeatureTrainLoader(TrainLoader):
    """Shuffled batches of features: `batch(step)` -> (float32 (B, D), labels int32 (B,) or None).

    Each image is seen in one of its views, drawn by seed and step: as evaluation sees it, or augmented; in
    place of a loader of strong views always augmented.

    Args:
        loader: the loader of images whose place it takes.

    `fill` has to come before the first batch.
    """

    def __init__(self, loader):
        super().__init__(loader.count, loader.labels, loader.plan)
        self.numbered, self.strong = loader.numbered, loader.strong
        self.loader, self.pictures = loader, Pictures(loader)
        self.views, self.places, self.stand_in = (), None, None

    def fill(self, views, places):
        """Take the features.

        Args:
            views: list of objects with `take(positions) -> float32 (N, D)`.
            places: int (images,), the position of each image in them; -1 for one that can't be read: the
                next good one takes its place.
        """
        self.views, self.places = views, places
        good = np.flatnonzero(places >= 0)
        self.stand_in = good[np.searchsorted(good, np.arange(len(places))) % len(good)]

    def batch(self, step):
        indices = self.stand_in[self._indices(step)]
        rng = generator(self.plan.seed, f"view {self.plan.stream or self.plan.name}", step, self.plan.rank)
        drawn, places = rng.integers(0, len(self.views), len(indices)), self.places[indices]
        features = self.views[0].take(places)
        for number, view in enumerate(self.views[1:], 1):
            own = drawn == number
            if own.any():
                features[own] = view.take(places[own])
        return features, None if self.labels is None else self.labels[indices]


class FeatureTestLoader(TestLoader):
    """Every image's features once, in order: (float32 (B, D), labels int32 (B,)) as evaluation sees them."""

    def __init__(self, loader):
        super().__init__(loader.count, loader.labels, loader.batch_size)
        self.indices, self.classes, self.files = loader.indices, loader.classes, loader.files
        self.loader, self.pictures = loader, Pictures(loader)
        self.plain, self.places = None, None

    @property
    def total(self):
        return self.loader.total

    def identities(self, indices):
        return self.loader.identities(indices)

    def stored(self, index):
        return self.loader.stored(index)

    def seen(self):
        return self.indices[self.places[self.indices] >= 0]

    def fill(self, views, places):
        """See FeatureTrainLoader; there is one view."""
        (self.plain,), self.places = views, places

    def _batches(self, indices):
        good = indices[self.places[indices] >= 0]
        for start in range(0, len(good), self.batch_size):
            part = good[start : start + self.batch_size]
            yield self.plain.take(self.places[part]), self.labels[part]
