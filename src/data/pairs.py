"""A source and a target domain, as DANN and ADDA read them: keys, training loaders and test sets."""

import numpy as np

from model_utils.errors import UserError
from model_utils.key import Key
from src import data
from src.data.augment import CHOICES, build
from src.data.loader import TestLoader, TrainLoader, split_validation


def keys(source, source_root, target, target_root):
    """The configuration keys of a domain pair, with a method's defaults."""
    names = "data set: mnist, mnist_m, usps, svhn, demo_digits or demo_photos"
    return {
        "source_dataset_name": Key(source, f"labelled {names}"),
        "source_image_root": Key(source_root, "folder of the source data set"),
        "target_dataset_name": Key(target, f"unlabelled {names}"),
        "target_image_root": Key(target_root, "folder of the target data set"),
        "validation_size": Key(
            1000,
            "images held out of each training split for the validation figures (the target's without labels)",
            low=0,
        ),
        "source_augment": Key("none", "augmentation of source training images", choices=CHOICES),
        "target_augment": Key("none", "augmentation of target training images", choices=CHOICES),
    }


def _load(config, side, split):
    name = getattr(config, f"{side}_dataset_name")
    loaded = data.load(name, getattr(config, f"{side}_image_root"), split, download=config.download)
    if len(loaded.labels) == 0:
        raise UserError(f"{side}_image_root: the {split} split of {name} holds no image")
    return loaded


def train_loaders(config, device, channels=3, size=28, select=None):
    """({"source": loader, "target": loader without labels}, the same of held-out data or None).

    The target's held-out labels are -1.

    select: None, or a function (split, side) -> split that thins out a training split before anything else.
    """
    training, held_out = {}, {}
    for side in ("source", "target"):
        whole = _load(config, side, "train")
        split, validation = split_validation(
            select(whole, side) if select else whole, config.validation_size, config.seed
        )
        training[side] = TrainLoader(
            split,
            config.batch_size,
            config.seed,
            side,
            channels,
            size,
            build(getattr(config, f"{side}_augment")),
            labelled=side == "source",
            rank=device.rank,
            world=device.world,
        )
        if validation is not None:
            if side == "target":
                validation = validation._replace(labels=np.full_like(validation.labels, -1))
            held_out[side] = TestLoader(validation, config.eval_batch_size, channels, size)
    return training, held_out or None


def test_sets(config, device, channels=3, size=28):
    """{"source": loader, "target": loader} over the test splits, this rank's share of each."""
    return {
        side: TestLoader(
            _load(config, side, "test"), config.eval_batch_size, channels, size, device.rank, device.world
        )
        for side in ("source", "target")
    }
