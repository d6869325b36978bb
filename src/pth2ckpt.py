"""Converts published PyTorch weights of HarDNet: python -m src.pth2ckpt --pth FILE.pth --ckpt FILE.ckpt

Options: --variant 39ds | 68ds | 68 | 85 (default: told from the shapes), --class_num N (default: likewise),
--weights NAME: which of several sets of weights in the file, state_dict_ema for instance, or ema for short
(default: state_dict). The published form, `python3 pth2ckpt.py --dataset_path FILE.pth` in src/, writes
FILE.ckpt into the current folder.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file, Python looks for modules in src/ only.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import re

from model_utils import cli, paths, run_log
from model_utils.config import read_arguments
from model_utils.errors import UserError

USAGE = (
    "usage: python -m src.pth2ckpt --pth FILE.pth --ckpt FILE.ckpt "
    "[--variant 85] [--class_num 1000] [--weights ema]"
)


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
    from src import networks
    from src.networks import _hardnet_weights as published
    from src.networks import hardnet
    from src.setup import settings as experiment

    if Path(ckpt).suffix != ".ckpt":
        raise UserError(f"ckpt: {ckpt} must end in .ckpt")
    values = published.read_state(pth, weights)
    variant = variant or hardnet.infer_variant(values, pth)
    classes = published.class_count(values)
    if class_num not in (None, classes):
        raise UserError(f"class_num: {pth} has {classes} classes, not {class_num}; leave it out")
    settings = experiment.load(["--method=hardnet", f"--variant={variant}", f"--num_classes={classes}"])
    network = networks.build(settings, classes)
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    checkpoint.fill(parameters, published.arranged(values, network, pth), f"HarDNet {variant}", pth)
    stored = {name: getattr(settings, name) for name in ("method", "network", "num_classes")}
    meta = {"format": checkpoint.FORMAT, "config": {**stored, "experiment": settings.network}}
    try:
        checkpoint.save_cell(network, ckpt, meta)
    except OSError as error:
        raise UserError(f"ckpt: {ckpt}: {error.strerror or error}; choose another place") from error
    return network


def main():
    """The command."""
    given = read_arguments(sys.argv[1:])
    if "help" in given:
        print(__doc__.strip())
        return 0
    if isinstance(given.get("dataset_path"), str) and "pth" not in given:
        given["pth"] = given.pop("dataset_path")
        given.setdefault("ckpt", Path(given["pth"]).with_suffix(".ckpt").name)
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
    print(
        f"{given['ckpt']}: HarDNet {network.backbone.variant}, {network.classes} classes, {count} parameters"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
