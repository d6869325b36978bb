"""Published PyTorch weights of HarDNet, read without executing anything in the file."""

import logging
import re

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.restricted_pickle import load_torch
from src.networks._packages import PYTORCH_NORM

log = logging.getLogger("run")

_WRAPPED = "module."  # what torch.nn.DataParallel puts before every name
_COUNTER = ".num_batches_tracked"  # PyTorch's count of training steps, which evaluation has no use for


def _is_weights(value):
    return isinstance(value, dict) and value and all(isinstance(v, np.ndarray) for v in value.values())


def choose(loaded, path, wanted=None):
    """The weights in what a `.pth` file holds: itself, or one of its entries; a choice is logged.

    Args:
        wanted: the entry's name, or "ema" for the one that has this in its name; None: "state_dict", else
            the only one there is.

    Raises:
        UserError: no such entry, or several and none was asked for.
    """
    found = {} if _is_weights(loaded) or not isinstance(loaded, dict) else loaded
    names = [name for name, value in found.items() if isinstance(name, str) and _is_weights(value)]
    shown = shortened(names, 5) or "none"
    if wanted is not None:
        chosen = [name for name in names if name == wanted]
        chosen = chosen or [name for name in names if wanted == "ema" and "ema" in name.lower()]
        if len(chosen) != 1:
            raise UserError(f"weights: {path} has no single entry {wanted!r:.60} of weights; it has {shown}")
        log.info("%s: weights %s taken; there are %s", path, chosen[0], shown)
        return loaded[chosen[0]]
    if "state_dict" in found:
        others = [name for name in names if name != "state_dict"]
        if others:
            log.info(
                "%s: weights state_dict taken; it also holds %s (--weights %s)",
                path,
                shortened(others, 5),
                others[0],
            )
        return loaded["state_dict"]
    if len(names) > 1:
        raise UserError(f"{path} holds several sets of weights, {shown}; choose one with --weights NAME")
    return loaded[names[0]] if names else loaded


def read_state(path, weights=None):
    """{name: numpy array} of a `.pth` file: a state_dict, or a training checkpoint that holds one.

    Names lose DataParallel's "module."; a batch normalisation's step counter is left out. `weights`: which
    entry of a training checkpoint, see `choose`.

    Raises:
        UserError: no such file, not a PyTorch file, no state_dict.
    """
    state = choose(load_torch(path), path, weights)
    if not isinstance(state, dict) or not state:
        raise UserError(
            f"{path} holds no state_dict; save the network's with torch.save(network.state_dict(), …)"
        )
    others = [str(name) for name, value in state.items() if not isinstance(value, np.ndarray)]
    if others or not all(isinstance(name, str) for name in state):
        raise UserError(
            f"{path} holds more than weights: {shortened(others, 4)}; give a file of a state_dict"
        )
    if all(name.startswith(_WRAPPED) for name in state):
        state = {name[len(_WRAPPED) :]: value for name, value in state.items()}
    norms = {name[: -len(".running_mean")] for name in state if name.endswith(".running_mean")}
    counters = {norm + _COUNTER for norm in norms}
    return {name: value for name, value in state.items() if name not in counters}


def published_names(network):
    """{parameter of ours: its name in the published file}, in the network's order.

    The names differ in batch normalisations and in the classifier, the published list's last cell.

    Args:
        network: a Classifier with a HarDNet as its backbone.
    """
    head = f"base.{len(network.backbone.base)}.3"
    names = {}
    for parameter in network.get_parameters():
        cell, kind = parameter.name.rsplit(".", 1)
        if cell == "classifier":
            names[parameter.name] = f"{head}.{kind}"
        else:
            names[parameter.name] = f"{cell}.{PYTORCH_NORM[kind] if cell.endswith('.norm') else kind}"
    return names


def read(path, network):
    """{parameter's name: array} of a published network's weights; all names and shapes must match but the
    classes.

    Args:
        path: the authors' `.pth` file.
        network: a Classifier with a HarDNet as its backbone; it says which variant is wanted.

    Raises:
        UserError: it lists what is missing, left over or of another shape, or names a weight that is not
            finite.
    """
    return arranged(read_state(path), network, path)


def arranged(values, network, path):
    """What `read_state` returned under our names; see `read`."""
    names = published_names(network)
    shapes = {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}
    wrong = [
        f"{theirs} {values[theirs].shape} for {shapes[ours]}"
        for ours, theirs in names.items()
        # The number of classes may differ: it belongs to the task, not to the network.
        if theirs in values and values[theirs].shape[not_classes(ours) :] != shapes[ours][not_classes(ours) :]
    ]
    missing = sorted(set(names.values()) - set(values))
    extra = sorted(set(values) - set(names.values()))
    parts = (("missing", missing), ("left over", extra), ("other shape", wrong))
    problems = "; ".join(f"{title}: {shortened(found, 4)}" for title, found in parts if found)
    if problems:
        raise UserError(f"{path} is no HarDNet {network.backbone.variant} ({problems})")
    # Values are copied only now. A hostile file can name one large storage many thousand times, which costs
    # nothing until it is copied.
    with np.errstate(over="ignore"):
        weights = {ours: np.array(values[theirs], np.float32, order="C") for ours, theirs in names.items()}
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise UserError(f"{path}: {names[name]} is infinite or not a number; use another file")
    return weights


def not_classes(name):
    """The first axis of a parameter that does not count classes: 1 in the classifier, else 0."""
    return int(name.startswith("classifier."))


def class_count(values):
    """Number of classes of a published network's weights; 1000 where they do not tell."""
    heads = [value for name, value in values.items() if re.fullmatch(r"base\.\d+\.3\.bias", name)]
    return heads[0].size if len(heads) == 1 else 1000
