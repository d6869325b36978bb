"""Networks `mindcv/<name>`: those of MindCV, MindSpore's library of image classifiers.

MindCV is optional (requirements-extra.txt) and imported only when one of its networks is asked for. A
network is made by MindCV's own create_model; its class head is taken out, whatever it is called there, and
what remains maps images to the features that the head would have got. All parameters keep MindCV's names but
the head's, which are `classifier.weight` and `classifier.bias`.
"""

import difflib
import functools
import importlib.util

import mindspore as ms
import numpy as np
from mindspore import nn

from model_utils import checkpoint
from model_utils.errors import UserError, shortened
from src import networks, ops
from src.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from src.networks import _pairs

CLASSES = 1009  # of the head that is searched for and taken out; none has this many channels
OWN_HEAD = ("classifier.weight", "classifier.bias")


@functools.cache
def library():
    """MindCV's models; UserError if it is not installed, or not for this MindSpore."""
    if importlib.util.find_spec("mindcv") is None:
        raise UserError(
            "network: mindcv/<name> needs the package mindcv; pip install -r requirements-extra.txt, or "
            "choose another network"
        )
    try:
        from mindcv import models
    except Exception as error:  # whatever its code raises on a MindSpore that it was not made for
        raise UserError(f"network: mindcv can't be imported: {_first_line(error)}") from error
    return models


def _first_line(error):
    """Type and first line of a strange library's error, without the headings of MindSpore's reports."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("-")]
    return f"{type(error).__name__}: {lines[0]:.160}" if lines else type(error).__name__


def created(name, channels):
    """MindCV's network of `CLASSES` classes, random; UserError where MindCV fails."""
    try:
        return library().create_model(name, num_classes=CLASSES, in_channels=channels)
    except Exception as error:  # about one in fifty of its networks fails with a new MindSpore
        raise UserError(
            f"network: mindcv can't build {name} with MindSpore {ms.__version__}: {_first_line(error)}; "
            "choose another network"
        ) from error


def _is_head(cell):
    return isinstance(cell, nn.Dense | nn.Conv2d) and cell.out_channels == CLASSES


def take_out_head(model, name):
    """Put an identity in the place of the class head of `model`.

    Returns:
        (the head, a dense layer or convolution; the probability of the dropout before it; whether nothing but
        pooling stands behind it).

    Raises:
        UserError: it has no head, or several.
    """
    found = [(path, cell) for path, cell in model.cells_and_names() if _is_head(cell)]
    if len(found) != 1:
        heads = ", ".join(path for path, _ in found) or "none"
        raise UserError(f"network: mindcv/{name} has not one class head but {heads}; choose another network")
    head, identity, dropout, last = found[0][1], nn.Identity(), 0.0, True
    for _, parent in list(model.cells_and_names()):
        children = parent.name_cells()
        if not any(child is head for child in children.values()):
            continue
        for key, child in children.items():
            if child is head and isinstance(parent, nn.SequentialCell):
                last = int(key) == len(parent) - 1
                parent[int(key)] = identity
            elif child is head:
                setattr(parent, key, identity)
            elif isinstance(child, nn.Dropout):
                dropout = child.p
    return head, dropout, last


def calm(model):
    """Switch off what MindCV draws at random in training: dropout and stochastic depth.

    Its random numbers come from MindSpore's global state, so that no run could be repeated or resumed
    exactly.
    """
    for _, cell in model.cells_and_names():
        if isinstance(cell, nn.Dropout):
            cell.p = 0.0
        elif isinstance(cell, library().layers.drop_path.DropPath):
            cell.keep_prob = 1.0


class Backbone(nn.Cell):
    """A network of MindCV without its class head: float32 (N, C, S, S) -> features (N, feature_size).

    Attributes:
        feature_size: what the head would have got.
        masks: (), what MindCV draws at random inside is switched off.
        head_dropout: probability of the dropout that MindCV has before the head.
        published_head: names of the head's weight and bias in MindCV's own checkpoints; () where the head
            can't be used here, because there is more behind it.
    """

    def __init__(self, name, channels):
        super().__init__(auto_prefix=False)
        model = created(name, channels)
        head, self.head_dropout, last = take_out_head(model, name)
        calm(model)
        self.model, self.masks, self.feature_size = model, (), head.in_channels
        names = (head.weight.name, head.bias.name if head.has_bias else "")
        self.published_head = names if last else ()

    def construct(self, images):
        return self.model(images)


def _try(backbone, name, preparation):
    """Send one image through the network: many of MindCV's take one size only, and some lack a kernel.

    It also shows which normalisation follows which convolution, so that src/ops can join them.
    """
    shape = (1, preparation.channels, preparation.size, preparation.size)
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    backbone.set_train(False)
    ops.accelerate(backbone)  # MindSpore's own convolutions would take seconds on some processors
    try:
        given = _pairs.join(backbone, ms.Tensor(image)).shape
    except Exception as error:  # whatever its code raises for a size that it can't take
        raise UserError(
            f"network: mindcv/{name} fails on images of {preparation.size} pixels: {_first_line(error)}; "
            "choose another image_size or network"
        ) from error
    ops.strip(backbone)
    if given != (1, backbone.feature_size):
        raise UserError(
            f"network: mindcv/{name} gives features of shape {given}, where its class head takes "
            f"{backbone.feature_size}; choose another network"
        )


class Family(networks.Family):
    """Networks `mindcv/<name>`; MindCV knows the names."""

    variants = ()

    def knows(self, variant):
        if not variant.startswith("/"):
            return False
        names, name = library().list_models(), variant[1:]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean mindcv/{near[0]}? " if near else ""
            raise UserError(
                f"network: MindCV has no network {name!r:.60}; {hint}mindcv.models.list_models() names all "
                f"{len(names)}"
            )
        return True

    def preparation(self, variant, config):
        record = library().get_pretrained_cfg(variant[1:])
        return Preparation(
            record.get("input_size", (3, 224, 224))[1],
            crop_pct=0.875,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            crop_scale_min=0.35,
            flip=True,
        )

    def backbone(self, variant, config, preparation, twice=False):
        name = variant[1:]
        if twice:
            raise UserError(
                f"meta_order: mindcv/{name} is made of operators without second derivatives; set meta_order "
                "to first, or choose another network"
            )
        backbone = Backbone(name, preparation.channels)
        _try(backbone, name, preparation)
        return backbone

    def renamed(self, values, network):
        """MindCV's own checkpoints have the class head under its own name."""
        return renamed(values, network.backbone.published_head)

    def read_published(self, variant, path, network):
        if path.suffix != ".ckpt":
            raise UserError(f"pretrained: {path} must be a .ckpt file of MindCV, or a run folder of ours")
        values, _ = checkpoint.read(path)
        own = {parameter.name for parameter in network.backbone.get_parameters()}
        missing = sorted(own - set(values))
        if missing:
            raise UserError(
                f"pretrained: {path} is no checkpoint of {variant[1:]}: it lacks {shortened(missing, 3)}"
            )
        return self.renamed(values, network)


def renamed(values, published_head):
    """{name: array} with our names for the published head's two; its 1x1 convolution becomes a matrix."""
    out = dict(values)
    for theirs, ours in zip(published_head, OWN_HEAD, strict=False):
        if theirs in out and theirs != ours:
            out[ours] = out.pop(theirs)
    weight = out.get(OWN_HEAD[0])
    if published_head and weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1):
        out[OWN_HEAD[0]] = weight[:, :, 0, 0]
    return out
