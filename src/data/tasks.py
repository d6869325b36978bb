"""What a run may see of its data, by role: labelled sources, an unlabelled target, held-out and test images.

`open_task(config, device)` finds the domains; `Task` hands out loaders. Labels of any other role than
`labelled` end here, but for those that accuracies are counted with.
"""

import dataclasses
import functools
import logging
import os
from typing import NamedTuple

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.noise import generator
from src import data
from src.data import augment
from src.data.domains import ArrayDomain, looks_like_images, open_files, split_validation, thin_out
from src.data.files import LeftOut, Listing, shown
from src.data.keys import KEYS
from src.data.loaders import (
    Arrays,
    ArrayTestLoader,
    ArrayTrainLoader,
    FileTestLoader,
    FileTrainLoader,
    Plan,
)
from src.data.reading import Reader, Workers
from src.data.sets import PACS_ROOT, open_set
from src.data.split import DIGITS, Split
from src.data.transforms import flip

log = logging.getLogger("run")

FILES = ("folder", "list")
SAMPLED = {
    "mnist": 2000,
    "usps": 1800,
}  # training images of protocol `sampled` (arXiv 1702.05464, section 5.1)


def draw(split, name, protocol, seed):
    """The training images that a protocol allows.

    Args:
        split: all training images of data set `name`.
        protocol: "full" (all of them) or "sampled" (2,000 of MNIST, 1,800 of USPS, without replacement).
        seed: chooses the sample.

    Raises:
        UserError: the paper samples no such data set, or it has fewer images.
    """
    if protocol == "full":
        return split
    key = name.lower().replace("_", "").replace("-", "")
    if key not in SAMPLED:
        sizes = ", ".join(f"{known} {size}" for known, size in SAMPLED.items())
        raise UserError(
            f"protocol: sampled is not defined for {name} (only for {sizes}); use --protocol full"
        )
    count = len(split.labels)
    if count < SAMPLED[key]:
        raise UserError(
            f"protocol: sampled needs {SAMPLED[key]} training images of {name}, there are {count}; "
            "use --protocol full, or complete the data set"
        )
    chosen = np.sort(generator(seed, f"protocol {key}").permutation(count)[: SAMPLED[key]])
    return split.take(chosen)


# Finding the domains


@dataclasses.dataclass
class Form:
    """The domains of a run and what their form of data adds.

    Attributes:
        sources, target: `Domain`s; target may be None.
        union: name of the joined sources and of their random streams.
        source_augment, target_augment: names of augmentations of digits in whole arrays.
        alike: whether every source must have all classes.
        key: the configuration key to name where classes do not match.
    """

    sources: list
    target: object
    union: str
    source_augment: str
    target_augment: str
    alike: bool
    key: str


def _pair(config, left_out):
    given = config.target_dataset_name or config.target_image_root
    return Form(
        [_of_pair(config, "source", left_out)],
        _of_pair(config, "target", left_out) if given else None,
        "source",
        config.source_augment,
        config.target_augment,
        True,
        "source_image_root",
    )


def _of_pair(config, side, left_out):
    name, root = getattr(config, f"{side}_dataset_name"), getattr(config, f"{side}_image_root")
    if not name or name.lower() in FILES or not _digits_there(name, root, config):
        draw(None, name or "an image folder", config.protocol, config.seed)
        return open_files(root, f"{side}_image_root", config, left_out, side == "target").rename(side)

    def load(split):
        try:
            loaded = data.load(name, root, split, config.download)
        except UserError as error:
            if os.path.lexists(root) or not root:
                raise
            raise UserError(f"{side}_image_root: there is no {shown(root)}: {error}") from error
        if len(loaded.labels) == 0:
            raise UserError(f"{side}_image_root: the {split} split of {name} holds no image")
        return loaded

    def parts(split):
        return split_validation(
            draw(split, name, config.protocol, config.seed), config.validation_size, config.seed
        )

    return ArrayDomain(DIGITS, load, parts).rename(side)


def _digits_there(name, root, config):
    """Whether a root is to be read as the digit set `name`: its files are there, or nothing else is."""
    return data.find(name).present(root) or not looks_like_images(root)


def _set(config, left_out, least_sources):
    domain_set, names = open_set(config, left_out, least_sources)
    return Form(
        [domain_set.domain(name, target=False).rename(name) for name in names],
        domain_set.domain(config.target_domain, target=True).rename(config.target_domain),
        "source",
        config.augment,
        config.target_augment,
        not config.num_classes,
        "domains_image_root",
    )


def _folder(config, left_out):
    domain = open_files(config.dataset_path, "dataset_path", config, left_out)
    return Form([domain.rename("train", "val")], None, "train", "none", "none", True, "dataset_path")


def rooted(config):
    """The configuration with its data sets looked up in `dataset_path`, where that is given.

    Each relative `*_image_root` R becomes dataset_path/R, or dataset_path/<last part of R> where only that
    exists.
    """
    base, changes = config.dataset_path, {}
    if config.domain_set == "pacs" and not config.domains_image_root:
        config = config.replace(domains_image_root=PACS_ROOT)
    for name in KEYS if base else ():
        root = getattr(config, name)
        if name.endswith("_image_root") and root and not os.path.isabs(root):
            whole, last = os.path.join(base, root), os.path.join(base, os.path.basename(root))
            changes[name] = whole if os.path.lexists(whole) or not os.path.lexists(last) else last
    return config.replace(**changes)


def open_task(config, device, classes=None, least_sources=1):
    """The `Task` of a configuration. Form of data: set of domains, pair of domains, or folder, in this order.

    Args:
        config: has the keys of src/data/keys.py, `eval_batch_size`, `num_classes` and `seed`.
        device: its rank and world.
        classes: None in training: the labelled sources say; else what a model was trained on: a tuple of
            names, or only their number.
        least_sources: fewest source domains of a set that a method can do with.

    Raises:
        UserError: no such data, or classes that do not match.
    """
    left_out, config = LeftOut(config.strict), rooted(config)
    if config.domain_set or config.domains_image_root:
        form = _set(config, left_out, least_sources)
    elif config.source_dataset_name or config.source_image_root:
        form = _pair(config, left_out)
    elif config.dataset_path:
        form = _folder(config, left_out)
    else:
        raise UserError(
            "no data are given: set source_image_root and target_image_root, or domains_image_root, "
            "or dataset_path"
        )
    return Task(form, _agreed(form, classes, config), config, device, left_out)


def _agreed(form, known, config):
    """The names of the classes in label order."""
    for domain in form.sources:
        if domain.classes is None:
            raise UserError(
                f"{form.key}: {shown(domain.root)} has no class folders, and a source needs "
                "labels; give a "
                "folder with one subfolder for each class, or a list of `path label`"
            )
    union = sorted(set().union(*(domain.classes for domain in form.sources)))
    classes = known if isinstance(known, tuple) else tuple(union)
    _check_sources(form, union if isinstance(known, tuple) else (), classes)
    if isinstance(known, int) and known != len(classes):
        raise UserError(f"{form.key}: the data have {_counted(classes)}, but the model has {known}")
    if config.num_classes not in (0, len(classes)):
        raise UserError(
            f"num_classes: {config.num_classes}, but the data have {_counted(classes)}; 0 takes "
            "them as they are"
        )
    if len(classes) < 2:
        raise UserError(f"{form.key}: the sources have {_counted(classes)}; two or more are needed")
    _check_target(form.target, classes)
    return classes


def _counted(classes):
    names = shortened([shown(name) for name in classes], 8)
    return f"{len(classes)} class{'es' if len(classes) != 1 else ''} ({names})"


def _check_sources(form, union, classes):
    foreign = sorted(set(union) - set(classes))
    if foreign:
        raise UserError(
            f"{form.key}: the model does not know class "
            f"{shortened([shown(name) for name in foreign], 3)} (it "
            f"has {_counted(classes)}); give data with the classes it was trained on"
        )
    for name in classes if form.alike else ():
        has = [domain.name for domain in form.sources if name in domain.classes]
        has_not = [domain.name for domain in form.sources if name not in domain.classes]
        if has_not:
            where = f"is in domain {shortened(has, 3)} but not in" if has else "is missing in"
            raise UserError(
                f"{form.key}: class {shown(name)} {where} {shortened(has_not, 3)}; add it, or take it away "
                "everywhere; in a set of domains num_classes, the number of all classes, allows it"
            )


def _check_target(target, classes):
    if target is None or target.classes is None:
        return
    foreign = [shown(name) for name in target.classes if name not in classes]
    missing = [shown(name) for name in classes if name not in target.classes]
    if len(foreign) == len(target.classes):
        raise UserError(
            f"target {target.name}: no class in common with the sources; these have {_counted(classes)}, the "
            f"target {_counted(target.classes)}"
        )
    if foreign:
        raise UserError(
            f"target {target.name}: class {shortened(foreign, 3)} is in no source (these have "
            f"{_counted(classes)}); rename it, or take it out of the target"
        )
    if missing:
        log.info("target %s: has no class %s", target.name, shortened(missing, 8))


# Handing out loaders


class Joined(NamedTuple):
    """Several Splits in a row, with the labels of all."""

    splits: list
    labels: np.ndarray


def _joined(parts):
    if len(parts) == 1:
        return parts[0]
    labels = np.concatenate([part.labels for part in parts])
    if isinstance(parts[0], Split):
        return Joined(parts, labels)
    files = tuple(file for part in parts for file in part.files)
    return dataclasses.replace(parts[0], files=files, labels=labels)


class Task:
    """The data of a run by role.

    Attributes:
        classes: names of the classes in label order.
    """

    def __init__(self, form, classes, config, device, left_out):
        self.form, self.classes, self.config, self.device = form, classes, config, device
        self._left_out, self._opened = left_out, {}

    @functools.cached_property
    def _workers(self):
        return Workers(self.config.num_parallel_workers)

    @property
    def target_domain(self):
        """The name of the target of a set of domains; None for the other forms of data."""
        named = self.config.domain_set or self.config.domains_image_root
        return self.form.target.name if named else None

    @property
    def images(self):
        """{"<domain> <role>": number of images} of what was opened, without files that could not be read."""
        return {
            name: count - (len(reader.bad) if reader else 0) for name, (count, reader) in self._opened.items()
        }

    @property
    def left_out(self):
        """{reason: [paths]} of files that were not used; complete once everything has been read."""
        return self._left_out.as_dict()

    def labelled(self, preparation, batch_size, joined=True, key="batch_size"):
        """{name: TrainLoader} of the sources: their union, or one for each in the set's order.

        Args:
            preparation: a `Preparation`.
            batch_size: images per loader, step and process. key: its configuration key, for messages.
            joined: whether there is one loader, called "source" (of a folder "train"), over all sources.

        Raises:
            UserError: a class without a training image, a batch larger than a domain, missing or damaged
                files.
        """
        config, parts = self.config, {}
        for domain in self.form.sources:
            part = self._numbered(domain.train(), domain)
            parts[domain.name] = thin_out(part, config.train_size_per_domain, config.seed, domain.name)
            if self.form.alike:
                self._check_complete(parts[domain.name].labels, f"domain {domain.name} has no")
        self._check_complete(np.concatenate([part.labels for part in parts.values()]), "no source has a")
        if joined:
            parts = {self.form.union: _joined(list(parts.values()))}
        return {
            name: self._train_loader(name, part, True, preparation, self._plan(name, batch_size, key))
            for name, part in parts.items()
        }

    def unlabelled(self, preparation, batch_size, key="batch_size"):
        """{"target": TrainLoader without labels}; UserError if there is no target. See `labelled`."""
        target = self.form.target
        if target is None:
            raise UserError(
                "there is no target to adapt to: give target_image_root, or a set of domains with "
                "target_domain"
            )
        part = target.target_train()
        part = part.without_labels()
        plan = self._plan(target.name, batch_size, key)
        return {"target": self._train_loader(target.name, part, False, preparation, plan)}

    def held_out(self, preparation, batch_size=None, target=True):
        """{name: TestLoader} of what is held out of training, "target" with labels -1; None if nothing is.

        Every rank sees all of it. target: False where the target is not trained on; its training part is then
        not even read.
        """
        loaders = {}
        for domain in self.form.sources:
            part = domain.held_out()
            if part is not None and len(part.labels):
                loaders[domain.name] = self._test_loader(
                    f"{domain.name} held out", self._numbered(part, domain), preparation, batch_size, False
                )
        part = self.form.target.target_held_out() if target and self.form.target else None
        if part is not None and len(part.labels):
            blind = part._replace(labels=np.full_like(part.labels, -1))
            loaders["target"] = self._test_loader("target held out", blind, preparation, batch_size, False)
        return loaders or None

    def test(self, preparation, batch_size=None):
        """{name: TestLoader} over this rank's share of the test images, the target's last.

        A domain without test images, and a target without labels, are not in it.
        """
        parts = {domain.test_name: (domain, domain.test()) for domain in self.form.sources}
        target = self.form.target
        if target is not None and target.classes is not None:
            parts[target.test_name] = target, target.target_test()
        return {
            name: self._test_loader(
                f"{name} test", self._numbered(part, domain), preparation, batch_size, True
            )
            for name, (domain, part) in parts.items()
            if len(part.labels)
        }

    def close(self):
        """Stop the threads that read."""
        self._workers.close()

    def _numbered(self, part, domain):
        """A part with labels in the order of the task's classes."""
        classes = part.classes if isinstance(part, Listing) else domain.classes
        places = np.array([self.classes.index(name) for name in classes], np.int32)
        if isinstance(part, Split):
            return Split(part.images, places[part.labels])
        return dataclasses.replace(part, classes=self.classes, labels=places[part.labels])

    def _check_complete(self, labels, words):
        counts = np.bincount(labels, minlength=len(self.classes))
        missing = [shown(name) for name, count in zip(self.classes, counts, strict=True) if count == 0]
        if missing:
            raise UserError(
                f"{words} training image of class {shortened(missing, 3)}; add some, or lower "
                "holdout, or raise "
                "train_size_per_domain"
            )

    def _plan(self, name, batch_size, key):
        return Plan(name, batch_size, self.config.seed, self.device.rank, self.device.world, None, key)

    def _train_loader(self, name, part, labelled, preparation, plan):
        config, labels = self.config, part.labels
        title = f"{name if labelled else 'target'} train"
        if not isinstance(part, Listing):
            splits = part.splits if isinstance(part, Joined) else [part]
            arrays = Arrays(splits, preparation, config.digit_resize == "corners")
            kind = self.form.source_augment if labelled else self.form.target_augment
            function = flip if kind == "flip" else augment.build(kind)
            self._opened[title] = len(arrays), None
            return ArrayTrainLoader(arrays, labels, dataclasses.replace(plan, augment=function))
        mirrored = config.flip == "true" or config.augment == "flip"
        preparation = dataclasses.replace(
            preparation,
            crop_scale_min=config.crop_scale_min or preparation.crop_scale_min,
            flip=mirrored or config.flip == "auto" and preparation.flip,
        )
        function = None if config.augment == "flip" else augment.build(config.augment)
        reader = self._reader(part, labels)
        self._opened[title] = len(part.files), reader
        return FileTrainLoader(
            reader, labels, dataclasses.replace(plan, augment=function), preparation, config.color_jitter
        )

    def _test_loader(self, title, part, preparation, batch_size, shared):
        batch_size = batch_size or self.config.eval_batch_size
        ranks = (self.device.rank, self.device.world) if shared else (0, 1)
        if isinstance(part, Split):
            arrays = Arrays([part], preparation, self.config.digit_resize == "corners")
            self._opened[title] = len(arrays), None
            loader = ArrayTestLoader(arrays, part.labels, batch_size, *ranks)
        else:
            reader = self._reader(part, part.labels)
            self._opened[title] = len(part.files), reader
            loader = FileTestLoader(reader, part.labels, batch_size, preparation, *ranks)
        loader.classes = self.classes
        return loader

    def _reader(self, listing, labels):
        keep = self.config.cache == "memory"
        reader = Reader(listing.files, self._workers, keep=keep, left_out=self._left_out)
        if labels is not None:
            reader.group(labels, self.classes)
        return reader
