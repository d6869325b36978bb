"""What a run may see of its data, by role: labelled sources, an unlabelled target, held-out and test images.

`open_task(config, device)` finds the domains; `Task` hands out loaders. Labels of a role other than
`labelled` are dropped here, except those that accuracies are counted with.
"""

import dataclasses
import functools
import logging
from typing import NamedTuple

import numpy as np

from model_utils.digests import digest
from model_utils.errors import UserError, shortened
from src.data import augment
from src.data.domains import thin_out
from src.data.files import LeftOut, Listing, shown
from src.data.forms import agreed, find_form, rooted
from src.data.loaders import (
    Arrays,
    ArrayTestLoader,
    ArrayTrainLoader,
    FileTestLoader,
    FileTrainLoader,
    Plan,
)
from src.data.reading import Reader, Workers
from src.data.split import Split
from src.data.transforms import flip

log = logging.getLogger("run")

STRONG_CROP, STRONG_JITTER = 0.2, 0.5  # of strong views of images in files


def open_task(config, device, classes=None, least_sources=1):
    """The `Task` of a configuration. Form of data: set of domains, pair of domains, or folder, in this order.

    Args:
        config: has the keys of src/data/keys.py, `eval_batch_size`, `num_classes` and `seed`.
        device: its rank and world.
        classes: None in training, where the labelled sources determine them; otherwise the classes that a
            model was trained on, a tuple of names or only their number.
        least_sources: how many source domains of a set the method needs.

    Raises:
        UserError: no such data, or classes that do not match.
    """
    left_out, config = LeftOut(config.strict), rooted(config)
    form = find_form(config, left_out, least_sources)
    return Task(form, agreed(form, classes, config), config, device, left_out)


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


def _count(part):
    """How many images a part has."""
    return len(part.images if isinstance(part, Split) else part.files)


def _with_labels(part, labels):
    """A part with other labels."""
    if isinstance(part, Split):
        return part._replace(labels=labels)
    return dataclasses.replace(part, labels=labels)


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

    def labelled(self, preparation, batch_size, joined=True, key="batch_size", strong=None):
        """{name: TrainLoader} of the sources: their union, or one for each in the set's order.

        Args:
            preparation: a `Preparation`.
            batch_size: images per loader, step and process. key: its configuration key, for messages.
            joined: whether there is one loader, called "source" (of a folder "train"), over all sources.
            strong: name of an augmentation of digits; if given, "<name>_strong" has the same images in the
                same order, changed by it; images in files are cropped and coloured more strongly than usual.

        Raises:
            UserError: a class without a training image, a batch larger than a domain, missing or damaged
                files.
        """
        config, parts = self.config, {}
        for domain in self.form.sources:
            part = self._numbered(domain.part("train"), domain)
            parts[domain.name] = thin_out(part, config.train_size_per_domain, config.seed, domain.name)
            if self.form.complete:
                self._check_complete(parts[domain.name].labels, f"domain {domain.name} has no")
        if not self.form.alike:
            self._check_complete(np.concatenate([part.labels for part in parts.values()]), "no source has a")
        if joined:
            parts = {self.form.union: _joined(list(parts.values()))}
        loaders, kind = {}, self.form.source_augment
        for name, part in parts.items():
            plan = self._plan(name, batch_size, key, kind)
            loaders |= self._views(name, part, preparation, plan, strong)
        return loaders

    def unlabelled(self, preparation, batch_size, key="batch_size", strong=None, numbered=False):
        """{"target": TrainLoader without labels}; UserError if there is no target. See `labelled`.

        numbered: whether the place of each image among those of `blind_target` stands where labels would.
        """
        target = self._target()
        part = target.part("target_train").without_labels()
        if numbered:
            part = _with_labels(part, np.arange(_count(part), dtype=np.int32))
        plan = self._plan(target.name, batch_size, key, self.form.target_augment)
        loaders = self._views("target", part, preparation, plan, strong)
        for loader in loaders.values():
            loader.numbered = numbered
        return loaders

    def _views(self, name, part, preparation, plan, strong):
        """{name: loader}, and with `strong` also {"<name>_strong": loader}."""
        loaders = {name: self._train_loader(part, preparation, plan)}
        if strong is not None:
            plan = dataclasses.replace(plan, augment=augment.build(strong), stream=f"{plan.name} strong")
            loaders[f"{name}_strong"] = loader = self._train_loader(part, preparation, plan, strong=True)
            loader.strong = True
        return loaders

    def held_out(self, preparation, batch_size=None, target=True):
        """{name: TestLoader} of what is held out of training, "target" with labels -1; None if nothing is.

        Every rank sees all of it. target: False where the target is not trained on; its training part is then
        not even read.
        """
        loaders = {}
        for domain in self.form.sources:
            part = domain.part("held_out")
            if part is not None and len(part.labels):
                part = self._numbered(part, domain)
                loaders[domain.name] = self._test_loader(
                    domain.name, part, preparation, batch_size, "held out"
                )
        part = self.form.target.part("target_held_out") if target and self.form.target else None
        if part is not None and len(part.labels):
            blind = part._replace(labels=np.full_like(part.labels, -1))
            loaders["target"] = self._test_loader("target", blind, preparation, batch_size, "held out")
        return loaders or None

    def test(self, preparation, batch_size=None):
        """{name: TestLoader} over this rank's share of the test images, the target's last.

        A domain without test images, and a target without labels, are not in it.
        """
        parts = {domain.test_name: (domain, domain.part("test")) for domain in self.form.sources}
        target = self.form.target
        if target is not None and target.classes:
            parts[target.test_name] = target, target.part("target_test")
        loaders = {}
        for name, (domain, part) in parts.items():
            if len(part.labels) and (isinstance(part, Split) or part.classes):
                part = self._numbered(part, domain)
                loaders[name] = self._test_loader(name, part, preparation, batch_size, "test")
        if not loaders:
            log.info("there is no labelled image to test on: accuracies are not measured")
        return loaders

    def blind_target(self, preparation, batch_size=None, numbered=False):
        """TestLoader of the target images that training may see, as evaluation sees them; every label is -1.

        It is what may be measured, or shown, without target labels. Every rank sees all of it.

        numbered: whether the place of each image stands where labels would.

        Raises:
            UserError: there is no target.
        """
        part = self._target().part("target_train").without_labels()
        labels = np.arange(_count(part)) if numbered else np.full(_count(part), -1)
        part = _with_labels(part, labels.astype(np.int32))
        return self._test_loader("target", part, preparation, batch_size, "blind")

    def sample_of_target(self, preparation, batch_size, count):
        """TestLoader of up to `count` images like those of `blind_target`: the same ones for every seed."""
        part = self._target().part("target_train").without_labels()
        if isinstance(part, Split):
            images = [part.images]
            held_out = self._target().part("target_held_out")  # the seed says which these are
            if held_out is not None:
                images.append(held_out.images)
            known = sorted(
                (digest(image.tobytes()), number, place)
                for number, own in enumerate(images)
                for place, image in enumerate(own)
            )
            part = Split(np.stack([images[number][place] for _, number, place in known[:count]]), None)
        else:
            total = len(part.files)
            chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
            part = dataclasses.replace(part, files=tuple(part.files[place] for place in chosen))
        part = _with_labels(part, np.full(_count(part), -1, np.int32))
        return self._test_loader("target", part, preparation, batch_size, "blind")

    def _target(self):
        if self.form.target is None:
            raise UserError(
                "there is no target to adapt to: give target_image_root, or a set of domains with "
                "target_domain"
            )
        return self.form.target

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
                f"{words} training image of class {shortened(missing, 3)}; add some, or lower holdout, or "
                "raise train_size_per_domain"
            )

    def _plan(self, name, batch_size, key, kind):
        """The Plan of a loader; kind: name of an augmentation."""
        function = flip if kind == "flip" else augment.build(kind)
        return Plan(name, batch_size, self.config.seed, self.device.rank, self.device.world, function, key)

    def _train_loader(self, part, preparation, plan, strong=False):
        if isinstance(part, Listing):
            return self._file_train_loader(part, preparation, plan, strong)
        splits = part.splits if isinstance(part, Joined) else [part]
        arrays = Arrays(splits, preparation, self.config.digit_resize)
        self._open(plan.name, "train", len(arrays))
        return ArrayTrainLoader(arrays, part.labels, plan)

    def _file_train_loader(self, part, preparation, plan, strong):
        """Files are mirrored before they become numbers, and augmented as `augment` says."""
        config = self.config
        if strong:
            crop, jitter = STRONG_CROP, STRONG_JITTER
        else:
            crop, jitter = config.crop_scale_min or preparation.crop_scale_min, config.color_jitter
        mirrored = config.flip == "true" or config.augment == "flip"
        preparation = dataclasses.replace(
            preparation,
            crop_scale_min=crop,
            flip=mirrored or config.flip == "auto" and preparation.flip,
        )
        function = None if config.augment == "flip" else augment.build(config.augment)
        reader = self._open(plan.name, "train", len(part.files), part)
        plan = dataclasses.replace(plan, augment=function)
        return FileTrainLoader(reader, part.labels, plan, preparation, jitter)

    def _test_loader(self, name, part, preparation, batch_size, role):
        """role: "test", shared out over the ranks, "held out", or "blind"."""
        batch_size = batch_size or self.config.eval_batch_size
        ranks = (self.device.rank, self.device.world) if role == "test" else (0, 1)
        if isinstance(part, Split):
            arrays = Arrays([part], preparation, self.config.digit_resize)
            self._open(name, role, len(arrays))
            loader = ArrayTestLoader(arrays, part.labels, batch_size, *ranks)
        else:
            reader = self._open(name, role, len(part.files), part)
            loader = FileTestLoader(reader, part.labels, batch_size, preparation, *ranks)
        loader.classes = self.classes
        return loader

    def _open(self, name, role, count, listing=None):
        """Count the images of a loader; the Reader of a listing."""
        # train/ and val/ of an image folder are called after themselves.
        alone = self.form.key == "dataset_path" and role != "held out"
        title = name if alone else f"{name} {role}"
        reader = None
        if listing is not None:
            keep = self.config.cache == "memory"
            reader = Reader(listing.files, self._workers, keep=keep, left_out=self._left_out)
            if listing.classes is not None:
                reader.group(listing.labels, self.classes)
        if role != "blind":  # images that were counted as the target's training images
            self._opened[title] = count, reader
        return reader
