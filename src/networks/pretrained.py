"""Initial weights of a network: from a dependency, a checkpoint of ours, or the authors' own file."""

import logging
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ops

from model_utils import checkpoint, paths
from model_utils.errors import UserError
from src import networks
from src.data.forms import compared

log = logging.getLogger("run")

AUTO, NONE = "auto", "none"


def load_initial(network, config, classes=None):
    """Fill `network`, a Classifier, as the key `pretrained` says. In a run that is resumed, do nothing.

    With other classes, another number of them, or a bottleneck, the class head stays a new one; one line says
    so.

    Args:
        classes: names of the classes in the order of the logits, if they are known.

    Raises:
        UserError: no such file, or it does not fit; nothing was changed then.
    """
    wanted = config.pretrained
    if config.resume or wanted.lower() == NONE or not wanted:
        return
    family, variant = networks.find(config.network)
    if wanted.lower() == AUTO:
        values = family.packaged(variant)
        if values is None:
            log.info("pretrained: none ship with network %s; initial weights are random", config.network)
            return
        fill(network, values, f"the packaged weights of {config.network}")
        return
    path = Path(paths.expanded(wanted, "pretrained"))
    if family.weights_from and path.suffix != ".ckpt" and not path.exists():
        raise UserError(f"pretrained: there is no {path}; get the weights from {family.weights_from}")
    if path.suffix == ".ckpt" or path.is_dir():
        values, where, names = _of_checkpoint(path)
        values = family.renamed(values, network)
        if not set(values) & {p.name for p in network.backbone.get_parameters()}:
            values = family.read_published(variant, path, network)
    else:
        values, where, names = family.read_published(variant, path, network), str(path), None
    different = ""
    if classes and names and tuple(classes) != names:
        different = compared(classes, names) or "in another order"
    fill(network, values, where, different)


def _of_checkpoint(path):
    """({name: array} of the network, which file it was, class names or None) of a file or run folder."""
    path, values, meta = checkpoint.read_network(path)
    return values, f"checkpoint {path}", checkpoint.class_names(meta, path)


def fill(network, values, where, different=""):
    """Copy {name: array} into a Classifier: the backbone whole, bottleneck and head where they fit.

    different: how the classes of the values differ from the network's, in words; the head does not fit then.

    Raises:
        UserError: the backbone's names or shapes are others, or a value is not finite; nothing was changed
            then.
    """
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise UserError(f"pretrained: {where}: {name} is infinite or not a number; use another file")
    backbone = {p.name: p for p in network.backbone.get_parameters()}
    own = {n: v for n, v in values.items() if n in backbone}
    behind = {p.name: p for p in network.get_parameters() if p.name not in backbone}
    strange = {n: v for n, v in values.items() if n not in backbone and n not in behind}
    if strange and not _head_only(strange, network):
        own |= strange  # so that the message below lists them
    checkpoint.fill(backbone, own, "network's backbone", where)
    rest = {n: v for n, v in values.items() if n in behind}
    same_names = not different and behind.keys() == rest.keys()
    if same_names and all(rest[n].shape == tuple(behind[n].shape) for n in rest):
        for name, parameter in behind.items():
            ops.assign(parameter, ms.Tensor(rest[name], parameter.dtype))
        log.info("starting from the weights of %s", where)
        return
    before = next((v.shape[0] for n, v in values.items() if n not in own and v.ndim == 2), None)
    if different:
        begin = f"its class head is of other classes ({different}) and is replaced by"
    elif before:
        begin = f"its class head of {before} classes is replaced by"
    else:
        begin = "it has no class head that fits: ours is"
    log.info("starting from the weights of %s; %s a new one of %d classes", where, begin, network.classes)


def _head_only(strange, network):
    """Whether names that the network lacks can only be those of another class head or bottleneck."""
    prefixes = (*network.head_prefixes, "bottleneck.")
    return all(name.startswith(prefixes) for name in strange)
