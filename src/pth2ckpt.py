"""Converts published PyTorch weights of HarDNet: python -m src.pth2ckpt --pth FILE.pth --ckpt FILE.ckpt

Options: --variant 39ds | 68ds | 68 | 85 (default: told from the shapes), --class_num N (default: likewise),
--weights NAME: which of several sets of weights in the file, state_dict_ema for instance, or ema for short
(default: state_dict).
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import logging
import re
import sys
from pathlib import Path

import numpy as np

from model_utils import cli, paths, run_log
from model_utils.config import read_arguments
from model_utils.errors import UserError, shortened

USAGE = (
    "usage: python -m src.pth2ckpt --pth FILE.pth --ckpt FILE.ckpt "
    "[--variant 85] [--class_num 1000] [--weights ema]"
)
log = logging.getLogger("run")

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
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
    from model_utils.restricted_pickle import load_torch

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


def infer_variant(values, path):
    """The variant that an archive's first layers belong to."""
    from src.networks.hardnet import VARIANTS

    first = values.get("base.0.conv.weight", np.empty(0)).shape[0]
    separable = "base.2.dwconv.weight" in values
    for name, row in VARIANTS.items():
        if (row.stem[0], row.separable) == (first, separable):
            return name
    raise UserError(f"{path} is no HarDNet of {', '.join(VARIANTS)}: it has {shortened(sorted(values), 3)}")


def published_names(network):
    """{parameter of ours: its name in the published file}, in the network's order.

    The names differ in batch normalisations and in the classifier, the published list's last cell.
    """
    head = f"base.{len(network.base)}.3"
    names = {}
    for parameter in network.get_parameters():
        cell, kind = parameter.name.rsplit(".", 1)
        if cell == "classifier":
            names[parameter.name] = f"{head}.{kind}"
        else:
            names[parameter.name] = f"{cell}.{_NORM[kind] if cell.endswith('.norm') else kind}"
    return names


def fill(network, values, path):
    """Copy a published network's weights into `network`, a HarDNet; all names and shapes must match.

    Raises:
        UserError: it lists what is missing, left over or of another shape, or names a weight that is not
            finite; nothing was changed then.
    """
    import mindspore as ms

    names = published_names(network)
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    wrong = [
        f"{theirs} {values[theirs].shape} for {tuple(parameters[ours].shape)}"
        for ours, theirs in names.items()
        if theirs in values and values[theirs].shape != tuple(parameters[ours].shape)
    ]
    missing = sorted(set(names.values()) - set(values))
    extra = sorted(set(values) - set(names.values()))
    parts = (("missing", missing), ("left over", extra), ("other shape", wrong))
    problems = "; ".join(f"{title}: {shortened(found, 4)}" for title, found in parts if found)
    if problems:
        raise UserError(f"{path} is no HarDNet {network.variant} of {network.class_num} classes ({problems})")
    # Only now: a hostile file can name one large storage many thousand times, for nothing until it is copied.
    with np.errstate(over="ignore"):
        weights = {name: np.array(values[name], np.float32, order="C") for name in names.values()}
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise UserError(f"{path}: {name} is infinite or not a number; use another file")
    for ours, theirs in names.items():
        ms.ops.assign(parameters[ours], ms.Tensor(weights[theirs]))


def convert(pth, ckpt, variant=None, class_num=None, weights=None):
    """Write the weights in the PyTorch file `pth` as the checkpoint `ckpt`, atomically.

    The variant and the number of classes are stored with it, for eval.py and export.py. `weights`: which
    ones of several in the file, see `choose`.

    Returns:
        The network that was written, in evaluation mode.

    Raises:
        UserError: either file can't be used, or the weights are not those of the variant.
    """
    from model_utils import checkpoint
    from src.networks.hardnet import hardnet

    if Path(ckpt).suffix != ".ckpt":
        raise UserError(f"ckpt: {ckpt} must end in .ckpt")
    values = read_state(pth, weights)
    variant = variant or infer_variant(values, pth)
    if class_num is None:
        heads = [value for name, value in values.items() if re.fullmatch(r"base\.\d+\.3\.bias", name)]
        class_num = heads[0].size if len(heads) == 1 else 1000
    network = hardnet(variant, class_num)
    fill(network, values, pth)
    config = {
        "method": "hardnet",
        "experiment": f"hardnet{variant}",
        "variant": variant,
        "class_num": class_num,
    }
    try:
        checkpoint.save_cell(network, ckpt, {"format": checkpoint.FORMAT, "config": config})
    except OSError as error:
        raise UserError(f"ckpt: {ckpt}: {error.strerror or error}; choose another place") from error
    return network


def main():
    """The command."""
    given = read_arguments(sys.argv[1:])
    if "help" in given:
        print(__doc__.strip())
        return 0
    known = ("pth", "ckpt", "variant", "class_num", "weights")
    for name in given:
        if name not in known:
            raise UserError(f"unknown option --{name}; {USAGE}")
        if given[name] is True:
            raise UserError(f"--{name} needs a value; {USAGE}")
    if not given.get("pth") or not given.get("ckpt"):
        raise UserError(f"--pth and --ckpt are needed; {USAGE}")
    class_num = given.get("class_num")
    if class_num is not None and not re.fullmatch(r"[1-9]\d{0,6}", class_num):
        raise UserError(f"class_num: {class_num[:40]!r} is not allowed; allowed: a whole number >= 1")
    number = None if class_num is None else int(class_num)
    import mindspore as ms

    ms.set_device("CPU")  # nothing is computed here; no accelerator has to be taken for it
    run_log.setup()
    files = (paths.expanded(given[name], name) for name in ("pth", "ckpt"))
    network = convert(*files, given.get("variant"), number, given.get("weights"))
    count = len(list(network.get_parameters()))
    print(f"{given['ckpt']}: HarDNet {network.variant}, {network.class_num} classes, {count} parameters")
    return 0


if __name__ == "__main__":
    cli.run(main)
