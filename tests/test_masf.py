"""MASF's train cell: whole episodes against numpy and PyTorch in float64, and what the method promises."""

import itertools
import types

import mindspore as ms
import numpy as np
import pytest
from helpers import TINY, build, command, fails, options, refused, succeeded, tiny_config, train, values
from mindspore import nn, ops
from test_masf_losses import global_loss, triplet_loss

from model_utils import noise
from src import networks
from src.networks.heads import Classifier
from src.setup import settings as experiment
from src.train_cells import find_method

CONFIG, MASF = TINY / "masf.yaml", find_method("masf")
SIDE = 4  # the tiny network sees 4x4 mean values of a digit
COMPILED = []


@ops.constexpr
def _compiling(size):
    """Runs once in each compilation, never in a step."""
    COMPILED.append(size)
    return size


class TinyBackbone(nn.Cell):
    """With its class head 172 weights: few enough to differentiate by differences."""

    masks, head_dropout, feature_size = (), 0.5, 6

    def __init__(self):
        super().__init__()
        self.hidden = nn.Dense(SIDE * SIDE, 6)

    def construct(self, images):
        size = _compiling(images.shape[2] // SIDE)
        x = ops.reshape(images[:, 0], (-1, SIDE, size, SIDE, size))
        return ops.tanh(self.hidden(ops.reshape(ops.mean(x, (2, 4)), (-1, SIDE * SIDE))))


def tiny_network(config, classes, twice=False, dropout=None):
    """What `networks.build` returns, of that backbone."""
    family, backbone = networks.Family(), TinyBackbone()
    return Classifier(
        backbone, None, family.head(backbone, classes, config), networks.preparation(config), family
    )


def settings_of(**changes):
    """Rates at which every part of the step counts."""
    keys = {"meta_batch_size": 12, "inner_lr": 0.5, "outer_lr": 0.1, "metric_lr": 0.1, "local_weight": 0.05}
    return tiny_config("masf", **{**keys, **changes})


def tiny_cell(settings, place, monkeypatch):
    """A cell whose network is the tiny one, with weights large enough for gradients to be so."""
    monkeypatch.setattr(networks, "build", tiny_network)
    cell = build(settings, place)
    rng = np.random.default_rng(5)
    for weight in cell.network.trainable_params():
        ops.assign(weight, ms.Tensor(rng.normal(0, 1.2, weight.shape), ms.float32))
    cell.start_phase(cell.phases[0])
    return cell


def episode(cell, step=0):
    """Images, labels and dropout masks of each domain in the step's order: [(x, y, inner, meta)]."""
    settings, batch, order = cell.config, cell.phases[0].batch(step), cell.episode(step)
    shape, size = cell.network.masks[0][0], settings.meta_batch_size
    masks = [
        noise.keep_mask(
            noise.generator(settings.seed, f"dropout {name}", step, 0), (count * size, *shape), 0.5
        ).reshape(count, size, *shape)
        for name, count in (("inner", len(order) - 1), ("meta", len(order)))
    ]
    return [
        (*batch[name], inner, meta)
        for name, inner, meta in itertools.zip_longest(order, *masks, fillvalue=None)
    ]


def flat(arrays):
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def buffer(parameters):
    return flat(parameter.asnumpy() for parameter in parameters)


def relative(ours, expected):
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


# The oracle: the tiny network, its backward pass and the meta objective, in numpy's float64.


class Oracle:
    """The episode of a cell with the tiny network as functions of its flat weights."""

    def __init__(self, cell, step=0):
        self.settings = cell.config
        self.shapes = [tuple(weight.shape) for weight in cell.network_weights]
        self.start = buffer(cell.network_weights)
        self.metric = [weight.asnumpy().astype(np.float64) for weight in cell.metric_weights]
        self.domains = []
        for x, y, inner, meta in episode(cell, step):
            x = x[:, 0].astype(np.float64).reshape(-1, SIDE, 7, SIDE, 7).mean((2, 4)).reshape(-1, SIDE * SIDE)
            self.domains.append((x, y, inner, meta))

    def unpack(self, weights):
        parts = np.split(weights, np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def task(self, weights):
        """(loss, gradient)"""
        w1, b1, w2, b2 = self.unpack(weights)
        losses, total = [], [np.zeros(shape) for shape in self.shapes]
        for x, y, mask, _ in self.domains[:-1]:
            hidden = np.tanh(x @ w1.T + b1)
            dropped = hidden * mask
            logits = dropped @ w2.T + b2
            exponents = np.exp(logits - logits.max(1, keepdims=True))
            error = exponents / exponents.sum(1, keepdims=True)
            losses.append(-np.log(error[np.arange(len(y)), y]).mean())
            error[np.arange(len(y)), y] -= 1
            error /= len(y)
            back = (error @ w2) * mask * (1 - hidden**2)
            for place, part in enumerate((back.T @ x, back.sum(0), error.T @ dropped, error.sum(0))):
                total[place] += part / (len(self.domains) - 1)
        return np.mean(losses), flat(total)

    def clip(self, gradient):
        limit = self.settings.gradients_clip_value
        return flat([g * min(1.0, limit / np.linalg.norm(g)) for g in self.unpack(gradient)])

    def moved(self, weights):
        """θ'; the gradient of the authors' code is that of the sum over a domain's images."""
        summed = len(self.domains[0][1]) if self.settings.inner_gradient == "sum" else 1
        return weights - self.settings.inner_lr * self.clip(summed * self.task(weights)[1])

    def embed(self, features, metric):
        for weight, bias in zip(metric[::2], metric[1::2], strict=True):
            features = features @ weight.T + bias
            features = np.where(features > 0, features, 0.2 * features)
        return features

    def meta(self, moved, metric=None):
        """(global, local) at the moved weights."""
        w1, b1, w2, b2 = self.unpack(moved)
        hidden = [np.tanh(x @ w1.T + b1) for x, *_ in self.domains]
        logits = [h * mask @ w2.T + b2 for h, (*_, mask) in zip(hidden, self.domains, strict=True)]
        labels = [y for _, y, *_ in self.domains]
        share = len(labels[0]) // len(labels)
        embedded = self.embed(np.concatenate([h[:share] for h in hidden]), metric or self.metric)
        local = triplet_loss(embedded, np.concatenate([y[:share] for y in labels]), self.settings.margin)
        return global_loss(logits, labels, 10, self.settings.temperature), local

    def weighted(self, moved):
        aligned, local = self.meta(moved)
        return self.settings.global_weight * aligned + self.settings.local_weight * local

    def slope(self, function, point, direction, step=1e-5):
        return (function(point + step * direction) - function(point - step * direction)) / (2 * step)

    def objective(self):
        """(function, point) whose gradient the meta-gradient is."""
        if self.settings.meta_order == "second":
            return lambda weights: self.weighted(self.moved(weights)), self.start
        return self.weighted, self.moved(self.start)

    def meta_gradient(self):
        function, point = self.objective()
        return np.array([self.slope(function, point, unit) for unit in np.eye(len(point))])


def adam_first(gradient, lr):
    """Adam's first step: m̂ = g, v̂ = g²; epsilon beside √v, as in MindSpore."""
    return -lr * gradient / (np.abs(gradient) + 1e-8 / np.sqrt(1 - 0.999))


CASES = [
    ("first", 2.0, "pynative", {}),
    pytest.param("first", 2.0, "graph", {}, marks=pytest.mark.thorough),
    pytest.param("second", 2.0, "graph", {}, marks=pytest.mark.thorough),
    ("second", 0.05, "graph", {}),  # most tensors are clipped: the clipping's Jacobian counts
    pytest.param("second", 0.05, "pynative", {}, marks=pytest.mark.thorough),
    ("first", 2.0, "pynative", {"inner_gradient": "sum"}),
    # At this rate the step is as long as above, and some tensors are clipped, others not.
    ("second", 2.0, "pynative", {"inner_gradient": "sum", "inner_lr": 0.1}),
]


@pytest.mark.parametrize("order, limit, mode, more", CASES)
def test_a_whole_update_is_that_of_numpy(place, monkeypatch, order, limit, mode, more):
    settings = settings_of(meta_order=order, gradients_clip_value=limit, mode=mode, **more)
    cell = tiny_cell(settings, place, monkeypatch)
    oracle = Oracle(cell)
    ((_, logged),) = train(cell, 0, 1)
    loss, task_gradient = oracle.task(oracle.start)
    aligned, local = oracle.meta(oracle.moved(oracle.start))
    expected = {"task_loss": loss, "global_loss": aligned, "local_loss": local}
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert logged["loss"] == pytest.approx(loss + aligned + settings.local_weight * local, rel=1e-5)
    meta_gradient = oracle.meta_gradient()
    assert relative(buffer(cell.task_gradients), task_gradient) < 1e-5
    assert relative(buffer(cell.meta_gradients), meta_gradient) < 1e-5
    by_task = adam_first(task_gradient, settings.outer_lr)
    by_meta = adam_first(oracle.clip(meta_gradient), settings.outer_lr)
    assert relative(buffer(cell.network_weights), oracle.start + by_task + by_meta) < 1e-5
    # Adam divides by the gradient: where that is tiny, float32 has fewer digits.
    assert relative(buffer(cell.network_weights) - oracle.start, by_task + by_meta) < 1e-4


def test_the_published_configuration_has_the_authors_form():
    resolved = experiment.load(["--config", "configs/masf_pacs.yaml"])
    wanted = {"initial_weights": "glorot_biases", "image_means": "vgg", "inner_gradient": "sum"}
    wanted |= {"meta_order": "first", "margin": 10.0, "local_weight": 0.005, "gradients_clip_value": 2.0}
    wanted |= dict.fromkeys(("inner_lr", "outer_lr", "metric_lr"), 1e-5)
    assert {key: getattr(resolved, key) for key in wanted} == wanted


def test_the_exact_meta_gradient_has_the_slopes_of_its_objective(place, monkeypatch):
    """Along 20 random directions, and the first-order gradient has not."""
    gradients = {}
    for order in ("first", "second"):
        cell = tiny_cell(settings_of(meta_order=order, gradients_clip_value=0.5), place, monkeypatch)
        oracle = Oracle(cell)
        train(cell, 0, 1)
        gradients[order] = buffer(cell.meta_gradients)
    function, point = oracle.objective()
    rng = np.random.default_rng(0)
    wrong = []
    for _ in range(20):
        direction = rng.normal(size=len(point))
        slope = oracle.slope(function, point, direction)
        assert gradients["second"] @ direction == pytest.approx(slope, rel=1e-3)
        wrong.append(abs(gradients["first"] @ direction / slope - 1))
    assert np.median(wrong) > 0.02


def test_the_metric_network_follows_the_local_loss_alone(place, monkeypatch):
    """Its gradient is the local loss's own, whatever the weights of the losses; it has one optimizer."""
    oracle, gradients = None, []
    for weights in ({"local_weight": 0.05}, {"local_weight": 0, "global_weight": 0}):
        cell = tiny_cell(settings_of(**weights, meta_order="first"), place, monkeypatch)
        oracle = oracle or Oracle(cell)
        train(cell, 0, 1)
        gradients.append(buffer(cell.metric_gradients))
    # The share of the features' gradient is taken off by rounding to 1e-7 of their value.
    assert relative(*gradients) < 1e-5
    assert not buffer(cell.meta_gradients).any()
    moved = oracle.moved(oracle.start)
    rng = np.random.default_rng(1)
    for _ in range(5):
        parts = [rng.normal(size=weight.shape) for weight in oracle.metric]
        near = [
            oracle.meta(moved, [w + h * d for w, d in zip(oracle.metric, parts, strict=True)])[1]
            for h in (1e-6, -1e-6)
        ]
        assert gradients[0] @ flat(parts) == pytest.approx((near[0] - near[1]) / 2e-6, rel=1e-4)
    assert {w.name for w in cell.optimizers["metric"].parameters} == {w.name for w in cell.metric_weights}
    for name in ("task", "meta"):
        assert {w.name for w in cell.optimizers[name].parameters} == {w.name for w in cell.network_weights}


def test_the_inner_step_is_taken_back_bit_by_bit(place, monkeypatch):
    cell = tiny_cell(settings_of(gradients_clip_value=0.05, meta_order="first"), place, monkeypatch)
    oracle, before = Oracle(cell), values(cell)
    order = cell.episode(0)
    images, labels, mask = cell._tensors(cell.phases[0].batch(0), order[:-1], 0, "inner")
    cell._inner(images, labels, cell.inner_lr, mask)
    np.testing.assert_allclose(buffer(cell.network_weights), oracle.moved(oracle.start), rtol=1e-5, atol=1e-6)
    cell._restore()
    after = values(cell)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_one_compilation_serves_every_choice_of_the_meta_test_domain(place, monkeypatch):
    cell = tiny_cell(settings_of(train_iterations=40, meta_order="first", mode="graph"), place, monkeypatch)
    COMPILED.clear()
    train(cell, 0, 1)
    first = len(COMPILED)
    assert first
    assert len({cell.episode(step)[-1] for step in range(1, 12)}) == 3
    train(cell, 1, 12)
    assert len(COMPILED) == first
    cell.config = cell.config.replace(meta_batch_size=9)  # another shape does compile anew
    batch = {name: (x[:9], y[:9]) for name, (x, y) in cell.phases[0].batch(0).items()}
    cell.train_step(cell.phases[0], batch)
    assert len(COMPILED) > first


def test_episodes_are_drawn_evenly_by_seed_and_step(place, monkeypatch):
    cell = tiny_cell(settings_of(), place, monkeypatch)
    drawn = [cell.episode(step) for step in range(600)]
    assert all(sorted(order) == sorted(cell.names) for order in drawn)
    counts = [sum(order[-1] == name for order in drawn) for name in cell.names]
    assert min(counts) > 150
    assert drawn == [cell.episode(step) for step in range(600)]
    other = tiny_cell(settings_of(seed=1), place, monkeypatch)
    assert drawn != [other.episode(step) for step in range(600)]


def test_the_rates_follow_the_schedule(place, monkeypatch):
    cell = tiny_cell(settings_of(lr_schedule="one_cycle", train_iterations=4), place, monkeypatch)
    rates = [logged["lr"] for _, logged in train(cell)]
    assert rates[0] == pytest.approx(0.1 / 25) and max(rates) > 0.09 and rates[-1] < 1e-4
    ends = {name: float(cell.optimizers[name].learning_rate.asnumpy()) for name in cell.optimizers}
    assert ends == pytest.approx({"task": rates[-1], "meta": rates[-1], "metric": rates[-1]})


def test_the_network_starts_as_deepalls(place):
    ours, plain = build(tiny_config("masf", seed=3), place), build(tiny_config("deepall", seed=3), place)
    left, right = ({p.name: p.asnumpy() for p in cell.network.get_parameters()} for cell in (ours, plain))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("order", ["first", pytest.param("second", marks=pytest.mark.thorough)])
def test_it_learns_the_source_domains(place, order):
    cell = build(tiny_config("masf", train_iterations=60, dropout=0, meta_order=order, mode="graph"), place)
    logged = train(cell)
    assert logged[-1][1]["task_loss"] < 0.5 * logged[0][1]["task_loss"]
    accuracies = cell.validate(cell.phases[0])
    assert list(accuracies) == [f"held_out_{name}_accuracy" for name in ("0", "25", "75")]
    assert all(value > 0.5 for value in accuracies.values())


# Batch normalisation, in the network of DANN


def network_statistics(cell, images, first, second):
    """{name: (mean, variance, number of values of a channel)} of each batch normalisation in training.

    In numpy's float64. first, second: dropout masks of the second convolution and of the hidden layer.
    """
    weights = {p.name: p.asnumpy().astype(np.float64) for p in cell.network.get_parameters()}
    found = {}

    def convolve(x, name):
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (2, 3))
        x = np.einsum("ncijhw,ochw->noij", windows, weights[f"{name}.weight"], optimize=True)
        return x + weights[f"{name}.bias"][:, None, None]

    def normalise(x, name):
        axes = (0, 2, 3)[: x.ndim - 1] if x.ndim == 4 else (0,)
        shape = (1, -1, 1, 1)[: x.ndim]
        mean, variance = x.mean(axes), x.var(axes)
        found[name] = mean, variance, x.size // x.shape[1]
        x = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
        return x * weights[f"{name}.gamma"].reshape(shape) + weights[f"{name}.beta"].reshape(shape)

    def pool(x):
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = np.maximum(pool(normalise(convolve(images * 2.0 - 1.0, "backbone.conv1"), "backbone.bn1")), 0)
    x = np.maximum(pool(normalise(convolve(x, "backbone.conv2"), "backbone.bn2") * first), 0)
    x = dense(x.reshape(len(x), -1), "class_classifier.fc1")
    x = np.maximum(normalise(x, "class_classifier.bn1"), 0) * second
    normalise(dense(x, "class_classifier.fc2"), "class_classifier.bn2")
    return found


def largest_difference(before, after, statistics):
    """Between running statistics `after` and what a pass with these `statistics` makes of those `before`."""
    differences = []
    for name, (mean, variance, count) in statistics.items():
        for kind, value in (("mean", mean), ("variance", variance * count / (count - 1))):
            old = before[f"{name}.moving_{kind}"]
            differences.append(np.abs(after[f"{name}.moving_{kind}"] - (0.9 * old + 0.1 * value)).max())
    return max(differences)


@pytest.mark.parametrize("order", [pytest.param("first", marks=pytest.mark.thorough), "second"])
def test_running_statistics_are_those_of_the_task_pass(place, order):
    """At the start weights: neither of the pass at the moved ones, nor of that for second derivatives."""
    settings = settings_of(network="dann", meta_order=order, gradients_clip_value=100.0)
    cell = build(settings, place)
    before, domains = values(cell), cell.episode(0)[:-1]
    images = np.concatenate([cell.phases[0].batch(0)[name][0] for name in domains])
    masks = [mask.asnumpy() for mask in cell.masks(len(images), "dropout inner", 0, 0)]
    expected = network_statistics(cell, images, *masks)
    train(cell, 0, 1)
    after = values(cell)
    assert largest_difference(before, after, expected) < 1e-5
    assert len([name for name in before if "moving_" in name]) == 2 * len(expected) == 8
    # The weights did move in the inner step, and the statistics with them.
    for weight, gradient in zip(cell.network_weights, cell.task_gradients, strict=True):
        moved = before[weight.name] - settings.inner_lr * gradient.asnumpy()
        ops.assign(weight, ms.Tensor(moved))
    assert largest_difference(before, after, network_statistics(cell, images, *masks)) > 1e-2


def test_frozen_batch_normalisation_keeps_its_statistics(place):
    """That of the backbone; the class head's goes on."""
    cell = build(settings_of(network="dann", meta_order="second", batch_norm="frozen"), place)
    before = values(cell)
    train(cell, 0, 1)
    after = values(cell)
    moved = {name for name in before if "moving_" in name and not np.array_equal(before[name], after[name])}
    assert moved == {f"class_classifier.bn{n}.moving_{kind}" for n in (1, 2) for kind in ("mean", "variance")}


# Mixed precision


@pytest.mark.parametrize(
    "level, order",
    [
        pytest.param("O1", "first", marks=pytest.mark.thorough),
        ("O2", "first"),
        pytest.param("O2", "second", marks=pytest.mark.thorough),
        pytest.param("O3", "first", marks=pytest.mark.thorough),
    ],
)
def test_gradients_in_half_precision_are_float32s_within_its_precision(place, monkeypatch, level, order):
    """Of a smooth network, in which no rounding changes which of several values is the largest."""
    cell = tiny_cell(settings_of(amp_level=level, meta_order=order), place, monkeypatch)
    oracle = Oracle(cell)
    ((_, logged),) = train(cell, 0, 1)
    loss, task_gradient = oracle.task(oracle.start)
    aligned, local = oracle.meta(oracle.moved(oracle.start))
    expected = {"task_loss": loss, "global_loss": aligned, "local_loss": local}
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=5e-3)
    errors = [
        relative(buffer(cell.task_gradients), task_gradient),
        relative(buffer(cell.meta_gradients), oracle.meta_gradient()),
    ]
    assert 1e-5 < errors[0] < 2e-3  # it did compute in half precision
    assert errors[1] < 2e-2
    assert {p.dtype for p in cell.network.get_parameters()} == {ms.float32}


@pytest.mark.thorough
def test_batch_normalisation_and_second_derivatives_go_with_half_precision(place):
    """The gradient of the last layer: rounding changes choices of pooling and ReLU behind the others."""
    found = []
    for level in ("O0", "O2"):
        keys = {"network": "dann", "ema_decay": 0.9, "inner_lr": 0.01, "outer_lr": 1e-3, "meta_batch_size": 6}
        cell = build(settings_of(amp_level=level, meta_order="second", **keys), place)
        ((_, logged),) = train(cell, 0, 1)
        last = [p.asnumpy() for p in cell.task_gradients if "trained.class_classifier.fc3" in p.name]
        found.append((logged, flat(last), buffer(cell.statistics)))
    (single, gradient, statistics), (half, *other) = found
    assert half["task_loss"] == pytest.approx(single["task_loss"], rel=1e-3) and half != single
    assert 1e-5 < relative(other[0], gradient) < 2e-2
    assert relative(other[1], statistics) < 1e-3


# Against PyTorch, which the plain benchmark is timed against, too.


@pytest.fixture
def torch_step(place):
    """(cell, PyTorch's step in float64 with the same weights, batch of a step as its arguments)."""
    torch = pytest.importorskip("torch")
    from benchmarks.torch_masf import TorchStep

    def make(**changes):
        cell = build(settings_of(outer_lr=0.001, metric_lr=0.001, **changes), place)
        cell.start_phase(cell.phases[0])
        second = cell.config.meta_order == "second"
        step = TorchStep(cell.config, second, torch.float64, classes=10)
        for own, network in ((cell.network_weights, step.network), (cell.metric_weights, step.metric)):
            for ours, theirs in zip(own, network.parameters(), strict=True):
                assert tuple(ours.shape) == tuple(theirs.shape)
                theirs.data = torch.from_numpy(ours.asnumpy().astype(np.float64))

        def batch(number):
            columns = list(zip(*episode(cell, number), strict=True))
            tensor = lambda array: torch.from_numpy(array.astype(np.float64))  # noqa: E731
            domains = [
                (tensor(x), torch.from_numpy(y).long()) for x, y in zip(columns[0], columns[1], strict=True)
            ]
            return domains, [tensor(mask) for mask in columns[2][:-1]], [tensor(mask) for mask in columns[3]]

        return types.SimpleNamespace(cell=cell, step=step, batch=batch, torch=torch)

    return make


@pytest.mark.parametrize("order, limit", [("first", 2.0), ("second", 2.0), ("second", 0.02)])
def test_updates_of_the_convolutional_network_are_pytorchs(torch_step, order, limit):
    made = torch_step(meta_order=order, gradients_clip_value=limit)
    cell, step = made.cell, made.step
    before = buffer(cell.network_weights)
    losses, *expected = step.gradients(*made.batch(0))
    expected = [flat(gradient.detach() for gradient in part) for part in expected]
    step(*made.batch(0))
    ((_, logged),) = train(cell, 0, 1)
    for name, value in losses.items():
        assert logged[f"{name}_loss"] == pytest.approx(value.item(), rel=1e-5), name
    own = (cell.task_gradients, cell.meta_gradients, cell.metric_gradients)
    for ours, theirs in zip(own, expected, strict=True):
        assert relative(buffer(ours), theirs) < 1e-5
    after = flat(weight.detach() for weight in step.network.parameters())
    # Adam takes the sign of a gradient: of 140,602 a few lie within rounding of 0.
    assert relative(buffer(cell.network_weights) - before, after - before) < 1e-2


def test_exact_meta_gradient_of_the_convolutional_network_by_differences(torch_step):
    """20 random directions; the objective in float64 from first derivatives alone."""
    made = torch_step(meta_order="second", gradients_clip_value=0.5)
    cell, step, torch = made.cell, made.step, made.torch
    step.second = False
    train(cell, 0, 1)
    gradient = buffer(cell.meta_gradients)
    batch = made.batch(0)
    weights = list(step.network.parameters())
    start = [weight.data.clone() for weight in weights]
    rng = np.random.default_rng(0)

    def objective(direction, step_size):
        at = 0
        for weight, value in zip(weights, start, strict=True):
            part = direction[at : at + value.numel()].reshape(value.shape)
            weight.data = value + step_size * torch.from_numpy(part)
            at += value.numel()
        losses = step.gradients(*batch)[0]
        return (losses["global"] + cell.config.local_weight * losses["local"]).item()

    size = np.linalg.norm(gradient)
    for _ in range(20):
        direction = rng.normal(size=len(gradient))
        # As much of the gradient in each, so that the slope is no small difference of large terms.
        direction = direction / np.linalg.norm(direction) + gradient / size
        # ∇L jumps where a ReLU or a pooling changes its mind: so close to the weights none does.
        slope = (objective(direction, 1e-8) - objective(direction, -1e-8)) / 2e-8
        assert gradient @ direction == pytest.approx(slope, rel=1e-3)


# What users give


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"meta_batch_size": 25}, ["meta_batch_size: 25", "3 source domains", "multiple of 3"]),
        ({"meta_batch_size": 3000}, ["meta_batch_size: 3000", "training images of domain 0"]),
        ({"target_domain": "51"}, ["target_domain: '51'", "50"]),
        ({"source_domains": "0"}, ["fewer than two source domains", "50"]),
        ({"bvlc_path": "weights.npy"}, ["pretrained: weights.npy", "no other format is known"]),
        ({"network": "photos", "image_size": 28}, ["image_size: 28", "photos takes 64"]),
        ({"batch_norm": "per_domain"}, ["batch_norm: per_domain", "method masf", "joint or frozen"]),
        ({"sync_bn": True, "meta_order": "second"}, ["sync_bn: ", "meta_order first"]),
    ],
)
def test_bad_input_is_one_line(place, changes, parts):
    fails(lambda: build(tiny_config("masf", **changes), place), *parts)


OTHER = {"optimizer": "momentum", "weight_decay_on": "all", "loss_scale_mode": "dynamic"}


@pytest.mark.parametrize("name", MASF.OWN_STEP)
def test_keys_that_do_not_apply_to_its_step_are_refused(place, name):
    """Given their defaults they are harmless: a stored recipe names every key."""
    default = tiny_config("masf").keys[name].default
    other = OTHER.get(name, 2 if name == "gradient_accumulation" else 0.5)
    assert other != default
    fails(lambda: build(tiny_config("masf", **{name: other}), place), f"{name}: method masf")
    assert build(tiny_config("masf", **{name: default}), place).network


@pytest.mark.parametrize("name, key", MASF.ALIASES.items())
def test_published_option_names_work(name, key):
    assert getattr(experiment.load([f"--config={CONFIG}", f"--{name}=7"]), key) == 7


def test_defaults_are_the_published_ones():
    defaults = experiment.load(options(method="masf")).as_dict()
    published = {
        **{"meta_batch_size": 126, "inner_lr": 1e-5, "outer_lr": 1e-5, "metric_lr": 1e-5, "margin": 10.0},
        **{"train_iterations": 300, "dropout": 0.5, "local_weight": 0.005, "temperature": 2.0},
        **{"gradients_clip_value": 2.0, "meta_order": "first", "network": "alexnet", "domain_set": "pacs"},
    }
    assert published.items() <= defaults.items()


def test_train_evaluate_and_refuse(tmp_path):
    out = tmp_path / "run"
    succeeded(command("train.py", config=CONFIG, output_dir=out, device_target="CPU", train_iterations=2))
    shown = succeeded(command("eval.py", ckpt_path=out, device_target="CPU"))
    assert all(domain in shown for domain in ("0", "25", "75", "50"))
    keys = {"config": CONFIG, "output_dir": tmp_path / "other", "device_target": "CPU"}
    refused(command("train.py", **keys, meta_batch_size=25), "meta_batch_size: 25")
