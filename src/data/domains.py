"""Sets of domains for domain generalisation: train on all but one, test on the one that was left out.

MASF and DeepAll read them. The domain left out (`target_domain`) is tested on and nothing else: its training
part is not even read.
"""

import difflib

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.key import Key
from src.data import augment
from src.data.domain_folders import Folders, Pacs
from src.data.domain_set import thin_out
from src.data.loader import TestLoader, TrainLoader
from src.data.rotated import Demo, Digits, RotatedMnist

SETS = {"rotated_mnist": RotatedMnist, "digits": Digits, "pacs": Pacs, "folders": Folders, "demo": Demo}
CHANNELS = 3  # grey digits are repeated, so that one network fits every domain of a set


def keys(domain_set="pacs", target_domain="art_painting"):
    """The configuration keys of a set of domains, with a method's defaults."""
    return {
        "domain_set": Key(
            domain_set,
            "rotated_mnist: MNIST at 0 to 75 degrees; digits: mnist, mnist_m, usps; pacs: folders with its "
            "seven classes; folders: any <domain>/<class>/* of images; demo: digits that need no files",
            choices=tuple(SETS),
        ),
        "target_domain": Key(target_domain, "the domain that is left out of training and tested on"),
        "source_domains": Key("", "names with commas between: only these are trained on; empty: all others"),
        "domains_image_root": Key("data/pacs", "pacs, folders: folder of <domain>/<class>/* images"),
        "kfold_root": Key(
            "",
            "pacs, folders: folder of the official <domain>_{train,crossval,test}_kfold.txt split lists, "
            "seen from domains_image_root; empty: split by holdout",
        ),
        "mnist_image_root": Key("data/mnist", "rotated_mnist, digits: folder of MNIST"),
        "mnist_m_image_root": Key("data/mnist_m", "digits: folder of MNIST-M"),
        "usps_image_root": Key("data/usps", "digits: folder of USPS"),
        "num_classes": Key(
            0, "classes; 0: as many as the data have, and then every domain must have all of them", low=0
        ),
        "image_size": Key(
            0, "height and width of the images; 0: 28 for digits, 227 for pacs and folders", low=0, high=1024
        ),
        "holdout": Key(
            0.1, "share of each source domain's training images kept for validation figures", low=0, below=1
        ),
        "train_size_per_domain": Key(
            0, "training images of each source domain, drawn by seed; 0: all", low=0
        ),
        "augment": Key(
            "none",
            "augmentation of training images; flip mirrors every second one",
            choices=("flip", *augment.CHOICES),
        ),
    }


def flip(images, rng):
    """Mirror each image, left to right, with probability 1/2. images: float32 (N, C, H, W)."""
    mirrored = rng.random(len(images)) < 0.5
    images[mirrored] = images[mirrored, :, :, ::-1]
    return images


def _open(config):
    """The set of domains, checked as far as its names go; UserError for a target that it does not have."""
    domain_set = SETS[config.domain_set](config)
    names = ", ".join(domain_set.names)
    if config.target_domain not in domain_set.names:
        near = difflib.get_close_matches(config.target_domain.lower(), domain_set.names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"target_domain: {config.target_domain!r} is no domain of {config.domain_set}; "
            f"{hint}domains: {names}"
        )
    if config.num_classes not in (0, len(domain_set.classes)):
        raise UserError(
            f"num_classes: {config.num_classes}, but {config.domain_set} has {len(domain_set.classes)} "
            f"({shortened(list(domain_set.classes), 8)}); 0 takes them as they are"
        )
    others = [name for name in domain_set.names if name != config.target_domain]
    wrong = [name for name in _chosen(config) if name not in others]
    if wrong:
        raise UserError(
            f"source_domains: {wrong[0]!r} is no domain of {config.domain_set} to train on; "
            f"with {config.target_domain} left out these are: {', '.join(others)}"
        )
    if len(_sources(domain_set, config)) < 2:
        raise UserError(
            f"target_domain: without {config.target_domain} fewer than two source domains are left "
            f"({config.domain_set} has {names}; source_domains is {config.source_domains or 'empty'!r}); "
            "generalisation needs two or more"
        )
    return domain_set


def _chosen(config):
    return [name.strip() for name in config.source_domains.split(",") if name.strip()]


def _sources(domain_set, config):
    chosen = _chosen(config) or domain_set.names
    return [name for name in domain_set.names if name in chosen and name != config.target_domain]


def source_domains(config):
    """Names of the domains to train on, in the set's order: `source_domains`, or all but `target_domain`."""
    return _sources(_open(config), config)


def class_count(config):
    """Number of classes: `num_classes`, or where that is 0 what the set has (folders: read from the disk)."""
    # A set of folders is not opened where the number is known: eval.py may run where only the target is.
    if config.domain_set == "folders" and config.num_classes:
        return config.num_classes
    return len(SETS[config.domain_set].classes or SETS[config.domain_set](config).classes)


def image_size(config):
    """Height and width of the images a network gets: `image_size`, or where that is 0 the set's own."""
    return config.image_size or SETS[config.domain_set].image_size


def build_loaders(config, device, batch_size, batch_key="batch_size"):
    """{domain: TrainLoader} of the source domains, in the set's order.

    batch_size: images per domain, step and process. batch_key: the key it comes from, for messages.

    Raises:
        UserError: unknown target, fewer than two sources, missing or damaged files, a source domain with no
            training image of some class, a batch larger than a domain.
    """
    domain_set, size = _open(config), image_size(config)
    change = flip if config.augment == "flip" else augment.build(config.augment)
    loaders, present = {}, set()
    for domain in _sources(domain_set, config):
        split = thin_out(domain_set.train(domain), config.train_size_per_domain, config.seed, domain)
        _check_classes(domain_set, domain, split.labels)
        present.update(split.labels.tolist())
        if batch_size * device.world > len(split.labels):
            raise UserError(
                f"{batch_key}: {batch_size} x {device.world} processes is more than the {len(split.labels)} "
                f"training images of domain {domain}; choose a smaller one"
            )
        loaders[domain] = TrainLoader(
            split,
            batch_size,
            config.seed,
            domain,
            CHANNELS,
            size,
            change,
            rank=device.rank,
            world=device.world,
        )
    untrained = [name for label, name in enumerate(domain_set.classes) if label not in present]
    if untrained:
        raise UserError(f"no source domain has a training image of class {shortened(untrained, 3)}; add some")
    return loaders


def _check_classes(domain_set, domain, labels):
    counts = np.bincount(labels, minlength=len(domain_set.classes))
    missing = [name for name, count in zip(domain_set.classes, counts, strict=True) if count == 0]
    if missing and not domain_set.allow_missing_classes:
        raise UserError(
            f"domain {domain} has no training image of class {shortened(missing, 3)}; add some, or lower "
            "holdout, or raise train_size_per_domain"
        )


def held_out(config, device):
    """{domain: TestLoader} over the held-out images of the source domains; None where there are none."""
    domain_set, size = _open(config), image_size(config)
    splits = {domain: domain_set.held_out(domain) for domain in _sources(domain_set, config)}
    loaders = {
        domain: TestLoader(split, config.eval_batch_size, CHANNELS, size)
        for domain, split in splits.items()
        if len(split.labels)
    }
    return loaders or None


def test_sets(config, device):
    """{domain: TestLoader} over every domain, this rank's share of each; the target domain comes last.

    A source domain is tested on its test split (digits) or, where there is none (folders), on its held-out
    images; the target on its test split (digits) or on all of its images (folders), as published for PACS.
    """
    domain_set, size = _open(config), image_size(config)
    splits = {domain: domain_set.test(domain) for domain in _sources(domain_set, config)}
    splits[config.target_domain] = domain_set.target_test(config.target_domain)
    return {
        domain: TestLoader(split, config.eval_batch_size, CHANNELS, size, device.rank, device.world)
        for domain, split in splits.items()
        if len(split.labels)  # with `holdout: 0` a source domain of folders has no test image
    }
