"""Writes the network that tests/tiny/shot.yaml goes on with: untrained, with the names of its classes."""

import mindspore as ms

from model_utils import checkpoint
from src import networks
from src.setup import settings as experiment


def make(folder, classes=tuple("0123456789"), **keys):
    """Write source.ckpt into `folder`; returns the key that names it. keys: of the network."""
    chosen = {"network": "digits", "bottleneck": 8, **keys}
    settings = experiment.load(["--method=supervised", *(f"--{n}={v}" for n, v in chosen.items())])
    ms.set_seed(1)
    meta = {"format": checkpoint.FORMAT, "classes": list(classes), "config": settings.as_dict()}
    checkpoint.save_cell(networks.build(settings, len(classes)), folder / "source.ckpt", meta)
    return {"pretrained": folder / "source.ckpt"}
