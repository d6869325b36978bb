"""What release 1 computed is what this one computes: losses, networks, checkpoints and exported files.

tests/records/ holds what that release gave. `python tests/records/record_losses.py --check
tests/records/losses.json` compares all configurations over 20 steps; here a few are compared over their first
steps, because one rounding differently, on another processor, grows from step to step.
"""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers import ROOT

from model_utils import checkpoint
from src import data, networks
from src.exported import model_files, trained
from src.losses.mapping import Discriminator
from src.losses.metric import MetricNetwork
from src.networks.heads import DomainHead
from src.ops import accelerate
from src.setup import settings as experiment
from tests.records import record_losses

RECORDS = ROOT / "tests" / "records"
FILES = RECORDS / "files"
LOSSES = json.loads((RECORDS / "losses.json").read_text(encoding="utf-8"))
NETWORKS = json.loads((RECORDS / "networks.json").read_text(encoding="utf-8"))
LOGITS = json.loads((FILES / "logits.json").read_text(encoding="utf-8"))
CASES = (
    "config/demo",
    "dann_best/demo",
    "adda_mnist_usps/demo",
    "masf_rotated_mnist/demo",
    "deepall_rotated_mnist/demo",
    "masf_pacs_small/demo",
    pytest.param("tiny_hardnet/demo", marks=pytest.mark.thorough),
)
STEPS = 3  # compared of each phase's beginning


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    record_losses.generate(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_first_losses_of_a_configuration_are_those_of_release_1(name, generated, place):
    config, overrides, _ = record_losses.cases()[name]
    folders = {"DATA_ROOT": "", "MNIST_M": "", "GENERATED": generated}
    options = record_losses.as_options(config, overrides, folders)
    cell = record_losses.build(record_losses.resolve(options), place)
    taken = [
        value["loss"] for _, value in record_losses.drive(cell, lambda index: STEPS if index == 0 else 0)
    ]
    wanted = LOSSES[name]["losses"][: len(taken)]
    assert len(taken) == STEPS
    np.testing.assert_allclose([float(loss) for loss in taken], wanted, rtol=1e-4)


# Networks: names and shapes of the parameters, and logits for weights of a fixed recipe.


def draw(shapes):
    """{name: float32 array} for {name: shape}: the recipe of the record, in the order of the alphabet."""
    rng, drawn = np.random.default_rng(0), {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith(("moving_variance", "gamma")):
            array = 0.5 + rng.random(shape)
        elif name.endswith(("moving_mean", "beta", "bias")):
            array = 0.1 * rng.standard_normal(shape)
        else:
            array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        drawn[name] = array.astype(np.float32)
    return drawn


def made(name):
    """The cell that the record calls `name`."""
    parts = {
        "dann-domain_classifier": lambda: DomainHead(800),
        "adda-discriminator": lambda: Discriminator(10),
        "masf-metric-128": lambda: MetricNetwork(128),
    }
    if name in parts:
        return parts[name]()
    network, kind = name.rsplit("-", 1)
    words = [f"--network={network}", *([f"--input_norm={kind}"] if not kind.isdigit() else [])]
    size = 64 if network.startswith("hardnet") else 0
    settings = experiment.load(["--method=supervised", f"--image_size={size}", *words])
    return networks.build(settings, int(kind) if kind.isdigit() else 10)


def recorded_networks():
    """Their names; the largest is tried only where tests are thorough."""
    for name in sorted(NETWORKS["networks"]):
        yield pytest.param(name, marks=pytest.mark.thorough) if name.startswith("hardnet85") else name


@pytest.mark.parametrize("name", recorded_networks())
def test_network_has_the_parameters_and_logits_of_release_1(name):
    wanted = NETWORKS["networks"][name]
    cell = made(name)
    listed = [[p.name, list(p.shape)] for p in cell.get_parameters()]
    assert hashlib.sha256(json.dumps(listed).encode()).hexdigest() == wanted["sha256"]
    if "logits" not in wanted:
        return
    parameters = {p.name: p for p in cell.get_parameters()}
    checkpoint.fill(parameters, draw({name: tuple(shape) for name, shape in listed}), name, "the recipe")
    cell.set_train(False)
    rng = np.random.default_rng(1)
    shape = wanted["images"]
    images = (rng.standard_normal(shape) if wanted["normal"] else rng.random(shape)).astype(np.float32)
    for logits in ("plain", "logits"):
        np.testing.assert_allclose(cell(ms.Tensor(images)).asnumpy(), wanted[logits], rtol=1e-4, atol=1e-4)
        accelerate(cell)


@pytest.mark.parametrize("name", sorted(NETWORKS["runs"]))
def test_configuration_stored_by_release_1_builds_its_network(name):
    run = NETWORKS["runs"][name]
    settings = experiment.load([], stored=run["meta"]["config"])
    stored = run["meta"]["config"]
    classes = stored.get("class_num") or 10
    listed = [[p.name, list(p.shape)] for p in networks.build(settings, classes).get_parameters()]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    assert digest == run["training_checkpoint"]["network_sha256"]
    same = {key for key in stored if key in settings.keys}
    changed = {key for key in same if settings.as_dict()[key] != stored[key]}
    assert changed <= {"experiment"}


# Files


@pytest.fixture(scope="module")
def images(place):
    """{which network: images as the record took them}."""
    split = data.load("demo_photos", "", "test")
    photos = networks.preparation(experiment.load([])).to_network(split.images[LOGITS["dann"]["indices"]])
    assert hashlib.sha256(photos.tobytes()).hexdigest() == LOGITS["dann"]["images_sha256"]
    settings = experiment.load([f"--config={ROOT / 'tests/tiny/masf.yaml'}"])
    loader = record_losses.build(settings, place).task.test(networks.preparation(settings))["50"]
    batches = [part for part, _ in loader]
    digits = np.concatenate(batches)[LOGITS["masf"]["indices"]]
    assert hashlib.sha256(digits.tobytes()).hexdigest() == LOGITS["masf"]["images_sha256"]
    return {"dann": photos, "masf": digits}


def wanted(which, name):
    return LOGITS[which]["files"][name]["logits"]


@pytest.mark.parametrize(
    ("which", "name"),
    [("dann", "network.ckpt"), ("dann", "step-00000040.ckpt"), ("masf", "masf_network.ckpt")],
)
def test_checkpoint_of_release_1_gives_the_same_logits(which, name, images, tmp_path):
    path = FILES / name
    if not path.is_file():
        path = tmp_path / name
        with gzip.open(FILES / f"{name}.gz") as packed, open(path, "wb") as file:
            shutil.copyfileobj(packed, file)
    settings = experiment.load([f"--ckpt_path={path}"], "eval.py", checkpoint_key="ckpt_path")
    loaded = trained.load(settings, path)
    assert loaded.names is None and loaded.classes == 10
    loaded.network.set_train(False)
    logits = loaded.network(ms.Tensor(images[which])).asnumpy()
    np.testing.assert_allclose(logits, wanted(which, name), rtol=1e-4, atol=1e-4)
    opened = model_files.open_model(path, "CPU").logits(images[which])
    np.testing.assert_allclose(opened, wanted(which, name), rtol=1e-4, atol=1e-4)


def test_two_file_checkpoint_of_release_1_gives_the_same_logits(images):
    files = FILES / "best_backbone_t.ckpt", FILES / "best_class_classifier.ckpt"
    words = [f"--backbone_ckpt_file={files[0]}", f"--classifier_ckpt_file={files[1]}"]
    settings = experiment.load(words)
    from src.train_cells import find_method

    network = trained.load_parts(settings, find_method("dann")).network.set_train(False)
    logits = network(ms.Tensor(images["dann"])).asnumpy()
    name = "best_backbone_t.ckpt + best_class_classifier.ckpt"
    np.testing.assert_allclose(logits, wanted("dann", name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["demo.onnx", "demo.mindir"])
def test_file_exported_by_release_1_opens_and_gives_the_same_logits(name, images):
    model = model_files.open_model(FILES / name, "CPU")
    np.testing.assert_allclose(model.logits(images["dann"]), wanted("dann", name), rtol=1e-4, atol=1e-4)
    if name.endswith(".onnx"):
        assert model.preparation == networks.preparation(experiment.load([]))


def test_metadata_of_an_older_export_say_how_its_images_are_prepared():
    about = json.loads(Path(FILES / "hardnet.mindir.json").read_text(encoding="utf-8"))
    checked = model_files.checked_about(about, "hardnet.mindir.json")
    prepared = checked["preparation"]
    assert (prepared["size"], prepared["crop_pct"]) == (about["image_size"], about["crop_pct"])
    assert prepared["mean"] == about["mean"] and prepared["std"] == about["std"]
