"""Domains in folders, `<domain>/<class>/*` with .jpg, .jpeg or .png: PACS, and any set of that form.

Images are decoded once and kept in memory as uint8: size x size x 3 bytes each, which is 155 kB at 227 (all
of PACS: 1.5 GB) and 12 kB at 64 (all of PACS: 0.12 GB).
"""

import functools
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from model_utils import memory
from model_utils.errors import UserError, shortened
from src.data.domain_set import DomainSet, held_out_mask
from src.data.photos import SUFFIXES, decode, read_file
from src.data.split import Split

log = logging.getLogger("run")

PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
LISTS = ("train", "crossval", "test")
MAX_LIST_BYTES = 64 * 2**20  # the longest official list has 0.2 MB


@functools.cache  # a run opens its folders for training, held-out and test images
def _warn_once(text):
    log.warning("warning: %s", text)


def _subfolders(folder):
    """Names of the visible folders in a folder, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


class Folders(DomainSet):
    """The domains are the folders in `domains_image_root`, the classes the folders in those, both sorted.

    Without `kfold_root`, the share `holdout` of each class of a domain is held out, chosen by a hash of the
    file names: whatever the seed and the order on the disk, the same files are. A source domain is tested on
    those, a target on all of its images. With `kfold_root` the official lists say which images train (train),
    are held out (crossval), and are a target's test images (test: in PACS all of the domain).

    Raises UserError (also from the methods) for what the layout or a list leaves unclear: no such folder, a
    class that one domain has and another has not (unless `num_classes` says how many there are in all), a
    list that names a missing file or contradicts the folders.
    """

    image_size = 227

    def __init__(self, config):
        self.config, self.root = config, Path(config.domains_image_root)
        if not config.domains_image_root or not self.root.is_dir():
            raise UserError(
                f"domains_image_root: {str(config.domains_image_root)!r} is no folder; it should hold "
                "<domain>/<class>/* images"
            )
        folders = {domain: _subfolders(self.root / domain) for domain in _subfolders(self.root)}
        self.names = tuple(domain for domain, classes in folders.items() if classes)
        if len(self.names) < len(folders):
            others = [name for name in folders if name not in self.names]
            _warn_once(f"{self.root}: no class folders in {shortened(others, 3)}, left out")
        if not self.names:
            raise UserError(f"domains_image_root: {self.root} holds no <domain>/<class> folders of images")
        self.allow_missing_classes = self._may_miss_classes()
        self._files = {}
        self.classes = self._agreed_classes({name: folders[name] for name in self.names})
        self._lists = KfoldLists(config, self) if config.kfold_root else None

    def _may_miss_classes(self):
        return self.config.num_classes > 0

    def _agreed_classes(self, folders):
        """The classes, from {domain: names of its class folders}."""
        union = sorted(set().union(*folders.values()))
        for name in union if not self.allow_missing_classes else ():
            has = [domain for domain, classes in folders.items() if name in classes]
            has_not = [domain for domain, classes in folders.items() if name not in classes]
            if has_not:
                raise UserError(
                    f"domains_image_root: class {name} is in domain {shortened(has, 3)} but not in "
                    f"{shortened(has_not, 3)} ({self.root}); add it, or take it away everywhere, or set "
                    "num_classes to the number of all classes to go on without"
                )
        return tuple(union)

    def files(self, domain):
        """(paths as "<class>/<file>", sorted, and their labels int32) of all images of a domain."""
        if domain not in self._files:
            paths, labels, other = [], [], []
            for label, name in enumerate(self.classes):
                folder = self.root / domain / name
                found = sorted(os.listdir(folder)) if folder.is_dir() else []
                images = [file for file in found if file.lower().endswith(SUFFIXES) and file[0] != "."]
                other += [f"{name}/{file}" for file in sorted(set(found) - set(images))]
                paths += [f"{name}/{file}" for file in images]
                labels += [label] * len(images)
                if not images and not self.allow_missing_classes:
                    raise UserError(
                        f"domain {domain} has no image of class {name} ({folder} holds no "
                        f"{', '.join(SUFFIXES)} file); add some, or take the class away from every domain"
                    )
            if other:
                _warn_once(
                    f"{self.root / domain}: {len(other)} files are no {'/'.join(SUFFIXES)} and left out: "
                    f"{shortened(other, 3)}"
                )
            self._files[domain] = paths, np.array(labels, np.int32)
        return self._files[domain]

    def _choose(self, domain, held):
        """(paths, labels) of a domain's images: the held-out ones, or the rest."""
        paths, labels = self.files(domain)
        digests = [hashlib.sha256(f"{domain}/{path}".encode()).digest() for path in paths]
        order = np.array(sorted(range(len(paths)), key=digests.__getitem__), np.int64)
        mask = held_out_mask(labels, self.config.holdout, order) == held
        return [path for path, chosen in zip(paths, mask, strict=True) if chosen], labels[mask]

    def _read(self, domain, paths, labels):
        size = self.config.image_size or self.image_size
        return Split(read_images([self.root / domain / path for path in paths], size), labels)

    def train(self, domain):
        chosen = self._lists.read(domain, "train") if self._lists else self._choose(domain, held=False)
        return self._read(domain, *chosen)

    def held_out(self, domain):
        chosen = self._lists.read(domain, "crossval") if self._lists else self._choose(domain, held=True)
        return self._read(domain, *chosen)

    def test(self, domain):
        return self.held_out(domain)

    def target_test(self, domain):
        chosen = self._lists.read(domain, "test") if self._lists else self.files(domain)
        return self._read(domain, *chosen)


class Pacs(Folders):
    """PACS (Li et al. 2017, arXiv 1710.03077): art_painting, cartoon, photo and sketch, seven classes each.

    The folder may hold other domains, as long as the classes are these seven.
    """

    classes = PACS_CLASSES

    def _may_miss_classes(self):
        return False

    def _agreed_classes(self, folders):
        for domain, classes in folders.items():
            missing, foreign = set(PACS_CLASSES) - set(classes), set(classes) - set(PACS_CLASSES)
            if missing or foreign:
                kind, name = ("no", min(missing)) if missing else ("an unknown", min(foreign))
                raise UserError(
                    f"domains_image_root: {self.root / domain} has {kind} class folder {name}; PACS has "
                    f"{', '.join(PACS_CLASSES)} in every domain (domain_set folders takes other classes)"
                )
        return PACS_CLASSES


class KfoldLists:
    """The official split lists: `<domain>_<train|crossval|test>_kfold.txt` with `<domain>/<class>/<file> L`.

    L is the class's place in alphabetical order, counted from 1. It is checked against the folder that the
    path names, because a label off by one would train on wrong classes without a sign.
    """

    def __init__(self, config, folders):
        self.folders = folders
        self.root = folders.root / config.kfold_root  # an absolute kfold_root stands for itself
        if not self.root.is_dir():
            raise UserError(
                f"kfold_root: {self.root} is no folder; it should hold <domain>_train_kfold.txt …"
            )

    def read(self, domain, part):
        """(paths "<class>/<file>", labels int32 from 0) of a list; UserError naming file and line."""
        paths, labels = self._parse(domain, part)
        if part != "test":
            other = "crossval" if part == "train" else "train"
            both = sorted(set(paths).intersection(self._parse(domain, other)[0]))
            if both:
                raise UserError(
                    f"{self._path(domain, part)}: {domain}/{both[0]} is in {self._path(domain, other).name}"
                    f" too ({len(both)} such images); held-out images must not be trained on"
                )
        return paths, np.array(labels, np.int32)

    def _path(self, domain, part):
        return self.root / f"{domain}_{part}_kfold.txt"

    def _parse(self, domain, part):
        path = self._path(domain, part)
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_LIST_BYTES + 1)
            lines = text.decode("utf-8").splitlines()
        except OSError as error:
            raise UserError(f"kfold_root: {path}: {error.strerror}; put the official list there") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: no text ({error.reason}); replace it by the official list") from error
        if len(text) > MAX_LIST_BYTES:
            raise UserError(f"{path}: over {MAX_LIST_BYTES >> 20} MB, which is no split list; replace it")
        known = set(self.folders.files(domain)[0])
        chosen = {}
        for number, line in enumerate(lines, 1):
            if line.strip():
                name, label = self._entry(line, domain, known, f"{path}, line {number}")
                if name in chosen:
                    raise UserError(f"{path}, line {number}: {domain}/{name} is listed twice; remove one")
                chosen[name] = label
        if not chosen:
            raise UserError(f"{path}: lists no image; replace it by the official list")
        return list(chosen), list(chosen.values())

    def _entry(self, line, domain, known, where):
        """("<class>/<file>", label from 0) of one line."""
        name, _, label = line.strip().rpartition(" ")
        parts = name.strip().split("/")
        classes = self.folders.classes
        if len(parts) != 3 or parts[0] != domain or parts[1] not in classes or not label.isdecimal():
            raise UserError(
                f"{where}: {line.strip()[:80]!r} is not `{domain}/<class>/<file> label` with a class that "
                "has a folder; replace the list by the official one"
            )
        wanted = classes.index(parts[1]) + 1
        if int(label) != wanted:
            hint = (
                "; labels are counted from 1, these seem to count from 0" if int(label) == wanted - 1 else ""
            )
            raise UserError(
                f"{where}: label {label} of {name}, but class {parts[1]} is number {wanted} of "
                f"{len(classes)} in alphabetical order{hint}"
            )
        own = f"{parts[1]}/{parts[2]}"
        if own not in known:
            raise UserError(
                f"{where}: {name} is not in {self.folders.root}; complete the images, or use other lists"
            )
        return own, wanted - 1


def read_images(paths, size):
    """Decode image files to uint8 RGB (N, size, size, 3): whole pictures, whatever their proportions.

    Shrinking averages areas, growing interpolates linearly. Raises UserError naming a file that cannot be
    decoded, and one that says how much memory is needed where there is less.
    """
    import cv2

    _check_memory(len(paths) * size * size * 3)
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def read(position):
        path = paths[position]
        photo = decode(read_file(path), path)
        if photo.shape[:2] != (size, size):
            method = cv2.INTER_AREA if min(photo.shape[:2]) > size else cv2.INTER_LINEAR
            photo = cv2.resize(photo, (size, size), interpolation=method)
        images[position] = photo

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(paths))))
    return images


def _check_memory(needed):
    """UserError if `needed` bytes are more than there is left, where that can be told (Linux)."""
    found = memory.free()
    if found is not None and needed > found[0]:
        raise UserError(
            f"domains_image_root: the images need {needed >> 20} MB of memory, {found[0] >> 20} are free; "
            "choose a smaller image_size"
        )
