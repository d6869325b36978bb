"""Networks of MindCV: features in place of the class head, MindCV's own logits, and what can't be used."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from helpers import ROOT, environment
from mindspore import Tensor, nn

from model_utils.errors import UserError
from src import networks
from src import ops as cpu_ops
from src.exported.exporting import export
from src.networks import _pairs, pretrained
from src.networks import mindcv as family_module
from src.ops._stage import Stage

installed = pytest.mark.skipif(
    family_module.importlib.util.find_spec("mindcv") is None,
    reason="mindcv is not installed (requirements-extra.txt)",
)


def images(count=2, side=64, seed=0):
    return Tensor(np.random.default_rng(seed).normal(size=(count, 3, side, side)), ms.float32)


def network(name, classes=5, size=64):
    """The Classifier of mindcv/<name>."""
    family, variant = networks.find(f"mindcv/{name}")
    prepared = dataclasses.replace(family.preparation(variant, None), size=size)
    backbone = family.backbone(variant, None, prepared)
    built = networks.Classifier(backbone, None, family.head(backbone, classes, None), prepared, family)
    return built.set_train(False)


@installed
@pytest.mark.parametrize(
    "name, features, dropout",
    [
        ("resnet18", 512, 0),
        ("resnet50", 2048, 0),
        ("densenet121", 1024, 0),
        ("mobilenet_v2_100", 1280, 0.2),
        ("squeezenet1_0", 512, 0.5),
        ("efficientnet_b0", 1280, 0.2),
    ],
)
def test_features_in_place_of_the_class_head(name, features, dropout):
    built = network(name)
    assert built.feature_size == features
    assert built.masks == ((((features,), dropout),) if dropout else ())
    assert built.features(images()).shape == (2, features)
    assert built(images()).shape == (2, 5)
    parameters = list(built.get_parameters())
    assert len({p.name for p in parameters}) == len(parameters)
    assert [p.name for p in parameters[-2:]] == ["classifier.weight", "classifier.bias"]
    assert not any(family_module.CLASSES in p.shape for p in parameters)
    kinds = {type(cell) for _, cell in built.cells_and_names()}
    assert nn.Conv2d in kinds  # not left accelerated, so that an export is plain


@installed
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2_100"])
def test_every_parameter_gets_a_gradient(name):
    built = network(name)
    cpu_ops.accelerate(built)

    def loss(x):
        return (built(x) ** 2).mean()

    gradients = ms.value_and_grad(loss, None, built.trainable_params())(images())[1]
    for parameter, gradient in zip(built.trainable_params(), gradients, strict=True):
        size = np.abs(gradient.asnumpy()).max()
        assert np.isfinite(size) and size > 0, parameter.name


@installed
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small_100", "efficientnet_b0"])
def test_checkpoints_of_mindcv_give_its_logits(tmp_path, name):
    """Their heads are called classifier, classifier.3 and mlp_head."""
    import mindcv

    ms.set_seed(1)
    theirs = mindcv.create_model(name, num_classes=7).set_train(False)
    rng = np.random.default_rng(0)
    for parameter in theirs.get_parameters():
        if parameter.name.endswith(("moving_mean", "beta")):
            parameter.set_data(Tensor(rng.normal(0, 0.1, parameter.shape), ms.float32))
    ms.save_checkpoint(theirs, str(tmp_path / "theirs.ckpt"))
    ms.set_seed(2)
    built = network(name, 7)
    before = built(images()).asnumpy()
    settings = SimpleNamespace(
        network=f"mindcv/{name}", pretrained=str(tmp_path / "theirs.ckpt"), resume=False
    )
    pretrained.load_initial(built, settings)
    logits = built(images()).asnumpy()
    np.testing.assert_allclose(logits, theirs(images()).asnumpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(logits - before).max() > 1e-3
    read = networks.find(f"mindcv/{name}")[0].read_published(f"/{name}", tmp_path / "theirs.ckpt", built)
    assert set(read) == {parameter.name for parameter in built.get_parameters()}


def test_a_head_that_is_a_convolution_becomes_a_dense_layer():
    values = {
        "head.weight": np.arange(6.0).reshape(2, 3, 1, 1),
        "head.bias": np.ones(2),
        "stem.weight": np.ones(3),
    }
    read = family_module.renamed(values, ("head.weight", "head.bias"))
    assert set(read) == {"classifier.weight", "classifier.bias", "stem.weight"}
    np.testing.assert_array_equal(read["classifier.weight"], np.arange(6.0).reshape(2, 3))
    assert family_module.renamed(read, ("head.weight", "head.bias")).keys() == read.keys()  # ours stay ours


@installed
def test_a_head_with_more_behind_it_is_left_out(tmp_path):
    """SqueezeNet has ReLU and pooling behind its last convolution: a dense layer would not be the same."""
    import mindcv

    ms.save_checkpoint(mindcv.create_model("squeezenet1_1", num_classes=5), str(tmp_path / "theirs.ckpt"))
    built = network("squeezenet1_1", 5)
    family, variant = networks.find("mindcv/squeezenet1_1")
    values = family.read_published(variant, tmp_path / "theirs.ckpt", built)
    assert "classifier.weight" not in values
    head = built.head.dense.weight.asnumpy().copy()
    pretrained.fill(built, values, "theirs")
    np.testing.assert_array_equal(built.head.dense.weight.asnumpy(), head)
    np.testing.assert_array_equal(built.backbone.model.features[0].weight, values["features.0.weight"])


class _Residual(nn.Cell):
    """Convolution and normalisation by attributes; with `reads`, the convolution's output is used twice."""

    def __init__(self, reads):
        super().__init__()
        self.conv, self.norm, self.reads = nn.Conv2d(3, 4, 3, pad_mode="same"), nn.BatchNorm2d(4), reads

    def construct(self, x):
        x = self.conv(x)
        return self.norm(x) + x if self.reads else self.norm(x)


@pytest.mark.parametrize("reads", [False, True])
def test_pairs_are_joined_where_nobody_else_reads_the_convolution(reads):
    cell = _Residual(reads).set_train(False)
    names = [parameter.name for parameter in cell.get_parameters()]
    before = cell(images(1, 8)).asnumpy()
    given = _pairs.join(cell, images(1, 8, seed=1))
    assert given.shape == (1, 4, 8, 8)
    assert type(cell.conv) is (nn.Conv2d if reads else nn.SequentialCell)
    assert type(cell.norm) is (nn.BatchNorm2d if reads else nn.Identity)
    assert [parameter.name for parameter in cell.get_parameters()] == names
    np.testing.assert_array_equal(cell(images(1, 8)).asnumpy(), before)


@installed
def test_convolutions_of_a_residual_network_are_joined_with_their_normalisations(operators):
    plain, fast = network("resnet18"), network("resnet18")
    for one, other in zip(plain.get_parameters(), fast.get_parameters(), strict=True):
        other.set_data(Tensor(one.asnumpy()))
    cpu_ops.accelerate(fast)
    stages = [
        cell
        for _, chain in fast.cells_and_names()
        if isinstance(chain, nn.SequentialCell)
        for cell in chain.cell_list
        if isinstance(cell, Stage)
    ]
    assert len(stages) == 20  # all convolutions
    expected, actual = (built.set_train()(images(8)).asnumpy() for built in (plain, fast))
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    for one, other in zip(plain.get_parameters(), fast.get_parameters(), strict=True):
        np.testing.assert_allclose(other.asnumpy(), one.asnumpy(), rtol=1e-4, atol=1e-5)


@installed
def test_training_draws_nothing_at_random():
    """EfficientNet-B0 has dropout and stochastic depth: with them no run could be resumed exactly."""
    built = network("efficientnet_b0").set_train()
    batch = images(4)
    first, again = built.features(batch).asnumpy(), built.features(batch).asnumpy()
    np.testing.assert_array_equal(first, again)


@installed
@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_export(tmp_path, file_format):
    built = network("resnet18")
    _, difference = export(built, images(3).asnumpy(), tmp_path / "net", file_format)
    assert difference <= 1e-4


@installed
@pytest.mark.parametrize(
    "name, parts",
    [
        ("resnt18", ("'resnt18'", "did you mean mindcv/resnet18?")),
        ("", ("MindCV has no network ''",)),
        ("inception_v3", ("aux.fc, classifier", "one class head")),
        ("mae_b_16_224_pretrain", ("mae_b_16_224_pretrain",)),
        ("pit_ti", ("images of 64 pixels", "choose another image_size")),
    ],
)
def test_what_cannot_be_used_is_one_line(name, parts):
    with pytest.raises(UserError) as refusal:
        network(name)
    for part in parts:
        assert part in str(refusal.value)


@installed
def test_second_derivatives_are_refused():
    family, variant = networks.find("mindcv/resnet18")
    with pytest.raises(UserError, match="meta_order to first"):
        family.backbone(variant, None, family.preparation(variant, None), twice=True)


@installed
def test_a_checkpoint_of_another_network_is_one_line(tmp_path):
    ms.save_checkpoint(nn.Dense(2, 2), str(tmp_path / "other.ckpt"))
    built = network("resnet18")
    family, variant = networks.find("mindcv/resnet18")
    with pytest.raises(UserError, match="is no checkpoint of resnet18: it lacks bn1.beta"):
        family.read_published(variant, tmp_path / "other.ckpt", built)
    with pytest.raises(UserError, match="must be a .ckpt file of MindCV"):
        family.read_published(variant, tmp_path / "resnet18.pth", built)


@installed
def test_preparation_follows_mindcvs_own_record():
    family = networks.find("mindcv/resnet18")[0]
    prepared = family.preparation("/resnet18", None)
    assert (prepared.size, prepared.crop_pct, prepared.flip) == (224, 0.875, True)
    assert prepared.mean == (0.485, 0.456, 0.406) and prepared.std == (0.229, 0.224, 0.225)
    assert family.preparation("/vit_b_16_384", None).size == 384


def test_without_mindcv_one_line_says_so(monkeypatch):
    monkeypatch.setattr(family_module.importlib.util, "find_spec", lambda name: None)
    family_module.library.cache_clear()
    with pytest.raises(UserError, match="needs the package mindcv; pip install -r requirements-extra.txt"):
        networks.find("mindcv/resnet18")
    with pytest.raises(UserError, match="'mindcvresnet18' does not exist"):
        networks.find("mindcvresnet18")


def test_listing_networks_does_not_import_mindcv():
    code = "import sys; from src import networks; networks.available(); print('mindcv' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False", done.stderr
