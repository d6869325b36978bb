"""The forms that data come in: which domains a configuration names, and whether their classes match."""

import dataclasses
import logging
import os
import unicodedata

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.noise import generator
from src import data
from src.data import download
from src.data.domains import (
    Opening,
    array_domain,
    find_parts,
    looks_like_images,
    open_files,
    split_validation,
)
from src.data.files import shown
from src.data.keys import KEYS
from src.data.sets import PACS_ROOT, open_set
from src.data.split import Missing

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
        key: the configuration key to name where something does not fit.
        sources, target: `Domain`s; target may be None.
        union: name of the joined sources and of their random streams.
        source_augment, target_augment: names of augmentations of digits in whole arrays.
        alike: whether every source must have all classes.
        complete: whether a source must have training images of all its classes.
    """

    key: str
    sources: list
    target: object = None
    union: str = "source"
    source_augment: str = "none"
    target_augment: str = "none"
    alike: bool = True
    complete: bool = True


def _pair(config, left_out):
    given = config.target_dataset_name or config.target_image_root
    given_source = config.source_dataset_name or config.source_image_root
    source = _of_pair(config, "source", left_out) if given_source else None
    target = _of_pair(config, "target", left_out) if given else None
    roots = [os.path.realpath(domain.root) for domain in (source, target) if domain and domain.root]
    if len(roots) == 2 and roots[0] == roots[1]:
        log.warning("warning: source and target are the same: %s", shown(source.root))
    return Form(
        "source_image_root" if source else "target_image_root",
        [source] if source else [],
        target,
        source_augment=config.source_augment,
        target_augment=config.target_augment,
        complete=source is not None and source.root is not None,
    )


def _of_pair(config, side, left_out):
    name, root = getattr(config, f"{side}_dataset_name"), getattr(config, f"{side}_image_root")
    found = {}
    if not name or name.lower() in FILES or not _is_digit_set(name, root, found):
        draw(None, name or "an image folder", config.protocol, config.seed)
        return open_files(root, Opening(config, left_out, f"{side}_image_root", side, side == "target"))

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

    return array_domain(side, load, parts)


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
        "domains_image_root",
        [domain_set.domain(name, target=False) for name in names],
        domain_set.domain(config.target_domain, target=True),
        source_augment=config.augment,
        target_augment=config.target_augment,
        alike=not config.num_classes,
        complete=not config.num_classes,
    )


def _folder(config, left_out):
    if config.download and download.is_missing(config.dataset_path):
        download.fetch_image_folder(config.dataset_path)
    opening = Opening(config, left_out, "dataset_path", "train", test_name="val")
    return Form("dataset_path", [open_files(config.dataset_path, opening)], union="train")


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


def image_roots(config):
    """{key: folder} of the folders in which every subfolder is taken for a class or a domain."""
    config = rooted(config)
    if config.domains_image_root:
        return {"domains_image_root": config.domains_image_root}
    found = {}
    for side in ("source", "target"):
        name, root = getattr(config, f"{side}_dataset_name"), getattr(config, f"{side}_image_root")
        of_files = not name or name.lower() in FILES or looks_like_images(root)
        if root and of_files and os.path.isdir(root) and not find_parts(root):
            found[f"{side}_image_root"] = root
    return found


def find_form(config, left_out, least_sources):
    """The Form of data: set of domains, pair of domains, or folder; UserError if none is given."""
    if config.domain_set or config.domains_image_root:
        return _set(config, left_out, least_sources)
    source = config.source_dataset_name or config.source_image_root
    alone = least_sources == 0 and (config.target_dataset_name or config.target_image_root)
    if source or alone:
        return _pair(config, left_out)
    if config.dataset_path:
        return _folder(config, left_out)
    raise UserError(
        "no data are given: set source_image_root and target_image_root, or domains_image_root, or "
        "dataset_path"
    )


# Classes match by name


class OtherClasses(UserError):
    """Data have other classes than the model they are given to."""


def compared(data, model):
    """What is in only one of two collections of class names, in words; "" where they hold the same names."""
    sides = (("data", set(data) - set(model)), ("model", set(model) - set(data)))
    return "; ".join(
        f"only in the {side}: {shortened([shown(name) for name in sorted(names)], 5)}"
        for side, names in sides
        if names
    )


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
    if isinstance(known, tuple) and form.sources:
        _check_known(form, union, known)
    if not form.sources and not isinstance(known, tuple):
        raise UserError(
            f"{form.key}: there are no labelled sources, and the model does not name its classes; give "
            "source_image_root, or a model that names them"
        )
    _check_sources(form, classes)
    if isinstance(known, int) and known != len(classes):
        raise UserError(f"{form.key}: the data have {_counted(classes)}, but the model has {known}")
    if config.num_classes not in (0, len(classes)):
        raise UserError(
            f"num_classes: {config.num_classes}, but the data have {_counted(classes)}; 0 takes them as they "
            "are"
        )
    if len(classes) < 2:
        owner = "sources have" if form.sources else "model has"
        raise UserError(f"{form.key}: the {owner} {_counted(classes)}; two or more are needed")
    _check_target(form.target, classes, known)
    return classes


def _counted(classes):
    names = shortened([shown(name) for name in classes], 8)
    return f"{len(classes)} class{'es' if len(classes) != 1 else ''} ({names})"


def _check_known(form, union, known):
    """The sources have the model's classes; where a source may lack some, all of them together may, too."""
    different = compared(union, known if form.alike else {*union} & {*known})
    if different:
        raise OtherClasses(
            f"{form.key}: the data have other classes than the model ({different}); give data with the "
            "classes it was trained on"
        )


def _check_sources(form, classes):
    for name in classes if form.alike else ():
        has = [domain.name for domain in form.sources if name in domain.classes]
        has_not = [domain.name for domain in form.sources if name not in domain.classes]
        if has_not:
            where = f"is in domain {shortened(has, 3)} but not in" if has else "is missing in"
            raise UserError(
                f"{form.key}: class {shown(name)} {where} {shortened(has_not, 3)}; add it, or take it away "
                "everywhere; in a set of domains num_classes, the number of all classes, allows it"
            )


def _folded(name):
    """A class name without what people overlook: case, blanks around it, how its accents are encoded."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def _check_target(target, classes, known):
    if target is None or target.classes is None:
        return
    if isinstance(known, tuple) and set(target.classes) - set(known):
        raise OtherClasses(
            f"target {target.name}: its data have other classes than the model "
            f"({compared(target.classes, known)}); give data with the classes it was trained on"
        )
    twins = {_folded(name): name for name in classes}
    foreign = [name for name in target.classes if name not in classes]
    for name in foreign:
        if twin := twins.get(_folded(name)):
            raise UserError(
                f"target {target.name}: class {name!a} is in no source, but {twin!a} is: the names "
                "differ only in case, blanks or how accents are encoded; rename one like the other"
            )
    missing = [shown(name) for name in classes if name not in target.classes]
    if len(foreign) == len(target.classes):
        raise UserError(
            f"target {target.name}: no class in common with the sources; these have {_counted(classes)}, the "
            f"target {_counted(target.classes)}"
        )
    if foreign:
        raise UserError(
            f"target {target.name}: class {shortened([*map(shown, foreign)], 3)} is in no source (these have "
            f"{_counted(classes)}); rename it, or take it out of the target"
        )
    if missing:
        log.info("target %s: has no class %s", target.name, shortened(missing, 8))
