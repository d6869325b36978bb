"""Losses, reversal and schedules against oracles in plain numpy that share no code with what they check."""

import math

import mindspore as ms
import numpy as np
import pytest
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from src import networks
from src.losses.adversarial import AdversarialLoss, DiscriminatorLoss
from src.losses.classification import GradientReversal, accuracy, cross_entropy, prediction_entropy
from src.networks.heads import DomainHead
from src.networks.input_norm import InputNorm
from src.training.schedules import one_cycle, reversal_strength, schedule

HALF = 4


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def nll(logits, labels):
    return float(np.mean([-math.log(row[label]) for row, label in zip(softmax(logits), labels, strict=True)]))


def entropy(logits):
    p = softmax(logits)
    return float(-(p * np.log(p)).sum(1).mean())


def logits_and_labels(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(0, scale, (6, 10))).astype(np.float32), rng.integers(0, 10, 6).astype(np.int32)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_cross_entropy_entropy_and_accuracy_match_numpy(scale):
    logits, labels = logits_and_labels(1, scale)
    given = ms.Tensor(logits), ms.Tensor(labels)
    wide = logits.astype(np.float64)
    assert float(cross_entropy(*given)) == pytest.approx(nll(wide, labels), rel=1e-5)
    assert float(prediction_entropy(given[0])) == pytest.approx(entropy(wide), rel=1e-4, abs=1e-6)
    assert float(accuracy(*given)) == pytest.approx((logits.argmax(1) == labels).mean())


def test_losses_stay_finite_at_huge_logits():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    wrong = ms.Tensor([1, 0], ms.int32)
    assert float(cross_entropy(ms.Tensor(logits), wrong)) == pytest.approx(2e4)
    assert float(prediction_entropy(ms.Tensor(logits))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -1.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_reversal_is_the_identity_forward_and_minus_strength_backward(strength, compiled):
    reversal = GradientReversal()
    x = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)

    def squared(x, strength):
        return (reversal(x, strength) ** 2).sum()

    gradient = ms.grad(squared)
    gradient = ms.jit(gradient) if compiled else gradient
    coefficient = ms.Tensor(strength, ms.float32)
    np.testing.assert_array_equal(reversal(ms.Tensor(x), coefficient).asnumpy(), x)
    np.testing.assert_allclose(gradient(ms.Tensor(x), coefficient).asnumpy(), -strength * 2 * x, rtol=1e-6)


def test_input_norm_matches_numpy():
    images = np.random.default_rng(0).random((5, 3, 28, 28), dtype=np.float32)
    images[0] = 0.25  # a constant image has no deviation to divide by
    plain = InputNorm("none")(ms.Tensor(images)).asnumpy()
    np.testing.assert_allclose(plain, images * 2 - 1, atol=1e-6)
    np.testing.assert_array_equal(InputNorm("unit")(ms.Tensor(images)).asnumpy(), images)
    normed = InputNorm("instance")(ms.Tensor(images)).asnumpy()
    for image, result in zip(images.astype(np.float64), normed, strict=True):
        for channel, out in zip(image, result, strict=True):
            expected = (channel - channel.mean()) / math.sqrt(channel.var() + 1e-4)
            np.testing.assert_allclose(out, expected, atol=2e-4)


def test_instance_norm_hardly_changes_under_contrast_and_brightness():
    image = np.random.default_rng(1).random((1, 3, 28, 28), dtype=np.float32)
    both = InputNorm("instance")(ms.Tensor(np.concatenate((image, 0.2 + 0.5 * image)))).asnumpy()
    np.testing.assert_allclose(both[0], both[1], atol=0.02)


# Schedules


def test_reversal_strength_matches_the_paper():
    assert reversal_strength(0.0) == 0
    assert reversal_strength(0.5) == pytest.approx(0.98661, abs=1e-5)  # 2 / (1 + e^-5) - 1
    assert reversal_strength(1.0) == pytest.approx(0.99990920, abs=1e-8)
    assert reversal_strength(0.7, gamma=0) == 0


@given(st.integers(1, 5000), st.floats(0, 1))
def test_reversal_strength_rises_within_0_and_1(steps, gamma):
    values = [
        reversal_strength(step / steps, 10 * gamma) for step in range(0, steps + 1, max(1, steps // 20))
    ]
    assert all(0 <= value < 1 for value in values)
    assert values == sorted(values)


@settings(max_examples=60)
@given(st.integers(1, 3000))
def test_one_cycle_rises_to_its_peak_and_falls_to_almost_nothing(steps):
    rates = np.array([one_cycle(step, steps) for step in range(steps)])
    assert np.isfinite(rates).all() and (rates > 0).all() and (rates <= 1).all()
    if steps < 10:
        return
    peak = int(rates.argmax())
    assert peak == pytest.approx(0.3 * (steps - 1), abs=1)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    assert rates[0] == pytest.approx(1 / 25) and rates[-1] == pytest.approx(1e-4 / 25, rel=1e-3)


def test_schedule_by_name():
    assert [schedule("constant", step, 10) for step in (0, 5, 9)] == [1, 1, 1]
    assert schedule("one_cycle", 3, 10) == one_cycle(3, 10) != 1


# DANN's whole loss, recomputed from the network's parameters


class Reference:
    """DANN forward in numpy float64, batch norm with batch statistics; reads the parameters by name."""

    def __init__(self, *cells):
        named = {p.name: p for cell in cells for p in cell.get_parameters()}
        self.named = {name: p.asnumpy().astype(np.float64) for name, p in named.items()}

    def conv(self, name, x):
        w = self.named[f"{name}.weight"]
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
        y = np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)
        return y + self.named.get(f"{name}.bias", np.zeros(len(w)))[:, None, None]

    def norm(self, name, x):
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        gamma, beta = (self.named[f"{name}.{part}"].reshape(shape) for part in ("gamma", "beta"))
        return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5) * gamma + beta

    def dense(self, name, x):
        return x @ self.named[f"{name}.weight"].T + self.named[f"{name}.bias"]

    def backbone(self, images, keep):
        x = images.astype(np.float64) * 2 - 1
        x = relu(pool(self.norm("backbone.bn1", self.conv("backbone.conv1", x))))
        x = self.norm("backbone.bn2", self.conv("backbone.conv2", x)) * keep
        return relu(pool(x)).reshape(len(images), -1)

    def classes(self, features, keep):
        name = "class_classifier"
        x = relu(self.norm(f"{name}.bn1", self.dense(f"{name}.fc1", features))) * keep
        return self.dense(f"{name}.fc3", relu(self.norm(f"{name}.bn2", self.dense(f"{name}.fc2", x))))

    def domains(self, features):
        name = "domain_classifier"
        return self.dense(f"{name}.fc2", relu(self.norm(f"{name}.bn1", self.dense(f"{name}.fc1", features))))


def pool(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


def relu(x):
    return np.maximum(x, 0)


@pytest.fixture(scope="module")
def problem(place):
    """A network with weights away from their initial values, and one batch for it."""
    ms.set_seed(3)
    rng = np.random.default_rng(3)
    network = networks.build(tiny_config("dann", input_norm="none"), 10)
    domain = DomainHead(network.feature_size)
    domain.update_parameters_name("domain_classifier.")
    for cell in (network, domain):
        cell.set_train(True)
        for p in cell.trainable_params():
            noise = rng.normal(0, 0.05, p.shape).astype(np.float32)
            p.set_data(ms.Tensor(p.asnumpy() + noise))
    batch = {
        "images": rng.random((2 * HALF, 3, 28, 28), dtype=np.float32),
        "labels": rng.integers(0, 10, HALF).astype(np.int32),
        "domains": np.repeat([0, 1], HALF).astype(np.int32),
        "keep_map": (rng.random((2 * HALF, 50, 8, 8)) < 0.5).astype(np.float32) * 2,
        "keep_hidden": (rng.random((2 * HALF, 100)) < 0.5).astype(np.float32) * 2,
    }
    return network, domain, batch


def tensors(batch, *names):
    """The named parts of a batch as Tensors, in this order."""
    return [ms.Tensor(batch[name]) for name in names]


IMAGES, MASKS = ("images", "labels", "domains"), ("keep_map", "keep_hidden")


def expected_loss(reference, batch, joint, use_entropy, fool, weights):
    images, keep, hidden = batch["images"], batch["keep_map"], batch["keep_hidden"]
    sides = [slice(0, 2 * HALF)] if joint else [slice(0, HALF), slice(HALF, 2 * HALF)]
    features = np.concatenate([reference.backbone(images[side], keep[side]) for side in sides])
    if use_entropy:
        logits = np.concatenate([reference.classes(features[side], hidden[side]) for side in sides])
    else:
        logits = reference.classes(features[:HALF], hidden[:HALF])
    class_loss = nll(logits[:HALF], batch["labels"])
    of_target = entropy(logits[HALF:]) if use_entropy else 0.0
    domain_logits = reference.domains(features)
    wanted = 1 - batch["domains"] if fool else batch["domains"]
    # The paper adds the losses of the two domains.
    domain_loss = nll(domain_logits[:HALF], wanted[:HALF]) + nll(domain_logits[HALF:], wanted[HALF:])
    total = class_loss + weights[0] * domain_loss + weights[1] * of_target
    hits = (domain_logits.argmax(1) == batch["domains"]).mean()
    class_hits = (logits[:HALF].argmax(1) == batch["labels"]).mean()
    return total, class_loss, domain_loss, of_target, class_hits, hits


@pytest.mark.parametrize("fool", [False, True], ids=["reversal", "fool"])
@pytest.mark.parametrize("use_entropy", [False, True], ids=["without entropy", "with entropy"])
@pytest.mark.parametrize("joint", [False, True], ids=["separate", "joint"])
def test_adversarial_loss_matches_numpy(problem, joint, use_entropy, fool):
    network, domain, batch = problem
    weights = (0.7, 0.2)
    loss = AdversarialLoss(network, domain, joint, use_entropy, fool)
    factors = ms.Tensor(0.5, ms.float32), ms.Tensor(weights, ms.float32)
    total, rest = loss(*tensors(batch, *IMAGES), *factors, *tensors(batch, *MASKS))
    expected = expected_loss(Reference(network, domain), batch, joint, use_entropy, fool, weights)
    measured = [float(value) for value in (total, *rest)]
    np.testing.assert_allclose(measured, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("joint", [False, True], ids=["separate", "joint"])
def test_discriminator_loss_matches_numpy(problem, joint):
    network, domain, batch = problem
    loss, (hits,) = DiscriminatorLoss(network, domain, joint)(
        *tensors(batch, "images", "domains", "keep_map")
    )
    expected = expected_loss(Reference(network, domain), batch, joint, False, False, (1, 0))
    assert float(loss) == pytest.approx(expected[2], rel=2e-4)
    assert float(hits) == expected[5]


def domain_gradients(problem, strength):
    """The loss's gradients w.r.t. two of the backbone's weights and two of the domain classifier's."""
    network, domain, batch = problem
    loss = AdversarialLoss(network, domain, True, False)
    weights = ms.ParameterTuple(
        [network.backbone.bn2.beta, network.backbone.conv2.weight, domain.fc2.weight, domain.fc1.weight]
    )
    gradient = ms.value_and_grad(loss, None, weights, has_aux=True)
    factors = ms.Tensor(strength, ms.float32), ms.Tensor([1.0, 0.0], ms.float32)
    _, gradients = gradient(*tensors(batch, *IMAGES), *factors, *tensors(batch, *MASKS))
    return [g.asnumpy() for g in gradients]


def test_domain_gradient_is_reversed_in_the_backbone_and_only_there(problem):
    without, forward, reversed_ = (domain_gradients(problem, strength) for strength in (0.0, -1.0, 1.0))
    for index in (0, 1):  # the backbone: class gradient plus, or minus, the domain gradient
        domain_part = forward[index] - without[index]
        scale = np.abs(domain_part).max()
        assert scale > 1e-5
        np.testing.assert_allclose(reversed_[index] - without[index], -domain_part, atol=1e-3 * scale)
    for index in (2, 3):  # the domain classifier learns the same whatever the strength
        assert np.abs(forward[index]).max() > 1e-5
        np.testing.assert_allclose(reversed_[index], forward[index], rtol=1e-5, atol=1e-7)


def test_unreversed_gradient_is_that_of_the_numpy_loss(problem):
    network, domain, batch = problem
    analytic = domain_gradients(problem, -1.0)
    reference = Reference(network, domain)
    for index, name in ((0, "backbone.bn2.beta"), (2, "domain_classifier.fc2.weight")):
        place = np.unravel_index(np.abs(analytic[index]).argmax(), analytic[index].shape)
        kept, losses = reference.named[name], []
        for change in (1e-5, -1e-5):
            reference.named[name] = kept.copy()
            reference.named[name][place] += change
            losses.append(expected_loss(reference, batch, True, False, False, (1, 0))[0])
        reference.named[name] = kept
        assert analytic[index][place] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=2e-2)
