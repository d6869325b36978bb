"""HarDNet: the published sizes, the wiring, dropout, gradients, and the costs that are counted."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from helpers import ROOT, environment, succeeded
from hypothesis import given
from hypothesis import strategies as st
from mindspore import nn, ops

from model_utils.errors import UserError
from src import networks
from src.evaluation.complexity import Complexity, complexity
from src.networks.hardnet import VARIANTS, HarmonicBlock, PaddedMaxPool, block_plan
from src.ops import accelerate
from src.setup import settings

PUBLISHED = {"39ds": (3.49, 0.43), "68ds": (4.18, 0.78), "68": (17.57, 4.25), "85": (36.67, 9.07)}


def hardnet(variant, classes=1000, **keys):
    """The untrained network of a variant, built as the commands build it."""
    given = [f"--{name}={value}" for name, value in keys.items()]
    return networks.build(settings.load(["--method=hardnet", f"--variant={variant}", *given]), classes)


def images(count=2, side=64, seed=0):
    return ms.Tensor(np.random.default_rng(seed).normal(size=(count, 3, side, side)), ms.float32)


def test_sizes_and_costs_are_the_published_ones():
    """As `python -m src.evaluation.complexity` prints them."""
    done = subprocess.run(
        [sys.executable, "-m", "src.evaluation.complexity"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    rows = [line.split() for line in succeeded(done).splitlines()[1:]]
    shown = {row[0]: (int(row[1].replace(",", "")) / 1e6, float(row[2])) for row in rows}
    assert {name: (round(size, 2), round(cost, 2)) for name, (size, cost) in shown.items()} == PUBLISHED
    assert set(VARIANTS) == set(PUBLISHED)


def test_costs_by_hand():
    network = nn.SequentialCell(
        nn.Conv2d(3, 8, 3, stride=2, pad_mode="pad", padding=1, has_bias=True),  # -> 8 x 5 x 4
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, pad_mode="valid", group=8),  # -> 8 x 3 x 2
        nn.Flatten(),
        nn.Dense(48, 5),
    )
    parameters = 8 * 3 * 9 + 8 + 16 + 8 * 9 + 48 * 5 + 5
    macs = 8 * 20 * 27 + 8 * 6 * 9 + 48 * 5
    cio = (3 * 10 * 8 + 8 * 20) + (8 * 20 + 8 * 6)
    assert complexity(network, (3, 10, 8)) == Complexity(parameters, macs, cio)


def test_counting_changes_nothing():
    network = hardnet("39ds", 5)
    expected = complexity(network, 64)
    before = network(images()).asnumpy()
    accelerate(network)
    network.set_train(True)
    statistics = network.backbone.base[0].norm.moving_mean.asnumpy().copy()
    assert complexity(network, 64) == expected
    assert network.training
    np.testing.assert_array_equal(network.backbone.base[0].norm.moving_mean.asnumpy(), statistics)
    np.testing.assert_allclose(network.set_train(False)(images()).asnumpy(), before, atol=1e-5)


@given(
    inputs=st.integers(1, 99),
    growth=st.integers(1, 99),
    layers=st.integers(1, 40),
    m=st.sampled_from([1.6, 1.7]),
)
def test_wiring_of_a_block(inputs, growth, layers, m):
    plan = block_plan(inputs, growth, m, layers)
    widths = [inputs]
    for layer, (links, width_in, width) in enumerate(plan, 1):
        assert set(links) == {layer - 2**n for n in range(9) if layer % 2**n == 0}
        assert list(links) == sorted(links, reverse=True)
        assert width_in == sum(widths[link] for link in links)
        assert width % 2 == 0 and abs(width - growth * m ** (len(links) - 1)) <= 1 + 1e-9
        widths.append(width)


def test_widths_of_the_first_block_of_68():
    """By hand: k = 14, and 14·1.7 = 23.8, 14·1.7² = 40.46, 14·1.7³ = 68.78, rounded to even."""
    assert [width for _, _, width in block_plan(64, 14, 1.7, 8)] == [14, 24, 14, 40, 14, 24, 14, 68]
    assert block_plan(64, 14, 1.7, 8)[7][0] == (7, 6, 4, 0)


def test_a_block_puts_out_its_odd_layers_and_the_last():
    block = HarmonicBlock(6, 4, 1.7, 4, separable=False)
    x = ms.Tensor(np.random.default_rng(0).random((2, 6, 8, 8)), ms.float32)
    first = block.layers[0](x)
    third = block.layers[2](block.layers[1](ops.concat((first, x), 1)))
    output = block(x)
    assert block.out_channels == output.shape[1] == 4 + 4 + 12
    np.testing.assert_allclose(output[:, :4].asnumpy(), first.asnumpy(), atol=1e-6)
    np.testing.assert_allclose(output[:, 4:8].asnumpy(), third.asnumpy(), atol=1e-6)


class _PooledReLU6(nn.Cell):
    def __init__(self):
        super().__init__()
        self.relu, self.pool = nn.ReLU6(), PaddedMaxPool()

    def construct(self, x):
        return self.pool(self.relu(x))


@pytest.mark.parametrize("side", [8, 9])
def test_padded_pooling_and_its_gradient(side):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 4, (2, 3, side, side)).astype(np.float32)
    weights = rng.normal(size=(2, 3, (side + 1) // 2, (side + 1) // 2)).astype(np.float32)
    cell = _PooledReLU6()
    output = cell(ms.Tensor(x)).asnumpy()
    padded = np.pad(np.clip(x, 0, 6), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    np.testing.assert_array_equal(output, windows.max((4, 5)))
    # Values in (0, 6) are all different, so each window's gradient has one place to go, or none.
    expected = np.zeros_like(x)
    for place, value in np.ndenumerate(output):
        if 0 < value < 6:
            expected[:2][place[0], place[1]][x[place[0], place[1]] == value] += weights[place]
    gradient = ms.grad(lambda v: (cell(v) * ms.Tensor(weights)).sum())(ms.Tensor(x)).asnumpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    """In evaluation mode: in training a shift in front of a batch normalisation has no effect, by design."""
    network = hardnet(variant, 5)
    accelerate(network)
    for parameter in network.trainable_params():  # larger than the initial ones, so that no signal dies out
        if parameter.ndim == 4:
            ops.assign(parameter, parameter * 2)

    def loss(batch):
        return (network(batch) ** 2).mean()

    _, gradients = ms.value_and_grad(loss, None, network.trainable_params())(images())
    for parameter, gradient in zip(network.trainable_params(), gradients, strict=True):
        size = np.abs(gradient.asnumpy()).max()
        assert np.isfinite(size) and size > 0, parameter.name


def test_training_moves_the_running_statistics():
    network = hardnet("39ds", 5)
    network.set_train(True)
    before = {p.name: p.asnumpy().copy() for p in network.get_parameters() if "moving" in p.name}
    network(images())
    assert len(before) == 2 * 74
    for parameter in network.get_parameters():
        if "moving" in parameter.name:
            assert not np.array_equal(parameter.asnumpy(), before[parameter.name]), parameter.name


def rates(network):
    return [rate for _, rate in network.masks]


def test_masks_act_where_dropout_stands():
    network = hardnet("85", 5, image_size=64)
    accelerate(network)
    # The mask of the last block, then that of the class head; drawn the other way round.
    assert (rates(network), network.split, network.draw_order) == ([0.1, 0.2], 1, (1, 0))
    (block, _), (head, _) = network.masks
    assert block[1:] == (2, 2) and head == (network.feature_size,)
    batch, bias = images(), network.head.dense.bias.asnumpy()
    plain = network(batch).asnumpy()
    features = network.features(batch).asnumpy()
    assert features.shape == (2, network.feature_size)
    keep = np.random.default_rng(0).random((2, *head)).astype(np.float32)
    ones, zeros = np.ones((2, *block), np.float32), np.zeros((2, *block), np.float32)
    masked = network(batch, ms.Tensor(ones), ms.Tensor(keep)).asnumpy()
    by_hand = (features * keep) @ network.head.dense.weight.asnumpy().T + bias
    np.testing.assert_allclose(masked, by_hand, atol=1e-5)
    np.testing.assert_allclose(network(batch, ms.Tensor(ones)).asnumpy(), plain, atol=1e-6)
    # The last convolution sees zeros only; its batch normalisation is new, and shifts by nothing.
    np.testing.assert_allclose(network(batch, ms.Tensor(zeros)).asnumpy(), [bias, bias], atol=1e-6)


@pytest.mark.parametrize("variant, rate", [("39ds", 0.05), ("68ds", 0.05), ("68", 0.1)])
def test_other_variants_drop_before_the_classifier_only(variant, rate):
    network = hardnet(variant, 2)
    assert (rates(network), network.split, network.feature_size) == ([rate], 0, 1024)


def weights(network):
    return [p.asnumpy() for p in network.get_parameters() if p.ndim == 4]


def test_initial_weights_follow_the_seed_and_the_fan_in():
    ms.set_seed(3)
    first = weights(hardnet("39ds", 2))
    ms.set_seed(3)
    again = weights(hardnet("39ds", 2))
    ms.set_seed(4)
    other = weights(hardnet("39ds", 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    for weight in first:
        bound = 1 / np.sqrt(np.prod(weight.shape[1:]))  # U(-bound, bound)
        assert 0.8 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("variant", ["39", "85ds", "HarDNet85", ""])
def test_an_unknown_variant_lists_the_known(variant):
    with pytest.raises(UserError, match="hardnet39ds, hardnet68ds, hardnet68, hardnet85"):
        hardnet(variant)


def test_graph_mode_and_half_precision_compute_the_same():
    network = hardnet("39ds", 5)
    expected = network(images()).asnumpy()
    network.run = ms.jit(network.construct)
    np.testing.assert_allclose(network.run(images()).asnumpy(), expected, atol=1e-5)
    half = network.to_float(ms.float16)(images())
    np.testing.assert_allclose(half.asnumpy().astype(np.float32), expected, atol=2e-2)
