"""The losses and the layers of MASF, against loops in numpy's float64 that share no code with them."""

import mindspore as ms
import numpy as np
import pytest
from helpers import same_at_every_call
from mindspore import nn, ops

from src.losses import episodic
from src.losses.metric import MetricNetwork
from src.ops.twice_differentiable import LocalResponseNorm, MaxPool2d


def tensor(array, dtype=ms.float32):
    return ms.Tensor(array, dtype)


def soft_labels(logits, temperature):
    values = np.exp((logits - logits.max()) / temperature)
    return np.clip(values / values.sum(), 1e-8, 1)


def global_loss(domains, labels, classes, temperature):
    """domains: list of (B, C) logits, the meta-test domain last."""
    total = 0.0
    for logits, own in zip(domains[:-1], labels[:-1], strict=True):
        for c in range(classes):
            here, there = logits[own == c], domains[-1][labels[-1] == c]
            if len(here) and len(there):
                p, q = (soft_labels(part.mean(0), temperature) for part in (here, there))
                total += 0.5 * ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / classes
    return total / (len(domains) - 1)


def triplet_loss(x, labels, margin):
    losses = []
    distance = lambda a, b: ((x[a] - x[b]) ** 2).sum()  # noqa: E731
    for anchor in range(len(x)):
        others = [distance(anchor, k) for k in range(len(x)) if labels[k] != labels[anchor]]
        for positive in range(len(x)):
            if positive == anchor or labels[positive] != labels[anchor]:
                continue
            if not others:
                continue
            near = distance(anchor, positive)
            further = [d for d in others if d > near]
            negative = min(further) if further else max(others)
            losses.append(max(0.0, margin + near - negative))
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_global_loss_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    count, size, classes = 2 + seed % 3, 12, 5
    logits = rng.normal(0, 4, (count, size, classes))
    # Few classes in some domains, so that some pair of domains misses one.
    labels = rng.integers(0, classes - seed % 2, (count, size))
    value = episodic.global_loss(
        tensor(logits.reshape(-1, classes)), tensor(labels.reshape(-1), ms.int32), count, 2.0
    )
    expected = global_loss(list(logits), list(labels), classes, 2.0)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_an_absent_class_gives_no_gradient_and_no_nan():
    logits = tensor(np.random.default_rng(0).normal(size=(8, 4)))
    labels = tensor([0, 0, 1, 1, 1, 1, 2, 2], ms.int32)  # only class 1 is in both domains
    gradient = ops.grad(lambda x: episodic.global_loss(x, labels, 2))(logits).asnumpy()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[[2, 3, 4, 5]]).min() > 0
    assert np.array_equal(gradient[[0, 1, 6, 7]], np.zeros((4, 4)))


def test_extreme_logits_are_clipped():
    logits = tensor([[500.0, -500.0], [-500.0, 500.0]])
    labels = tensor([0, 0], ms.int32)
    value, gradient = ops.value_and_grad(lambda x: episodic.global_loss(x, labels, 2))(logits)
    # One certain of class 0, one of class 1: (1 - 1e-8)·(0 - ln 1e-8), in both directions, halved and over 2.
    assert float(value) == pytest.approx((1 - 1e-8) * -np.log(1e-8) / 2, rel=1e-5)
    assert np.isfinite(gradient.asnumpy()).all()


@pytest.mark.parametrize("seed", range(8))
def test_triplet_loss_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.5 + seed, (14, 3)).astype(np.float32)
    labels = rng.integers(0, 2 + seed % 4, 14)
    margin = 10.0 if seed % 2 else 1.0
    value = episodic.semi_hard_triplet_loss(tensor(x), tensor(labels, ms.int32), margin)
    expected = triplet_loss(x.astype(np.float64), labels, margin)
    assert expected > 0
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2, 2, 2, 2]], ids=["no positive", "no negative"])
def test_a_batch_without_a_triplet_has_no_loss_and_no_gradient(labels):
    x = tensor(np.random.default_rng(0).normal(size=(4, 3)))
    chosen = tensor(labels, ms.int32)
    value, gradient = ops.value_and_grad(lambda e: episodic.semi_hard_triplet_loss(e, chosen, 10.0))(x)
    assert float(value) == 0 == triplet_loss(x.asnumpy(), labels, 10.0)
    assert not gradient.asnumpy().any()


def test_triplet_gradient_is_that_of_the_definition():
    rng = np.random.default_rng(3)
    x, labels = rng.normal(0, 2, (9, 2)), rng.integers(0, 3, 9)
    chosen = tensor(labels, ms.int32)
    gradient = ops.grad(lambda e: episodic.semi_hard_triplet_loss(e, chosen, 5.0))(tensor(x)).asnumpy()
    for row, column in ((0, 0), (4, 1), (8, 0)):
        step = np.zeros_like(x)
        step[row, column] = 1e-6
        slope = (triplet_loss(x + step, labels, 5.0) - triplet_loss(x - step, labels, 5.0)) / 2e-6
        assert gradient[row, column] == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_task_loss_is_cross_entropy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 30, (7, 4)), rng.integers(0, 4, 7)
    log_sums = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    expected = (log_sums - logits[np.arange(7), labels]).mean()
    value = episodic.task_loss(tensor(logits), tensor(labels, ms.int32))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_the_first_rows_of_each_domain_are_taken():
    values = tensor(np.arange(24).reshape(12, 2))
    taken = episodic.share_of_each(values, 3, 2).asnumpy()
    assert taken[:, 0].tolist() == [0, 2, 8, 10, 16, 18]
    assert episodic.share_of_each(tensor(np.arange(12), ms.int32), 3, 1).asnumpy().tolist() == [
        0,
        4,
        8,
    ]


@pytest.mark.parametrize("kernel, stride, size", [(2, 2, 8), (3, 2, 13), (3, 1, 6), (2, 2, 7)])
def test_max_pooling_is_mindspores_in_value_and_gradient(kernel, stride, size):
    x = tensor(np.random.default_rng(0).normal(size=(2, 3, size, size)))
    own, theirs = MaxPool2d(kernel, stride), nn.MaxPool2d(kernel, stride)
    assert np.array_equal(own(x).asnumpy(), theirs(x).asnumpy())
    weights = tensor(np.random.default_rng(1).normal(size=own(x).shape))
    left, right = (ops.grad(lambda v, pool=pool: (pool(v) * weights).sum())(x) for pool in (own, theirs))
    np.testing.assert_allclose(left.asnumpy(), right.asnumpy(), atol=1e-6)


def test_local_response_normalisation_is_the_definition():
    x = np.random.default_rng(0).normal(0, 40, (2, 7, 3, 3))
    expected = np.empty_like(x)
    for c in range(7):
        window = x[:, max(0, c - 2) : c + 3]
        expected[:, c] = x[:, c] / (1.0 + 1e-3 * (window**2).sum(1)) ** 0.75
    layer = LocalResponseNorm(radius=2, alpha=1e-3, beta=0.75, bias=1.0)
    np.testing.assert_allclose(layer(tensor(x)).asnumpy(), expected, rtol=2e-5, atol=1e-6)


def test_second_derivatives_of_the_layers_are_right():
    """The gradient of Σ (gradient of f)·direction, compiled as MASF's is, against differences."""
    pool, norm = MaxPool2d(3, 2), LocalResponseNorm(alpha=0.05)

    def value(x):
        return (pool(norm(x * x)) ** 2).sum()

    first = ops.grad(value)

    def along(x, direction):
        return (first(x) * direction).sum()

    second_derivative = ops.grad(along)

    @ms.jit
    def compiled(x, direction):
        return second_derivative(x, direction)

    # Far enough from each other that no step changes which of them is a window's largest.
    x = np.random.default_rng(0).permutation(np.linspace(0.5, 3, 245, dtype=np.float32)).reshape(1, 5, 7, 7)
    direction = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    direction /= np.linalg.norm(direction)
    second = compiled(tensor(x), tensor(direction)).asnumpy()
    slope = (first(tensor(x + 2e-3 * direction)) - first(tensor(x - 2e-3 * direction))).asnumpy() / 4e-3
    np.testing.assert_allclose(second, slope, atol=5e-3 * np.abs(slope).max())


def test_metric_network_is_two_leaky_layers():
    network = MetricNetwork(6)
    x = np.random.default_rng(0).normal(size=(4, 6))
    expected = x
    for layer in (network.first, network.second):
        expected = expected @ layer.weight.asnumpy().T.astype(np.float64) + layer.bias.asnumpy()
        expected = np.where(expected > 0, expected, 0.2 * expected)
    assert expected.shape == (4, 256)
    np.testing.assert_allclose(network(tensor(x)).asnumpy(), expected, rtol=1e-4, atol=1e-5)


def test_global_loss_does_not_depend_on_how_mindspore_shares_out_the_work():
    labels = ms.Tensor(np.tile(np.arange(10), 6).astype(np.int32))

    def loss(logits):
        return episodic.global_loss(logits, labels, 3)

    same_at_every_call(loss, lambda rng: rng.normal(size=(60, 10)))
