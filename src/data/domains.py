"""Domains: data with class names, divided into what is trained on, held out and tested.

A domain hands out `Split`s (whole arrays of digits) or `Listing`s (files), with labels in the order of its
own `classes`. Nothing is read before it is asked for.
"""

import functools
import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.noise import generator
from src.data.files import entries, is_image, is_junk, kind, scan, scan_flat, shown, subfolders
from src.data.lists import read_list
from src.data.split import Split

log = logging.getLogger("run")

TRANSDUCTIVE = "transductive"
TARGET_SPLITS = (TRANSDUCTIVE, "holdout")
TESTS = ("val", "test")


class Domain:
    """A domain in a run. `name` is that of its random streams, `test_name` that of its accuracy.

    classes: names of the classes; None where there are no labels.
    As a source: `train`, `held_out`, `test`; as a target: `target_train`, `target_held_out`, `target_test`.
    Each returns a Split, a Listing or None. What a target is divided into never depends on its labels.
    """

    name, test_name, classes = "", "", None

    def rename(self, name, test_name=None):
        """Give the domain the names it has in a run; returns it."""
        self.name, self.test_name = name, test_name or name
        return self


# Dividing


def stratified(labels, count, order):
    """The positions (sorted) of `count` of the samples, from each class in proportion.

    labels: (N,) integers. order: permutation of range(N); within a class, those earlier in it are taken.
    """
    labels = np.asarray(labels)[order]
    share = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.asarray(order)[np.argsort(share, kind="stable")[:count]])


def held_out_mask(labels, share, order):
    """bool (N,): True for the `share` of the samples that is held out, class by class."""
    mask = np.zeros(len(labels), bool)
    mask[stratified(labels, round(share * len(labels)), order)] = True
    return mask


def divide(split, share):
    """(training part, held-out part) of a Split.

    The choice depends on neither the seed nor the domain: two domains made of the same images in the same
    order, as MNIST and MNIST-M are, hold out the same ones.
    """
    order = generator(0, "held out").permutation(len(split.labels))
    held = held_out_mask(split.labels, share, order)
    return split.take(~held), split.take(held)


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
    return split.take(np.sort(order[size:])), split.take(np.sort(order[:size]))


def thin_out(part, count, seed, name):
    """`count` samples of a training part, from each class in proportion, drawn by seed; 0: all."""
    if count == 0:
        return part
    if count > len(part.labels):
        raise UserError(
            f"train_size_per_domain: {count} is more than the {len(part.labels)} training images of domain "
            f"{name}; 0 takes all"
        )
    order = generator(seed, f"subset {name}").permutation(len(part.labels))
    return part.take(stratified(part.labels, count, order))


# Whole arrays


class ArrayDomain(Domain):
    """Digits in whole arrays.

    Args:
        classes: names of the classes.
        load: function of "train" or "test" -> Split.
        divide: function Split -> (training part, held-out part or None); must not look at labels of a target,
            which are all 0 there.
        target_test: function () -> Split of what a target is tested on, where that is not the test split.
    """

    def __init__(self, classes, load, divide, target_test=None):
        self.classes, self._load, self._divide = classes, load, divide
        self.target_test = target_test or self.test

    @functools.cached_property
    def _parts(self):
        return self._divide(self._load("train"))

    @functools.cached_property
    def _target_parts(self):
        whole = self._load("train")
        return self._divide(Split(whole.images, np.zeros_like(whole.labels)))

    def train(self):
        return self._parts[0]

    def held_out(self):
        return self._parts[1]

    def test(self):
        return self._load("test")

    def target_train(self):
        return self._target_parts[0]

    def target_held_out(self):
        return self._target_parts[1]


# Files


class FileDomain(Domain):
    """Image files without a split.

    As a source, the share `holdout` of each class is held out and tested on. Which files these are follows
    from a hash of their names, so they are the same for every seed and on every disk. A target is trained on
    without labels and tested as a whole (`target_split: transductive`), or divided in the same way without a
    look at its classes (`target_split: holdout`).

    Args:
        root: the folder or list.
        listing: function () -> Listing.
        classes: names of the classes, or None.
        config: for `holdout` and `target_split`.
    """

    def __init__(self, root, listing, classes, config):
        self.root, self.classes, self.config = Path(root), classes, config
        self.listing, self._masks = listing, {}

    @functools.cached_property
    def _whole(self):
        return self._announced(self.listing(), self.root)

    def _announced(self, listing, root):
        classes = f"{len(listing.classes)} classes" if listing.classes else "no labels"
        kind = "list" if os.path.isfile(root) else "image folder"
        log.info("%s: %s %s, %s, %d images", self.name, kind, shown(root), classes, len(listing.files))
        return listing

    def _choose(self, held, blind):
        if blind not in self._masks:
            domain, names = os.path.basename(os.path.abspath(self.root)), self._whole.names()
            digests = [hashlib.sha256(os.fsencode(f"{domain}/{name}")).digest() for name in names]
            order = np.array(sorted(range(len(names)), key=digests.__getitem__), np.int64)
            labels = self._whole.labels * (not blind)
            self._masks[blind] = held_out_mask(labels, self.config.holdout, order)
        return self._whole.take(self._masks[blind] == held)

    def train(self):
        return self._choose(False, False)

    def held_out(self):
        return self._choose(True, False)

    def test(self):
        return self._choose(True, False)

    def target_train(self):
        return self._whole if self.config.target_split == TRANSDUCTIVE else self._choose(False, True)

    def target_held_out(self):
        return None

    def target_test(self):
        return self._whole if self.config.target_split == TRANSDUCTIVE else self._choose(True, True)


class SplitDomain(FileDomain):
    """A folder with train/ and val/ or test/: trained on the one, tested on the other, nothing held out."""

    def __init__(self, root, parts, classes, config):
        """parts: {"train" and "test": (folder, function () -> Listing)}; one of them may be missing."""
        super().__init__(root, None, classes, config)
        self.parts, self._listed = parts, {}

    def _part(self, name):
        if name not in self.parts:
            wanted = "train/" if name == "train" else "val/ or test/"
            found = subfolders(self.root)
            raise UserError(
                f"{shown(self.root)} has no folder {wanted} (there are: {shortened(found, 5) or 'none'}); "
                "give the one that holds train/<class>/* and val/<class>/*"
            )
        if name not in self._listed:
            folder, listing = self.parts[name]
            self._listed[name] = self._announced(listing(), folder)
        return self._listed[name]

    def train(self):
        return self._part("train")

    def held_out(self):
        return None

    def test(self):
        return self._part("test")

    target_train, target_test = train, test


class KfoldDomain(FileDomain):
    """A folder of a set with official lists, which say what is trained on, held out and tested.

    A target is trained on without labels, and tested, on the images of the list "test", in PACS all of them;
    with `target_split: holdout` on those of "train" and "crossval".
    """

    def __init__(self, root, listing, classes, config, lists):
        super().__init__(root, listing, classes, config)
        self.lists = lists

    def _read(self, part):
        return self.lists.read(self.root.name, part, self._whole)

    def train(self):
        return self._read("train")

    def held_out(self):
        return self._read("crossval")

    test = held_out

    def target_train(self):
        return self._read("test" if self.config.target_split == TRANSDUCTIVE else "train")

    def target_test(self):
        return self._read("test" if self.config.target_split == TRANSDUCTIVE else "crossval")


def open_files(path, key, config, left_out, target=False):
    """The domain in a list file or image folder; see docs/data.md for the forms.

    Args:
        path: the file or folder. key: the configuration key that named it, for messages.
        target: whether it is a target domain, whose class folders may be empty.

    Raises:
        UserError: nothing there that could be a domain.
    """
    if os.path.isfile(path):
        listing = read_list(path, key, config.list_root, config.list_classes)
        return FileDomain(path, lambda: listing, listing.classes, config)
    if not path or not os.path.isdir(path):
        raise UserError(
            f"{key}: {shown(path)!r} is no folder; give one with a subfolder for each class, one that holds "
            "train/<class>/* and val/<class>/*, or a list of `path label`"
        )
    parts = find_parts(path)
    if not parts:
        classes = class_names(path)
        return FileDomain(path, _lister(path, classes, left_out, target), classes, config)
    names = {part: class_names(folder) for part, folder in parts.items()}
    different = (
        sorted(set(names.get("train") or ()) ^ set(names.get("test") or ())) if len(parts) == 2 else []
    )
    if different and not target:
        raise UserError(
            f"{shown(path)}: train/ and {parts['test'].name}/ must have the same class folders; only in one "
            f"of them: {shortened([shown(name) for name in different], 3)}"
        )
    listings = {
        part: (folder, _lister(folder, names[part], left_out, target)) for part, folder in parts.items()
    }
    every = sorted(set().union(*(classes or () for classes in names.values())))
    return SplitDomain(path, listings, tuple(every) or None, config)


def _lister(folder, classes, left_out, target):
    if classes is None:
        return lambda: scan_flat(folder, left_out)
    return lambda: scan(folder, left_out, empty_allowed=target)


def class_names(folder):
    """Names of the class folders in a folder, sorted; None if there are none."""
    return tuple(subfolders(folder)) or None


def find_parts(root):
    """{"train": folder, "test": folder}, as far as they are there; {} if the folder has no split.

    A folder called train/ beside other classes is a class, such as that of railway trains.
    """
    root, names = Path(root), subfolders(root)
    found = {"train": root / "train"} if "train" in names else {}
    tests = [name for name in TESTS if name in names]
    found |= {"test": root / tests[0]} if tests else {}
    alone = not set(names) - {"train", *TESTS}
    if len(found) == 2 or found and (alone or any(subfolders(folder) for folder in found.values())):
        return found
    return {}


def looks_like_images(path):
    """Whether a path is a file or a folder that holds images, directly or in its class folders."""
    if not os.path.isdir(path):
        return os.path.isfile(path)
    return any(
        not is_junk(entry.name)
        and (is_image(entry.name) if kind(entry) == "file" else _holds_images(entry.path))
        for entry in entries(path)
    )


def _holds_images(folder):
    """Whether there is an image in a folder or in one of its folders."""
    if not os.path.isdir(folder):
        return False
    inside = entries(folder)
    return any(is_image(entry.name) for entry in inside) or any(
        os.path.isdir(entry.path) and any(is_image(deeper.name) for deeper in entries(entry.path))
        for entry in inside[:3]
    )
