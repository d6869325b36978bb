"""Domains: data with class names, divided into what is trained on, held out and tested.

A domain hands out `Split`s (whole arrays of digits) or `Listing`s (files), with labels in the order of its
own `classes`. Nothing is read before it is asked for.
"""

import dataclasses
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
from src.data.split import DIGITS, Split

log = logging.getLogger("run")

TRANSDUCTIVE = "transductive"
TARGET_SPLITS = (TRANSDUCTIVE, "holdout")
TESTS = ("val", "test")
DIVIDED_ROLES = ("train", "test", "target_train", "target_test")


class Domain:
    """A domain in a run.

    Args:
        name: of the domain and of its random streams.
        classes: names of its classes; None without labels.
        parts: {role: function () -> Split, Listing or None}. Roles of a source are "train", "held_out" and
            "test"; of a target "target_train", "target_held_out" and "target_test", whose division never
            depends on labels. A role may be missing.
        root: the folder or list it is read from; None for digits in whole arrays.
        test_name: the name of its accuracy, where that is another.
    """

    def __init__(self, name, classes, parts, root=None, test_name=""):
        self.name, self.classes, self.root, self.test_name = name, classes, root, test_name or name
        self._parts = {role: functools.cache(read) for role, read in parts.items()}

    def part(self, role):
        """The Split or Listing of a role, read at the first call; None if there is none."""
        return self._parts[role]() if role in self._parts else None


@dataclasses.dataclass(frozen=True)
class Opening:
    """What is known of a domain of files before it is opened.

    Attributes:
        config: for `holdout`, `target_split`, `list_root` and `list_classes`.
        left_out: a `LeftOut`.
        key: the configuration key that names its place, for messages.
        name, test_name: see `Domain`.
        target: whether it is a target, whose class folders may be empty.
    """

    config: object
    left_out: object
    key: str
    name: str
    target: bool = False
    test_name: str = ""

    def domain(self, path, classes, parts):
        """The Domain in `path`."""
        return Domain(self.name, classes, parts, path, self.test_name)

    def transductive(self):
        """Whether a target without a split is trained on, and tested, as a whole."""
        return self.config.target_split == TRANSDUCTIVE

    def announced(self, listing, path):
        """Log one line about the listing, and return it."""
        classes = f"{len(listing.classes)} classes" if listing.classes else "no labels"
        what = "list" if os.path.isfile(path) else "image folder"
        log.info("%s: %s %s, %s, %d images", self.name, what, shown(path), classes, len(listing.files))
        return listing


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


def array_domain(name, load, divided, target_test=None):
    """A Domain of digits in whole arrays.

    Args:
        load: function of "train" or "test" -> Split.
        divided: function Split -> (training part, held-out part or None); of a target all labels are 0.
        target_test: function () -> Split of what a target is tested on, where that is not the test split.
    """

    @functools.cache
    def parts(blind):
        whole = load("train")
        return divided(Split(whole.images, np.zeros_like(whole.labels)) if blind else whole)

    def test():
        return load("test")

    roles = {
        "train": lambda: parts(False)[0],
        "held_out": lambda: parts(False)[1],
        "test": test,
        "target_train": lambda: parts(True)[0],
        "target_held_out": lambda: parts(True)[1],
        "target_test": target_test or test,
    }
    return Domain(name, DIGITS, roles)


# Files


def _undivided(path, classes, listing, opening):
    """A Domain of files without a split.

    As a source, the share `holdout` of each class is held out and tested on. Which files these are follows
    from a hash of their names, so they are the same for every seed and on every disk. A target is trained on
    without labels and tested as a whole (`target_split: transductive`), or divided in the same way without a
    look at its classes (`target_split: holdout`).
    """

    @functools.cache
    def whole():
        return opening.announced(listing(), path)

    @functools.cache
    def mask(blind):
        domain, names = os.path.basename(os.path.abspath(path)), whole().names()
        digests = [hashlib.sha256(os.fsencode(f"{domain}/{name}")).digest() for name in names]
        order = np.array(sorted(range(len(names)), key=digests.__getitem__), np.int64)
        return held_out_mask(whole().labels * (not blind), opening.config.holdout, order)

    def held():
        return whole().take(mask(False))

    roles = {"train": lambda: whole().take(~mask(False)), "held_out": held, "test": held}
    if opening.transductive():
        roles |= {"target_train": whole, "target_test": whole}
    else:
        roles |= {
            "target_train": lambda: whole().take(~mask(True)),
            "target_test": lambda: whole().take(mask(True)),
        }
    return opening.domain(path, classes, roles)


def _divided(path, parts, opening):
    """A Domain in a folder with train/ and val/ or test/: nothing is held out. parts: see `find_parts`."""
    names = {part: class_names(folder) for part, folder in parts.items()}
    every = sorted(set().union(*(classes or () for classes in names.values())))
    different = [name for name in every if not all(name in (classes or ()) for classes in names.values())]
    if different and not opening.target:
        raise UserError(
            f"{shown(path)}: train/ and {parts['test'].name}/ must have the same class folders; only in one "
            f"of them: {shortened([shown(name) for name in different], 3)}"
        )

    @functools.cache
    def read(part):
        if part not in parts:
            wanted, found = "train/" if part == "train" else "val/ or test/", subfolders(path)
            raise UserError(
                f"{opening.key}: {shown(path)} has no folder {wanted} (there are: {shortened(found, 5)}); "
                "give the one that holds train/<class>/* and val/<class>/*"
            )
        own = (
            dataclasses.replace(opening, name=opening.test_name or opening.name)
            if part == "test"
            else opening
        )
        return own.announced(_lister(parts[part], names[part], opening)(), parts[part])

    roles = {role: functools.partial(read, role.removeprefix("target_")) for role in DIVIDED_ROLES}
    return opening.domain(path, tuple(every) or None, roles)


def kfold_domain(path, lists, opening):
    """A Domain of a set with official lists, which say what is trained on, held out and tested.

    A target is trained on without labels, and tested, on the images of the list "test", in PACS all of them;
    with `target_split: holdout` on those of "train" and "crossval".
    """
    classes = class_names(path)
    whole = functools.cache(_lister(path, classes, opening))
    parts = {"train": "train", "held_out": "crossval", "test": "crossval"}
    if opening.transductive():
        parts |= {"target_train": "test", "target_test": "test"}
    else:
        parts |= {"target_train": "train", "target_test": "crossval"}

    def read(part):
        return lists.read(os.path.basename(path), part, whole())

    return opening.domain(
        path, classes, {role: functools.partial(read, part) for role, part in parts.items()}
    )


def open_files(path, opening):
    """The Domain in a list file or image folder; docs/data.md has the forms.

    Raises:
        UserError: nothing there that could be a domain.
    """
    if os.path.isfile(path):
        listing = read_list(path, opening.key, opening.config.list_root, opening.config.list_classes)
        return _undivided(path, listing.classes, lambda: listing, opening)
    if not path or not os.path.isdir(path):
        raise UserError(
            f"{opening.key}: {shown(path)!r} is no folder; give one with a subfolder for each class, one "
            "that holds train/<class>/* and val/<class>/*, or a list of `path label`"
        )
    parts = find_parts(path)
    if parts:
        return _divided(path, parts, opening)
    classes = class_names(path)
    return _undivided(path, classes, _lister(path, classes, opening), opening)


def _lister(folder, classes, opening):
    """A function () -> Listing of a folder."""
    if classes is None:
        return lambda: scan_flat(folder, opening.left_out)
    return lambda: scan(folder, opening.left_out, empty_allowed=opening.target)


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
