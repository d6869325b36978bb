"""The forms that data come in: which domains a configuration names, and whether their classes match."""

import dataclasses
import logging
import os

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.noise import generator
from src import data
from src.data.domains import ArrayDomain, FileDomain, looks_like_images, open_files, split_validation
from src.data.files import shown
from src.data.keys import KEYS
from src.data.sets import PACS_ROOT, open_set
from src.data.split import DIGITS, Missing

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
            f"protocol: sampled needs {SAMPLED[key]} training images of {name}, there are {count}; use "
            "--protocol full, or complete the data set"
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
        complete: whether a source must have training images of all its classes.
        key: the configuration key to name where classes do not match.
    """

    sources: list
    target: object
    union: str
    source_augment: str
    target_augment: str
    alike: bool
    complete: bool
    key: str


def _pair(config, left_out):
    given = config.target_dataset_name or config.target_image_root
    source = _of_pair(config, "source", left_out)
    target = _of_pair(config, "target", left_out) if given else None
    if isinstance(target, FileDomain) and isinstance(source, FileDomain) and _same(source.root, target.root):
        log.warning("warning: source and target are the same: %s", shown(source.root))
    return Form(
        [source],
        target,
        "source",
        config.source_augment,
        config.target_augment,
        True,
        isinstance(source, FileDomain),
        "source_image_root",
    )


def _same(one, other):
    return os.path.realpath(one) == os.path.realpath(other)


def _of_pair(config, side, left_out):
    name, root = getattr(config, f"{side}_dataset_name"), getattr(config, f"{side}_image_root")
    found = {}
    if not name or name.lower() in FILES or not _is_digit_set(name, root, found):
        draw(None, name or "an image folder", config.protocol, config.seed)
        return open_files(root, f"{side}_image_root", config, left_out, side == "target").rename(side)

    def load(split):
        try:
            loaded = found.pop(split, None) or data.load(name, root, split, config.download)
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


def _is_digit_set(name, root, found):
    """Whether a root is to be read as the digit set `name`: its files are there, or at least no other images.

    What is read to find that out goes into `found`, {split: Split}.
    """
    data.find(name)
    if not looks_like_images(root):
        return True
    try:
        found["test"] = data.load(name, root, "test")
    except Missing:
        return False
    return True


def _set(config, left_out, least_sources):
    domain_set, names = open_set(config, left_out, least_sources)
    return Form(
        [domain_set.domain(name, target=False).rename(name) for name in names],
        domain_set.domain(config.target_domain, target=True).rename(config.target_domain),
        "source",
        config.augment,
        config.target_augment,
        not config.num_classes,
        not config.num_classes,
        "domains_image_root",
    )


def _folder(config, left_out):
    domain = open_files(config.dataset_path, "dataset_path", config, left_out)
    return Form([domain.rename("train", "val")], None, "train", "none", "none", True, True, "dataset_path")


def rooted(config):
    """The configuration with its data sets looked up in `dataset_path`, where that is given.

    A relative `*_image_root` R becomes dataset_path/R, or dataset_path/<name of R> where only that exists.
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


def find_form(config, left_out, least_sources):
    """The Form of data: set of domains, pair of domains, or folder; UserError if none is given."""
    if config.domain_set or config.domains_image_root:
        return _set(config, left_out, least_sources)
    if config.source_dataset_name or config.source_image_root:
        return _pair(config, left_out)
    if config.dataset_path:
        return _folder(config, left_out)
    raise UserError(
        "no data are given: set source_image_root and target_image_root, or domains_image_root, or "
        "dataset_path"
    )


# Classes match by name


def agreed(form, known, config):
    """The names of the classes in label order."""
    for domain in form.sources:
        if domain.classes is None:
            raise UserError(
                f"{form.key}: {shown(domain.root)} has no class folders, and a source needs labels; give a "
                "folder with one subfolder for each class, or a list of `path label`"
            )
    union = sorted(set().union(*(domain.classes for domain in form.sources)))
    classes = known if isinstance(known, tuple) else tuple(union)
    _check_sources(form, union if isinstance(known, tuple) else (), classes)
    if isinstance(known, int) and known != len(classes):
        raise UserError(f"{form.key}: the data have {_counted(classes)}, but the model has {known}")
    if config.num_classes not in (0, len(classes)):
        raise UserError(
            f"num_classes: {config.num_classes}, but the data have {_counted(classes)}; 0 takes them as they "
            "are"
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
            f"{form.key}: the model does not know class {shortened([shown(name) for name in foreign], 3)} "
            f"(it has {_counted(classes)}); give data with the classes it was trained on"
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
