"""Conversion of PyTorch weights: the same logits, nothing missing, nothing left over, clear errors."""

import mindspore as ms
import numpy as np
import pth_files as pth
import pytest
from helpers import forked, refused, succeeded
from test_hardnet_network import hardnet

from model_utils import checkpoint
from model_utils.errors import UserError
from src import pth2ckpt
from src.networks import _hardnet_weights as published
from src.networks.hardnet import VARIANTS
from src.networks.pretrained import load_initial
from src.ops import accelerate
from src.setup import settings


def random_state(variant, classes=10, seed=0):
    """{published name: array} that keeps activations of order 1 through the network."""
    rng = np.random.default_rng(seed)
    network = hardnet(variant, classes)
    shapes = {p.name: tuple(p.shape) for p in network.get_parameters()}
    state = {}
    for ours, theirs in published.published_names(network).items():
        shape = shapes[ours]
        if len(shape) > 1:
            value = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif theirs.endswith("var") or theirs.endswith("norm.weight"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.3, shape)
        state[theirs] = value.astype(np.float32)
    return state


class NumpyHarDNet:
    """The network in evaluation mode, in numpy, from a state_dict alone, whose names tell the layers."""

    def __init__(self, state, pooled_after):
        self.state, self.pooled_after = state, pooled_after  # cells followed by max-pooling

    def convolve(self, x, name, stride=1):
        weight = self.state[f"{name}.weight"]
        pad = weight.shape[-1] // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))[
            :, :, ::stride, ::stride
        ]
        if weight.shape[1] == 1 < x.shape[1]:
            return np.einsum("nchwij,cij->nchw", windows, weight[:, 0])
        return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)

    def normalise(self, x, name):
        mean, var, weight, bias = (
            self.state[f"{name}.{kind}"].reshape(-1, 1, 1)
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def layer(self, x, name, stride=1):
        if f"{name}.layer1.conv.weight" in self.state:
            return self.layer(self.layer(x, f"{name}.layer1"), f"{name}.layer2")
        if f"{name}.dwconv.weight" in self.state:
            return self.normalise(self.convolve(x, f"{name}.dwconv", stride), f"{name}.norm")
        return np.clip(self.normalise(self.convolve(x, f"{name}.conv", stride), f"{name}.norm"), 0, 6)

    def block(self, x, name):
        made, number = [x], 1
        while any(key.startswith(f"{name}.layers.{number - 1}.") for key in self.state):
            reach = [1 << bit for bit in range(8) if number % (1 << bit) == 0]
            inputs = np.concatenate([made[number - step] for step in reach], 1)
            made.append(self.layer(inputs, f"{name}.layers.{number - 1}"))
            number += 1
        return np.concatenate([made[i] for i in range(1, number) if i % 2 or i == number - 1], 1)

    def pool(self, x, size, pad):
        border = ((0, 0), (0, 0), (pad, pad), (pad, pad))
        x = np.pad(x, border, constant_values=-np.inf)
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::2, ::2].max((4, 5))

    def __call__(self, x):
        cells = sorted({int(key.split(".")[1]) for key in self.state})
        for cell in cells[:-1]:
            name = f"base.{cell}"
            if (
                f"{name}.layers.0.norm.bias" in self.state
                or f"{name}.layers.0.layer1.norm.bias" in self.state
            ):
                x = self.block(x, name)
            else:
                x = self.layer(x, name, 2 if cell == 0 or f"{name}.dwconv.weight" in self.state else 1)
            if cell in self.pooled_after:
                x = self.pool(x, 3, 1) if cell == 1 else self.pool(x, 2, 0)
        head = f"base.{cells[-1]}.3"
        return x.mean((2, 3)) @ self.state[f"{head}.weight"].T + self.state[f"{head}.bias"]


# Cells that max-pooling follows, of the published lists: a pooling layer takes a number, but has no weights.
POOLED = {"39ds": (), "68": (1, 4, 9, 12), "85": (1, 4, 9, 14)}


@pytest.mark.parametrize("variant", POOLED)
def test_same_logits_as_the_definition(tmp_path, variant):
    """Independent of PyTorch, and of the table: the definition in numpy runs the file's own arrays."""
    state = random_state(variant)
    network = pth2ckpt.convert(pth.write_state(tmp_path / "a.pth", state), tmp_path / "a.ckpt")
    images = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    expected = NumpyHarDNet(state, POOLED[variant])(images.astype(np.float64))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(network(ms.Tensor(images)).asnumpy(), expected, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_logits_as_pytorch(tmp_path, variant):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_hardnet import TorchHarDNet

    theirs = TorchHarDNet(variant).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if value.ndim > 1:
                deviation = (2 / value[0].numel()) ** 0.5
                value.normal_(0, deviation, generator=generator)
            elif name.endswith(("running_var", "norm.weight")):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point():
                value.normal_(0, 0.3, generator=generator)
        images = torch.randn(2, 3, 224, 224, generator=generator)
        expected = theirs(images).numpy()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "a.pth")
    assert pth2ckpt.convert(tmp_path / "a.pth", tmp_path / "a.ckpt").backbone.variant == variant
    network = hardnet(variant)
    checkpoint.load_network(network, tmp_path / "a.ckpt")
    accelerate(network)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(network(ms.Tensor(images.numpy())).asnumpy(), expected, atol=1e-4)


@pytest.fixture(scope="module")
def state():
    return random_state("39ds", classes=7)


def test_the_checkpoint_is_one_that_the_commands_read(tmp_path, state):
    pth2ckpt.convert(pth.write_state(tmp_path / "a.pth", state, legacy=True), tmp_path / "new" / "a.ckpt")
    stored = checkpoint.stored_config(tmp_path / "new" / "a.ckpt")
    assert stored == {
        "method": "hardnet",
        "experiment": "hardnet39ds",
        "network": "hardnet39ds",
        "num_classes": 7,
    }
    network = hardnet("39ds", 7)
    checkpoint.load_network(network, tmp_path / "new" / "a.ckpt")
    np.testing.assert_array_equal(network.head.dense.weight.asnumpy(), state["base.14.3.weight"])


@pytest.mark.parametrize("classes", [7, 4])
def test_a_run_starts_from_the_published_file_itself(tmp_path, state, classes):
    path = pth.write_state(tmp_path / "a.pth", state)
    network = hardnet("39ds", classes)
    fresh = network.head.dense.weight.asnumpy().copy()
    load_initial(network, settings.load(["--method=hardnet", "--variant=39ds", f"--pre_ckpt_path={path}"]))
    named = {p.name: p.asnumpy() for p in network.get_parameters()}
    np.testing.assert_array_equal(named["base.0.norm.moving_mean"], state["base.0.norm.running_mean"])
    np.testing.assert_array_equal(
        named["classifier.weight"], state["base.14.3.weight"] if classes == 7 else fresh
    )


def counted(state):
    norms = [name[: -len("running_mean")] for name in state if name.endswith("running_mean")]
    return {**state, **{f"{norm}num_batches_tracked": np.array(5) for norm in norms}}


def test_step_counters_are_left_out_and_nothing_else(tmp_path, state):
    path = pth.write_state(tmp_path / "a.pth", counted(state))
    assert set(published.read_state(path)) == set(state)
    odd = {**state, "classifier.num_batches_tracked": np.array(5)}
    path = pth.write_state(tmp_path / "b.pth", odd)
    with pytest.raises(UserError, match="left over: classifier.num_batches_tracked"):
        pth2ckpt.convert(path, tmp_path / "b.ckpt")


def test_wrappings_are_taken_off(tmp_path, state):
    for index, prefix in enumerate(("", "module.")):
        body, content = pth.state({prefix + name: value for name, value in state.items()})
        wrapped = b"}(" + pth.text("epoch") + b"K\x03" + pth.text("state_dict") + body + b"u"
        read = published.read_state(pth.write_zip(tmp_path / f"{index}.pth", wrapped, content))
        assert set(read) == set(state)


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


def test_every_mismatch_is_listed(tmp_path, state):
    target = tmp_path / "a.ckpt"
    target.write_bytes(b"kept")
    changed = {
        **without(state, "base.1.norm.bias"),
        "base.1.norm.bais": np.zeros(48, "f4"),
        "base.0.norm.bias": np.zeros(25, "f4"),
    }
    cases = {
        "missing: base.1.norm.bias": changed,
        "left over: base.1.norm.bais": changed,
        r"other shape: base.0.norm.bias \(25,\) for \(24,\)": changed,
        "base.14.3.bias is infinite": {**state, "base.14.3.bias": np.full(7, np.inf, "f4")},
        "base.14.3.weight is infinite": {**state, "base.14.3.weight": np.full((7, 1024), 1e200)},
        "is no HarDNet of 39ds, 68ds, 68, 85": {"features.0.weight": np.zeros((64, 3, 11, 11), "f4")},
        "holds no state_dict": {},
    }
    for message, arrays in cases.items():
        path = pth.write_state(tmp_path / "a.pth", arrays)
        with pytest.raises(UserError, match=message):
            pth2ckpt.convert(path, target)
    assert target.read_bytes() == b"kept"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.ckpt", "a.pth"]


def test_a_file_of_more_than_weights_is_refused(tmp_path):
    path = pth.write_zip(tmp_path / "a.pth", b"}(" + pth.text("epoch") + b"K\x03u")
    with pytest.raises(UserError, match="more than weights: epoch"):
        published.read_state(path)


def test_variant_and_classes_asked_for_must_be_those_of_the_file(tmp_path, state):
    path = pth.write_state(tmp_path / "a.pth", state)
    with pytest.raises(UserError, match="is no HarDNet 68ds .missing: base"):
        pth2ckpt.convert(path, tmp_path / "a.ckpt", "68ds")
    with pytest.raises(UserError, match="class_num: .*a.pth has 7 classes, not 8"):
        pth2ckpt.convert(path, tmp_path / "a.ckpt", "39ds", 8)
    with pytest.raises(UserError, match="'hardnet39' does not exist"):
        pth2ckpt.convert(path, tmp_path / "a.ckpt", "39")
    with pytest.raises(UserError, match="must end in .ckpt"):
        pth2ckpt.convert(path, tmp_path / "a.mindir")


def run(*arguments):
    return forked(["-m", "src.pth2ckpt", *arguments])


def test_the_command(tmp_path, state):
    path = pth.write_state(tmp_path / "a.pth", counted(state))
    target = tmp_path / "a.ckpt"
    shown = succeeded(run("--pth", path, "--ckpt", target, "--variant", "39ds", "--class_num", "7"))
    assert shown == f"{target}: HarDNet 39ds, 7 classes, 372 parameters\n"
    assert target.is_file()


def test_the_command_refuses(tmp_path):
    path = pth.write_zip(tmp_path / "a.pth", pth.name("os", "system") + b"(" + pth.text("false") + b"tR")
    refused(run("--pth", path, "--ckpt", tmp_path / "a.ckpt"), "os.system", path)
    refused(run("--pth", path), "usage")
    refused(run("--pth", path, "--ckpt", "a.ckpt", "--class_num", "0"), "class_num")
    refused(run("--pth", path, "--ckpt", "a.ckpt", "--classes", "0"), "--classes")
    assert not (tmp_path / "a.ckpt").exists()
