"""Initial weights after Glorot & Bengio, against their definition."""

import numpy as np
import pytest
from helpers import build, tiny_config


def drawn(place, method="adda", **changes):
    """{name: array} of the network and of the method's own parts."""
    cell = build(tiny_config(method, **changes), place)
    cells = [cell.network, *cell.parts.values()]
    return {p.name: p.asnumpy() for part in cells for p in part.get_parameters()}


def variance(shape):
    """2 / (inputs + outputs): of the uniform distribution that Glorot & Bengio (2010), equation 16, name."""
    kernel = np.prod(shape[2:], dtype=int)
    return 2 / (shape[0] * kernel + shape[1] * kernel)


def check(weight):
    """Uniform on [-limit, limit]: the limits are nearly reached, and the variance is that of the formula."""
    limit = np.sqrt(3 * variance(weight.shape))
    assert np.abs(weight).max() <= limit
    if weight.size >= 5000:
        assert np.abs(weight).max() > 0.99 * limit
        assert weight.var() == pytest.approx(variance(weight.shape), rel=0.05)
        assert abs(weight.mean()) < 4 * limit / np.sqrt(3 * weight.size)


def test_glorot_weights_and_zero_biases_of_adda(place):
    found = drawn(place, initial_weights="glorot")
    weights = {name: value for name, value in found.items() if name.endswith("weight")}
    assert {"conv1.weight", "fc1.weight", "fc2.weight", "discriminator.fc3.weight"} <= weights.keys()
    for weight in weights.values():
        check(weight)
    assert all(not value.any() for name, value in found.items() if name.endswith("bias"))


def test_glorot_biases_are_those_of_a_tensorflow_variable(place):
    """A vector of n counts n inputs and n outputs there: limit sqrt(6 / 2n)."""
    found = drawn(place, "masf", initial_weights="glorot_biases")
    assert found["metric.first.bias"].shape == (1024,)
    for name, value in found.items():
        if name.endswith("bias"):
            limit = np.sqrt(6 / (2 * len(value)))
            assert 0 < np.abs(value).max() <= limit
            assert len(value) < 100 or np.abs(value).max() > 0.9 * limit
        elif name.endswith("weight"):
            check(value)


def test_they_follow_from_seed_and_name(place):
    first, again, other = (drawn(place, initial_weights="glorot", seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    weights = [name for name in first if name.endswith("weight")]
    assert all(not np.array_equal(first[name], other[name]) for name in weights)
    flat = [first[name].ravel()[:20] for name in weights]
    assert len({part.tobytes() for part in flat}) == len(flat)


def test_batch_normalisations_are_left_alone(place):
    plain, changed = (drawn(place, network="dann", initial_weights=kind) for kind in ("default", "glorot"))
    norms = [name for name in plain if name.split(".")[-1] in ("gamma", "beta", "moving_mean")]
    assert norms and all(np.array_equal(plain[name], changed[name]) for name in norms)
    assert not np.array_equal(plain["backbone.conv1.weight"], changed["backbone.conv1.weight"])
