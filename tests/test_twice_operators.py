"""The compiled operators that can be differentiated twice: against definitions and the plain cells."""

import mindspore as ms
import numpy as np
import pytest
from helpers import quick
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor, nn, ops

from src import ops as cpu_ops
from src.ops._pool import Pool
from src.ops._response import Response
from src.ops.twice_differentiable import LocalResponseNorm, MaxPool2d, ReLU6


def fast(kernel, stride):
    pool = MaxPool2d(kernel, stride)
    cpu_ops.accelerate(pool, second_order=True)
    assert type(pool) is Pool
    return pool


def definition(x, dy, kernel, stride):
    """(y, dx) with loops; of equal values the first of a window counts."""
    y, dx = np.empty_like(dy), np.zeros_like(x)
    for n, c, i, j in np.ndindex(*dy.shape):
        window = x[n, c, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        a, b = np.unravel_index(window.argmax(), window.shape)
        y[n, c, i, j] = window[a, b]
        dx[n, c, i * stride + a, j * stride + b] += dy[n, c, i, j]
    return y, dx


@quick
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    more=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    planes=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    ties=st.booleans(),
)
def test_value_and_gradient_are_the_definition(operators, kernel, stride, more, planes, ties):
    rng = np.random.default_rng(0)
    shape = *planes, kernel + more[0], kernel + more[1]
    x = (rng.integers(0, 3, shape) if ties else rng.normal(size=shape)).astype(np.float32)
    pool = fast(kernel, stride)
    y = pool(Tensor(x)).asnumpy()
    dy = rng.normal(size=y.shape).astype(np.float32)
    dx = ms.grad(lambda v: (pool(v) * Tensor(dy)).sum())(Tensor(x)).asnumpy()
    expected, gradient = definition(x, dy, kernel, stride)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(dx, gradient, atol=1e-6)


class Along(nn.Cell):
    """The gradient of Σ pool(x²)³, times a direction."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool
        self.first = ms.grad(self.cube)

    def cube(self, x):
        return (self.pool(x * x) ** 3).sum()

    def construct(self, x, direction):
        return (self.first(x) * direction).sum()


_alive = []  # jit finds its graphs by the identity of their owner, which must not be used twice


class SecondDerivative:
    """Compiled, as MASF's is."""

    def __init__(self, pool):
        _alive.append(self)
        self.second = ms.grad(Along(pool))

    @ms.jit
    def __call__(self, x, direction):
        return self.second(x, direction)


@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 2), (3, 1)])
def test_second_derivative_is_that_of_the_plain_cell(operators, kernel, stride):
    x, direction = (Tensor(np.random.default_rng(s).normal(size=(2, 3, 9, 8)), ms.float32) for s in (1, 2))
    steps = [SecondDerivative(pool) for pool in (MaxPool2d(kernel, stride), fast(kernel, stride))]
    plain, ours = (step(x, direction).asnumpy() for step in steps)
    assert np.abs(plain).max() > 1
    np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())


def test_not_a_number_passes_through(operators):
    """The run must be able to see that it diverged."""
    for place in range(4):
        x = np.arange(4, dtype=np.float32)
        x[place] = np.nan
        assert np.isnan(fast(2, 2)(Tensor(x.reshape(1, 1, 2, 2))).asnumpy()).all()


def test_a_window_larger_than_the_image_is_an_error(operators):
    with pytest.raises(ValueError, match="does not fit"):
        fast(3, 2)(Tensor(np.ones((1, 1, 2, 5), np.float32))).asnumpy()


def test_half_precision_takes_the_plain_path(operators):
    x = Tensor(np.random.default_rng(3).normal(size=(1, 2, 6, 6)), ms.float16)
    y = fast(2, 2)(x)
    assert y.dtype == ms.float16
    np.testing.assert_array_equal(y.asnumpy(), nn.MaxPool2d(2, 2)(x.astype(ms.float32)).asnumpy())


def test_plain_puts_the_cell_back(operators):
    network = nn.SequentialCell(nn.Conv2d(1, 2, 3), MaxPool2d(2, 2))
    cpu_ops.accelerate(network, second_order=True)
    with cpu_ops.plain(network):
        assert [type(cell) for cell in network.cell_list] == [nn.Conv2d, MaxPool2d]
    assert type(network.cell_list[1]) is Pool
    assert ops.isfinite(network(Tensor(np.ones((1, 1, 6, 6), np.float32)))).all()


# Local response normalisation.


def norms(**options):
    """(as it is, through the operators)"""
    cells = [LocalResponseNorm(**options) for _ in range(2)]
    cpu_ops.accelerate(cells[1])
    assert type(cells[1]) is Response
    return cells


def response(x, radius, alpha, beta, bias):
    """The definition in float64."""
    channels = x.shape[1]
    squares = np.stack(
        [(x[:, max(0, c - radius) : c + radius + 1] ** 2).sum(1) for c in range(channels)], axis=1
    )
    return x / (bias + alpha * squares) ** beta


@quick
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(3, 20), st.integers(1, 11), st.integers(1, 11)),
    radius=st.integers(1, 3),
    beta=st.sampled_from([0.75, 0.5, 1.0]),
)
def test_response_and_its_gradient_are_the_definition(operators, shape, radius, beta):
    rng = np.random.default_rng(0)
    x, dy, direction = (rng.normal(size=shape) for _ in range(3))
    options = {"radius": radius, "alpha": 0.3, "beta": beta, "bias": 1.5}
    _, norm = norms(**options)
    y, pull = Tensor(x, ms.float32), Tensor(dy, ms.float32)
    np.testing.assert_allclose(norm(y).asnumpy(), response(x, **options), rtol=1e-4, atol=1e-6)
    dx = ms.grad(lambda v: (norm(v) * pull).sum())(y).asnumpy()
    step = 1e-5 * direction
    slope = ((response(x + step, **options) - response(x - step, **options)) * dy).sum() / 2e-5
    assert abs((dx * direction).sum() - slope) <= 1e-4 * np.linalg.norm(dx) * np.linalg.norm(direction)


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_second_derivative_of_the_response_is_that_of_the_plain_cell(operators, beta):
    x, direction = (Tensor(np.random.default_rng(s).normal(size=(2, 9, 9, 8)), ms.float32) for s in (1, 2))
    steps = [SecondDerivative(norm) for norm in norms(alpha=0.2, beta=beta)]
    plain, ours = (step(x, direction).asnumpy() for step in steps)
    assert np.abs(plain).max() > 1
    np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())


def test_plain_puts_the_response_back(operators):
    plain, norm = norms()
    with cpu_ops.plain(norm):
        assert type(norm) is LocalResponseNorm
    assert type(norm) is Response
    half = Tensor(np.ones((1, 5, 2, 2)), ms.float16)
    np.testing.assert_array_equal(norm(half).asnumpy(), plain(half).asnumpy())


# ReLU6.


def test_relu6_and_its_derivatives():
    values = np.array([-np.inf, -1, 0, 0.5, 5.9, 6, 7, np.inf, np.nan], np.float32).reshape(1, 1, 1, 9)
    ours, theirs = (cell(Tensor(values)).asnumpy() for cell in (ReLU6(), nn.ReLU6()))
    np.testing.assert_array_equal(ours, theirs)
    finite = Tensor(values[..., 1:7])
    ours, theirs = (ms.grad(lambda v, c=cell: c(v).sum())(finite).asnumpy() for cell in (ReLU6(), nn.ReLU6()))
    np.testing.assert_array_equal(ours, theirs)
    # min(x², 6)³ = x⁶ for 0 < x² < 6, whose second derivative is 30 x⁴
    x = np.array([0.7, 1.5, 2.0, 2.9], np.float32).reshape(1, 1, 1, 4)
    second = SecondDerivative(ReLU6())(Tensor(x), Tensor(np.ones_like(x))).asnumpy()
    np.testing.assert_allclose(second, np.where(x * x < 6, 30 * x**4, 0), rtol=1e-5)
