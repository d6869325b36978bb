"""Every method on every network, on digits in whole arrays, on sets of image folders and on pairs of them.

Methods and networks are found by themselves. MATRIX=full tries all of them; without it a sample, in which
every method and every network occurs, keeps `make test` short.
"""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest
from helpers import build, build_network, make_data, options, test_sets, train, values

from model_utils import checkpoint
from model_utils.errors import UserError
from src import networks
from src.exported import exporting
from src.networks import alexnet
from src.setup import settings as experiment
from src.train_cells import method_names

# Hardnet and deepall are names of supervised training.
METHODS = [name for name in method_names() if name not in ("hardnet", "deepall")]
# Of a family of several networks one is tried. These are large: they get small images, and in the sample
# supervised training only, in PyNative mode: compiling them takes longest of all.
LARGE = {"hardnet": "hardnet39ds", "efficientnet_lite": "efficientnet_lite0", "mindcv": "mindcv/resnet18"}
NETWORKS = [LARGE.get(name, name) for name in networks.modules()]
KINDS = ("digits", "folders", "pair")
DOMAINS, CLASSES, IMAGES, SIDE = ("a", "b", "c"), ("round", "square"), 14, 36
FULL = os.environ.get("MATRIX") == "full"


def known(name):
    """Whether the network can be had here: MindCV is optional."""
    try:
        networks.find(name)
    except UserError:
        return False
    return True


def cases():
    """(method, network, kind of domains): kinds alternate, so that each method and network meets all."""
    small = [name for name in NETWORKS if name not in LARGE.values()]
    for i, method in enumerate(METHODS):
        for j, network in enumerate([*small, *LARGE.values()]):
            chosen = method == "supervised" if network in LARGE.values() else (i + j) % len(METHODS) == 0
            if (FULL or chosen) and network in NETWORKS:
                kind = KINDS[(i + j // len(METHODS)) % len(KINDS)]
                kind = "folders" if (method, kind) == ("masf", "pair") else kind  # it needs two sources
                yield pytest.param(method, network, kind, id=f"{method}-{network.replace('/', '.')}-{kind}")


@functools.cache
def folders():
    """A folder of domains of two classes: discs and squares in three colours."""
    root = Path(tempfile.mkdtemp(prefix="matrix-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    rng = np.random.default_rng(0)
    for number, domain in enumerate(DOMAINS):
        for name in CLASSES:
            (root / domain / name).mkdir(parents=True)
            for index in range(IMAGES):
                image = rng.integers(0, 90, (SIDE, SIDE, 3)).astype(np.uint8)
                colour = [int(value) for value in np.roll([230, 90, 30], number)]
                x, y = (int(value) for value in rng.integers(14, 22, 2))
                if name == "round":
                    cv2.circle(image, (x, y), 9, colour, -1)
                else:
                    cv2.rectangle(image, (x - 8, y - 8), (x + 8, y + 8), colour, -1)
                assert cv2.imwrite(str(root / domain / name / f"{index:02d}.png"), image)
    return root


DATA = {
    "digits": lambda: {"domain_set": "demo", "target_domain": "50", "source_domains": "0,25"},
    "folders": lambda: {"domain_set": "folders", "domains_image_root": folders(), "target_domain": "c"},
    "pair": lambda: {"source_image_root": folders() / "a", "target_image_root": folders() / "c"},
}
STEPS = {
    "dann": {"batch_size": 8, "steps_per_epoch": 2, "n_pretrain_epochs": 1, "n_epoch": 1},
    "adda": {"batch_size": 8, "iterations": 1, "discriminator_iterations": 1, "adversary_iterations": 2},
    "masf": {"meta_batch_size": 8, "train_iterations": 2, "inner_lr": 0.01, "outer_lr": 0.001},
    "supervised": {"batch_size": 8, "train_iterations": 2},
    "mcc": {"batch_size": 8, "iterations": 2},
    "adamatch": {"batch_size": 4, "iterations": 2},
    "shot": {"batch_size": 8, "iterations": 2, "pseudo_interval": 1},
}


def settings_of(method, network, kind):
    """A few steps of a method, everything else as its defaults are; large networks get small images."""
    keys = {"method": method, "network": network, "pretrained": "none", "bottleneck": 8, **DATA[kind]()}
    if network in LARGE.values():
        keys |= {"image_size": 32, "mode": "graph" if FULL else "pynative"}
    if method == "shot":
        of_network = {name: keys[name] for name in ("network", "bottleneck", "image_size") if name in keys}
        keys |= make_data("shot", tuple("0123456789") if kind == "digits" else CLASSES, **of_network)
    if method == "masf" and network not in ("alexnet", *LARGE.values()):
        keys["meta_order"] = "second"
    return experiment.load(options(**keys, **STEPS[method], device_target="CPU"))


@pytest.fixture
def narrow(monkeypatch):
    """AlexNet of 67x67 pixels with 24 hidden units: with its optimizers it would take gigabytes."""
    monkeypatch.setattr(alexnet, "SIZE", 67)
    monkeypatch.setattr(alexnet, "HIDDEN", 24)
    monkeypatch.setattr(alexnet, "POOLED", (256, 1, 1))


@pytest.mark.parametrize("method, network, kind", cases())
def test_method_trains_resumes_and_exports_on_network(narrow, method, network, kind, place, tmp_path):
    if not known(network):
        pytest.skip(f"{network} is not installed here")
    settings = settings_of(method, network, kind)
    cell = build(settings, place)
    steps = sum(phase.steps for phase in cell.phases)
    before = values(cell)
    logged = train(cell, 0, steps - 1)
    checkpoint.save_state(cell.state(), {"step": steps - 1}, tmp_path / "at.ckpt")
    logged += train(cell, steps - 1, steps)
    assert all(np.isfinite(value) for _, scalars in logged for value in scalars.values())
    after = values(cell)
    trained = [p.name for p in cell.network.trainable_params()]
    still = [name for name in trained if np.array_equal(before[name], after[name])]
    # A gradient of 0 leaves a weight where it was: dead units of a network that saw a handful of images.
    assert len(still) <= len(trained) // 10, still

    # The same cell goes back: the last step has moved all that a checkpoint has to hold.
    checkpoint.restore_state(cell.state(), checkpoint.read(tmp_path / "at.ckpt")[0], "test")
    assert train(cell, steps - 1, steps) == logged[-1:]
    resumed = values(cell)
    assert [name for name in after if not np.array_equal(after[name], resumed[name])] == []

    images = next(iter(test_sets(settings, place).values())).sample(4, 0)[0]
    plain = build_network(settings, place).set_train(False)
    checkpoint.fill(
        {p.name: p for p in plain.get_parameters()},
        {p.name: after[p.name] for p in plain.get_parameters()},
        "network",
        "test",
    )
    assert plain(ms.Tensor(images)).shape == (len(images), len(cell.task.classes))
    file_format = "MINDIR" if kind == "digits" else "ONNX"
    assert exporting.export(plain, images, tmp_path / "net", file_format)[1] <= 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
def test_graph_mode_computes_what_pynative_mode_does_on_another_network(method, place):
    network = {"dann": "lenet", "adda": "dann", "masf": "dann"}.get(method, "photos")
    compiled = settings_of(method, network, "folders")
    steps = 2
    wanted = train(build(compiled, place), 0, steps)
    found = train(build(compiled.replace(mode="pynative"), place), 0, steps)
    for (_, left), (_, right) in zip(found, wanted, strict=True):
        for name in right:
            assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-4), name
