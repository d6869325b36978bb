"""Sets of domains, found by name: several domains with the same classes, any of which may be the target."""

import difflib
import logging
import os
from pathlib import Path

from model_utils.errors import UserError, shortened
from src import data
from src.data.domains import Opening, array_domain, class_names, divide, kfold_domain, open_files
from src.data.download import ELSEWHERE
from src.data.files import shown, subfolders
from src.data.lists import KfoldLists
from src.data.rotated import Demo, RotatedMnist

log = logging.getLogger("run")

PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
PACS_ROOT = "data/pacs"


class MadeSet:
    """Digits that are made by RotatedMnist or Demo."""

    def __init__(self, maker, config, left_out):
        self.maker, self.config = maker(config), config
        self.names = self.maker.names

    def domain(self, name, target):
        """One domain of the set."""
        return array_domain(
            name,
            lambda split: self.maker.load(name, split),
            lambda split: divide(split, self.config.holdout),
            lambda: self.maker.target_test(name),
        )


class DigitSet:
    """MNIST, MNIST-M and USPS: trained on the training splits, tested on the test splits."""

    names = ("mnist", "mnist_m", "usps")

    def __init__(self, config, left_out):
        self.config = config

    def domain(self, name, target):
        """One domain of the set."""
        root = getattr(self.config, f"{name}_image_root")
        return array_domain(
            name,
            lambda split: data.load(name, root, split, self.config.download),
            lambda split: divide(split, self.config.holdout),
        )


class FolderSet:
    """The domains are the folders in `domains_image_root`, the classes the folders in those, both sorted.

    Raises UserError (also from the methods) for what the layout or a list leaves unclear.
    """

    classes = None  # follow from the sources
    elsewhere = ""  # where to get the set from, for a message

    def __init__(self, config, left_out):
        self.config, self.left_out, self.root = config, left_out, Path(config.domains_image_root)
        if not os.path.isdir(self.root):
            raise UserError(
                f"domains_image_root: {shown(self.root)!r} is no folder; it should hold <domain>/<class>/* "
                f"images{self.elsewhere}"
            )
        folders = {name: subfolders(self.root / name) for name in subfolders(self.root)}
        self.names = tuple(name for name, inside in folders.items() if inside or name == config.target_domain)
        if len(self.names) < len(folders):
            others = [shown(name) for name in folders if name not in self.names]
            log.info("%s: no class folders in %s, passed over", shown(self.root), shortened(others, 3))
        if not self.names:
            raise UserError(
                f"domains_image_root: {shown(self.root)} holds no <domain>/<class> folders of images"
            )
        every = sorted(set().union(*(folders[name] for name in self.names)))
        self.lists = None
        if config.kfold_root:
            self.lists = KfoldLists(self.root / config.kfold_root, self.classes or tuple(every), left_out)

    def domain(self, name, target):
        """One domain of the set."""
        opening = Opening(self.config, self.left_out, "domains_image_root", name, target)
        if self.lists and class_names(self.root / name):
            return kfold_domain(self.root / name, self.lists, opening)
        return open_files(self.root / name, opening)


class Pacs(FolderSet):
    """PACS (Li et al. 2017, arXiv 1710.03077): art_painting, cartoon, photo and sketch, seven classes each.

    The folder may hold other domains, as long as the classes are these seven.
    """

    classes = PACS_CLASSES
    elsewhere = f"; PACS: {ELSEWHERE['PACS']}"

    def domain(self, name, target):
        domain = super().domain(name, target)
        missing = set() if target else set(PACS_CLASSES) - set(domain.classes or ())
        foreign = set(domain.classes or ()) - set(PACS_CLASSES)
        if missing or foreign:
            kind, name_ = ("no", min(missing)) if missing else ("an unknown", min(foreign))
            raise UserError(
                f"domains_image_root: {shown(self.root / name)} has {kind} class folder {shown(name_)}; PACS "
                f"has {', '.join(PACS_CLASSES)} in every domain (domain_set folders takes other classes)"
            )
        return domain


SETS = {
    "rotated_mnist": lambda config, left_out: MadeSet(RotatedMnist, config, left_out),
    "digits": DigitSet,
    "pacs": Pacs,
    "folders": FolderSet,
    "demo": lambda config, left_out: MadeSet(Demo, config, left_out),
}


def open_set(config, left_out, least_sources):
    """(the set, names of its source domains in its order); the target is `target_domain`.

    Raises:
        UserError: a target or source that the set does not have, fewer than `least_sources` sources, or a
            source called "target".
    """
    kind = config.domain_set or "folders"
    domain_set = SETS[kind](config, left_out)
    names = ", ".join(shown(name) for name in domain_set.names)
    target = config.target_domain
    if target not in domain_set.names:
        near = difflib.get_close_matches(target.lower(), domain_set.names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"target_domain: {target!r} is no domain of {kind}; {hint}domains: {names}")
    others = [name for name in domain_set.names if name != target]
    chosen = [name.strip() for name in config.source_domains.split(",") if name.strip()]
    wrong = [name for name in chosen if name not in others]
    if wrong:
        raise UserError(
            f"source_domains: {wrong[0]!r} is no domain of {kind} to train on; with {target} left out these "
            f"are: {shortened(others, 20)}"
        )
    sources = [name for name in others if name in chosen or not chosen]
    if len(sources) < least_sources:
        few = "fewer than two source domains are" if least_sources == 2 else "no source domain is"
        raise UserError(
            f"target_domain: without {target} {few} left ({kind} has {names}; source_domains is "
            f"{config.source_domains or 'empty'!r}); {least_sources} or more are needed"
        )
    check_roles(sources, target)
    return domain_set, sources


def check_roles(sources, target):
    """UserError where a domain has the name of the other role: their images and figures would be mixed up."""
    for name, clashes in (("target", "target" in sources), ("source", target == "source")):
        if clashes:
            role = "source" if name == "target" else "target"
            raise UserError(f"domains_image_root: its domain {name} would be a {role}; rename that folder")
