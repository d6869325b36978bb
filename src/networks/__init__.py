"""The contract of a network, and how one is found by its name.

A network is a backbone with a class head. One module of this package is one family of backbones; it holds a
class `Family(networks.Family)`, and a network's name is the module's name followed by a variant:
`hardnet39ds` is variant "39ds" of src/networks/hardnet.py, `mindcv/resnet18` variant "/resnet18" of
src/networks/mindcv.py.

    find("hardnet39ds")          -> (Family, "39ds")
    build(config, 7)             -> Classifier: images -> logits of 7 classes
    preparation(config)          -> how its images are prepared

Methods see `Classifier` only: `features`, `classify`, `feature_size`, `masks`. They do not know
any layer of a backbone.
"""

import dataclasses
import difflib
import functools
import importlib
import pkgutil

from model_utils.errors import UserError
from model_utils.key import Key
from src.networks._initial import CHOICES, DEFAULT
from src.networks.heads import Bottleneck, Classifier, LinearHead

DIGITS = 10  # classes of the digit data sets
POLICIES = ("joint", "per_domain", "frozen")


def keys():
    """The keys of every network; a family adds its own (`Family.keys`)."""
    return {
        "network": Key(
            "dann",
            "backbone: dann, lenet, digits, photos, alexnet, hardnet39ds, hardnet68ds, hardnet68, hardnet85, "
            "efficientnet_lite0 to efficientnet_lite2, or mindcv/<name>",
        ),
        "pretrained": Key(
            "auto",
            "initial weights: auto takes those that ship with a dependency, none starts from random ones, "
            "FILE is a checkpoint or run folder, or the authors' file",
            path=True,
        ),
        "initial_weights": Key(
            DEFAULT,
            "random weights to start from, where there are no others: default is MindSpore's own, glorot "
            "draws weights uniformly after Glorot & Bengio with biases 0, glorot_biases draws biases, too",
            choices=CHOICES,
        ),
        "num_classes": Key(0, "number of classes; 0: as many as the labelled data have", low=0),
        "bottleneck": Key(
            0,
            "units of a dense layer with batch normalisation between backbone and class head; 0: none",
            low=0,
        ),
        "freeze_backbone": Key(
            False, "train only what follows the backbone; its batch normalisation keeps its statistics, too"
        ),
        "batch_norm": Key(
            "joint",
            "batch normalisation of the backbone in training: joint takes the statistics of all domains of a "
            "step together, per_domain those of each domain for itself, frozen keeps the stored ones",
            choices=POLICIES,
        ),
        "image_size": Key(
            0, "side of the square images the network gets, pixels; 0: the network's own", low=0, high=4096
        ),
        "crop_pct": Key(
            0.0,
            "evaluation: image_size as a share of the side the image is resized to; 0: the network's own",
            low=0,
            high=1,
        ),
        "dropout": Key(
            0.5,
            "dropout probability of networks dann, digits, photos and alexnet; others have their own",
            low=0,
            below=1,
        ),
    }


class Family:
    """What a family of backbones says of itself; a module of this package overrides what differs.

    Attributes:
        variants: what may follow the module's name in a network's name.
        keys: configuration keys of this family only.
        prefixes: what the names of backbone's and class head's parameters begin with in checkpoints.
        weights_from: where the authors' weights are to be had, for a message; "" without such.
        head_draws_first: whether the head's dropout mask is drawn before the backbone's.
    """

    variants = ("",)
    keys = {}
    prefixes = ("", "classifier.")
    weights_from = ""
    head_draws_first = False

    def knows(self, variant):
        """Whether the family has this variant; UserError where it can say better than `find` why not."""
        return variant in self.variants

    def preparation(self, variant, config):
        """The `Preparation` of its images, before the configuration's own size and crop."""
        raise NotImplementedError

    def backbone(self, variant, config, preparation, twice=False):
        """The untrained backbone; with `twice`, of operators that have second derivatives.

        It is an nn.Cell, images (N, C, S, S) and masks -> features (N, feature_size), with the attributes
        `feature_size`, `masks`: ((shape of one image's dropout mask, probability), …) in the order of its
        arguments, and `head_dropout`: the probability before the class head.

        Raises:
            UserError: an image size that it can't take.
        """
        raise NotImplementedError

    def head(self, backbone, classes, config):
        """The published class head: features and masks -> logits. A dense layer, unless overridden."""
        return LinearHead(backbone.feature_size, classes, backbone.head_dropout)

    def packaged(self, variant):
        """{name: array} of weights that ship with a dependency, class head included, or None if none do."""
        return None

    def renamed(self, values, network):
        """{name: array} of a checkpoint under our names, where the library it is from has others for them."""
        return values

    def read_published(self, variant, path, network):
        """{name: array} out of a file of the authors' own format, a class head where it has one.

        Raises:
            UserError: no such format is known for this family, or the file is not of it.
        """
        raise UserError(
            f"pretrained: {path} is no checkpoint (.ckpt); no other format is known for this network"
        )


def check_size(name, preparation, size):
    """UserError unless the images have the one size that network `name` takes."""
    if preparation.size != size:
        raise UserError(
            f"image_size: {preparation.size}, but network {name} takes {size}; set image_size to {size} or "
            "choose another network"
        )


def check_least(name, preparation, least):
    """UserError unless the images have the `least` pixels a side that network `name` needs."""
    if preparation.size < least:
        raise UserError(
            f"image_size: {preparation.size}, but network {name} takes {least} pixels or more; give a larger "
            "size, or 0 for the network's own"
        )


def modules():
    """Names of the families: the modules of this package that hold one."""
    shared = ("heads", "input_norm", "pretrained")
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name not in shared and not name.startswith("_"))


@functools.cache
def family(name):
    """The Family of a module."""
    return importlib.import_module(f"{__name__}.{name}").Family()


def available():
    """Every network's name."""
    return [f"{module}{variant}" for module in modules() for variant in family(module).variants]


def find(name):
    """(Family, variant) of a network's name; UserError that lists the names if there is none."""
    begins = [module for module in modules() if name.startswith(module)]
    for module in sorted(begins, key=len, reverse=True):
        variant = name[len(module) :]
        if family(module).knows(variant):
            return family(module), variant
    names = available()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    short = [known for known in names if "/" not in known]
    raise UserError(
        f"network: {name!r:.60} does not exist; {hint}networks: {', '.join(short)}, mindcv/<name>"
    )


def preparation(config):
    """The `Preparation` of the configuration's network: its own, with the configuration's size and crop."""
    chosen, variant = find(config.network)
    own = chosen.preparation(variant, config)
    changes = {"size": config.image_size, "crop_pct": config.crop_pct}
    changes = {name: value for name, value in changes.items() if value}
    return dataclasses.replace(own, **changes)


def build(config, classes, twice=False, dropout=None, backbone=None):
    """The untrained network of a configuration.

    Args:
        config: with `keys()` and the family's own keys.
        classes: number of logits, >= 1.
        twice: whether gradients of gradients will be asked for.
        dropout: takes the place of the key `dropout`, if given.
        backbone: takes the place of the network's own, if given.

    Raises:
        UserError: no such network, or an image size that it can't take.
    """
    if dropout is not None:
        config = config.replace(dropout=dropout)
    chosen, variant = find(config.network)
    prepared = preparation(config)
    backbone = backbone or chosen.backbone(variant, config, prepared, twice)
    neck = Bottleneck(backbone.feature_size, config.bottleneck) if config.bottleneck else None
    if neck is None:
        head = chosen.head(backbone, classes, config)
    else:
        head = LinearHead(config.bottleneck, classes)
    return Classifier(backbone, neck, head, prepared, chosen)


def class_count(config, values):
    """The number of classes of a network's stored weights, {name: array}; `num_classes` where they don't
    tell.
    """
    chosen, _ = find(config.network)
    heads = sorted(n for n, v in values.items() if n.startswith(chosen.prefixes[1]) and v.ndim == 2)
    return values[heads[-1]].shape[0] if heads else config.num_classes or DIGITS
