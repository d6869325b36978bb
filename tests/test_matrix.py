"""Every method on every network, on digits in whole arrays and on folders of images.

Methods and networks are found by themselves. Without DATA_ROOT each large network meets one method only,
which keeps `make test` short; with it, or with MATRIX=full, all of them are tried.
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
from helpers import build, build_network, test_sets, tiny_config, train, values

from model_utils import checkpoint
from model_utils.errors import UserError
from src import networks
from src.exported import exporting
from src.train_cells import method_names

METHODS = [
    name for name in method_names() if name not in ("hardnet", "deepall")
]  # names of supervised training
SMALL = ("dann", "lenet", "digits", "photos")
LARGE = ("hardnet39ds", "efficientnet_lite0", "mindcv/resnet18")
DOMAINS, CLASSES, IMAGES, SIDE = ("a", "b", "c"), ("round", "square"), 14, 36
FULL = bool(os.environ.get("DATA_ROOT")) or os.environ.get("MATRIX") == "full"


def known(name):
    """Whether the network can be had here: MindCV is optional."""
    try:
        networks.find(name)
    except UserError:
        return False
    return True


def pairs():
    """(method, network, kind of domain): kinds alternate, so that each method and network meets both."""
    found = []
    for i, method in enumerate(METHODS):
        for j, network in enumerate((*SMALL, *LARGE)):
            if network in LARGE and not FULL and j % len(METHODS) != i:
                continue
            found.append((method, network, ("digits", "folders")[(i + j) % 2]))
    return found


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


def settings_of(method, network, kind):
    keys = {
        "network": network,
        "pretrained": "none",
        "image_size": 0 if network in SMALL else 32,
        "bottleneck": 8,
    }
    if kind == "folders":
        keys |= {"domain_set": "folders", "domains_image_root": folders(), "target_domain": "c"}
    else:
        keys |= {"domain_set": "demo", "target_domain": "50", "source_domains": "0,25"}
    if method == "masf":
        keys |= {
            "meta_batch_size": 8,
            "train_iterations": 3,
            "meta_order": "second" if network in SMALL else "first",
        }
    else:
        keys |= {"batch_size": 8}
    own = {
        "dann": {"steps_per_epoch": 2, "n_pretrain_epochs": 1, "n_epoch": 1},
        "adda": {"iterations": 2, "discriminator_iterations": 1, "adversary_iterations": 2},
        "supervised": {"train_iterations": 3},
    }
    return tiny_config(method, **{**keys, **own.get(method, {})})


@pytest.mark.parametrize(("method", "network", "kind"), pairs(), ids="-".join)
def test_method_trains_resumes_and_exports_on_network(method, network, kind, place, tmp_path):
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

    again = build(settings, place, seed=settings.seed + 7)
    checkpoint.restore_state(again.state(), checkpoint.read(tmp_path / "at.ckpt")[0], "test")
    assert train(again, steps - 1, steps) == logged[-1:]
    resumed = values(again)
    assert [name for name in after if not np.array_equal(after[name], resumed[name])] == []

    images = next(iter(test_sets(settings, place).values())).sample(4, 0)[0]
    plain = build_network(settings, place).set_train(False)
    checkpoint.fill(
        {p.name: p for p in plain.get_parameters()},
        {p.name: after[p.name] for p in plain.get_parameters()},
        "network",
        "test",
    )
    expected = plain(ms.Tensor(images)).asnumpy()
    assert expected.shape == (4, len(cell.task.classes))
    file_format = "MINDIR" if kind == "digits" else "ONNX"
    assert exporting.export(plain, images, tmp_path / "net", file_format)[1] <= 1e-4


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
