"""Supervised training against numpy computations that share no code with it."""

import logging
import math
import types

import mindspore as ms
import numpy as np
import pytest
from helpers import build, fails, graphs, tiny_config, train, values
from mindspore import nn, ops

from model_utils import checkpoint
from src import networks
from src.evaluation.evaluate import Evaluator, evaluating
from src.losses import classification as losses
from src.networks.heads import Classifier, LinearHead
from src.train_cells import find_method
from src.training import optim, precision
from src.training.averaging import Average
from src.training.schedules import warmup_and_decay

CLASSES, SIDE = 3, 2


class Rows(nn.Cell):
    """(N, 1, 2, 2) -> (N, 4): the pixels are the features."""

    masks, feature_size = (), SIDE * SIDE

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()

    def construct(self, images):
        return self.flatten(images)


class NormedRows(nn.Cell):
    """(N, 1, 2, 2) -> (N, 16) through a convolution and batch normalisation."""

    masks, feature_size = (), 4 * SIDE * SIDE

    def __init__(self):
        super().__init__()
        conv, norm = nn.Conv2d(1, 4, 3, pad_mode="pad", padding=1), nn.BatchNorm2d(4, momentum=0.9)
        self.body = nn.SequentialCell(conv, norm, nn.ReLU6(), nn.Flatten())

    def construct(self, images):
        return self.body(images)


def linear(dropout=0.0):
    """Softmax regression: (N, 1, 2, 2) -> (N, 3)."""
    return Classifier(Rows(), None, LinearHead(SIDE * SIDE, CLASSES, dropout), None, networks.Family())


def normed():
    """(N, 1, 2, 2) -> (N, 3)."""
    head = LinearHead(NormedRows.feature_size, CLASSES)
    return Classifier(NormedRows(), None, head, None, networks.Family())


class Source:
    """Random images, a pure function of the step; `shift` moves their mean."""

    steps_per_epoch = 3

    def __init__(self, batch_size, shift=0.0, factor=1.0):
        self.batch_size, self.shift, self.factor = batch_size, shift, factor

    def batch(self, step):
        rng = np.random.default_rng(step + 1)
        images = rng.normal(self.shift, 1, (self.batch_size, 1, SIDE, SIDE)) * self.factor
        return images.astype(np.float32), rng.integers(0, CLASSES, self.batch_size).astype(np.int32)


class Lists:
    """The given batches, {step: (images, labels)}."""

    steps_per_epoch = 3

    def __init__(self, batches):
        self.batches = batches

    def batch(self, step):
        return self.batches[step]


@pytest.fixture
def make(place, monkeypatch):
    """A function that builds supervised training of a small network, at the published rates."""
    published = {"lr_init": 0.05, "lr_max": 0.1, "warmup_epochs": 1, "batch_size": 8}

    def build(kind=linear, loaders=None, steps=6, seed=3, **changes):
        monkeypatch.setattr(networks, "build", lambda *arguments, **options: kind())
        settings = tiny_config("supervised", train_iterations=steps, **{**published, **changes})
        task = types.SimpleNamespace(
            classes=tuple("abc"),
            labelled=lambda *arguments, **options: loaders or {"train": Source(8)},
            held_out=lambda *arguments, **options: None,
        )
        ms.set_seed(seed)
        return find_method("supervised")(settings, place, task)

    return build


def parameter(network, name):
    """The parameter of that name, which may begin with that of the network."""
    return next(p for p in network.get_parameters() if p.name.endswith(name))


# Oracles, in float64.


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def wanted_probabilities(labels, smoothing, count):
    return (1 - smoothing) * np.eye(count)[labels] + smoothing / count


def oracle_rate(mode, step, total, warm, low, high, end):
    if step < warm:
        return low + (high - low) / warm * (step + 1)
    rest = np.linspace(0, 1, total - warm + 1)[step - warm]
    if mode == "cosine":
        return end + (high - end) * math.cos(math.pi / 2 * rest) ** 2
    if mode == "poly":
        return end + (high - end) * (1 - rest) ** 2
    if mode == "step":
        return high / 10 ** np.searchsorted([0.3 * total, 0.6 * total, 0.8 * total], step, "right")
    return high


def oracle_run(weight, bias, loader, steps, clip=0.0, ema=0.0, parts=1, decay=0.01, smoothing=0.1):
    """Softmax regression by SGD with momentum 0.9 in float64: the last weights, and their average."""
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    average = [weight.copy(), bias.copy()]
    for step in range(steps):
        images, labels = loader.batch(step)
        rows = images.reshape(len(images), -1).astype(float)
        error = softmax(rows @ weight.T + bias) - wanted_probabilities(labels, smoothing, CLASSES)
        gradients = [error.T @ rows / len(rows), error.mean(0)]
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        factor = min(1.0, clip / norm) if clip else 1.0
        gradients = [gradients[0] * factor + decay * weight, gradients[1] * factor]
        rate = oracle_rate("cosine", step, steps, 3, 0.05, 0.1, 1e-5)
        speed = [0.9 * v + g for v, g in zip(speed, gradients, strict=True)]
        weight, bias = weight - rate * speed[0], bias - rate * speed[1]
        share = min(ema, (1 + step) / (10 + step))
        average = [share * a + (1 - share) * w for a, w in zip(average, (weight, bias), strict=True)]
    return [weight, bias], average


# Losses, schedules, optimizer parts.


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_is_the_cross_entropy_with_mixed_labels(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (7, 5)).astype(np.float32), rng.integers(0, 5, 7).astype(np.int32)
    found = losses.smoothed_cross_entropy(ms.Tensor(logits), ms.Tensor(labels), smoothing)
    probabilities = softmax(logits.astype(float))
    wanted = -(wanted_probabilities(labels, smoothing, 5) * np.log(probabilities)).sum(1).mean()
    assert float(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("mode", ["cosine", "step", "poly", "constant"])
@pytest.mark.parametrize("warm", [0, 7])
def test_learning_rates(mode, warm):
    for step in range(50):
        found = warmup_and_decay(mode, step, 50, warm, 0.05, 0.1, 1e-5)
        assert found == pytest.approx(oracle_rate(mode, step, 50, warm, 0.05, 0.1, 1e-5), rel=1e-9), step


def test_published_schedule_at_its_corners():
    rates = [warmup_and_decay("cosine", s, 1500, 50, 0.05, 0.1, 1e-5) for s in range(1500)]
    assert rates[0] == pytest.approx(0.051)
    assert rates[49] == rates[50] == pytest.approx(0.1)
    assert rates[775] == pytest.approx(0.050005)
    assert 1e-5 < rates[-1] < 1.02e-5
    assert warmup_and_decay("one_cycle", 30, 101, 50, 9, 0.1, 9) == pytest.approx(0.1)


@pytest.mark.parametrize("method", ["supervised", "deepall", "hardnet"])
def test_a_schedule_of_other_methods_is_refused(place, method):
    build(tiny_config(method, lr_schedule="constant"), place)  # as in stored recipes, which name every key
    parts = "lr_schedule", method, "lr_decay_mode"
    fails(lambda: build(tiny_config(method, lr_schedule="one_cycle"), place), *parts)


def test_a_warm_up_longer_than_the_run_never_reaches_its_end():
    assert warmup_and_decay("cosine", 2, 3, 10, 0.0, 1.0, 0.0) == pytest.approx(0.3)


def test_only_weights_of_two_dimensions_are_decayed():
    network = normed()
    *groups, order = optim.decay_groups(network.trainable_params(), 0.25)
    decays = {p.name: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {
        "body.0.weight": 0.25,
        "body.1.gamma": 0.0,
        "body.1.beta": 0.0,
        "classifier.weight": 0.25,
        "classifier.bias": 0.0,
    }
    assert [p.name for p in order["order_params"]] == [p.name for p in network.trainable_params()]
    optimizer = optim.momentum("m", optim.decay_groups(network.trainable_params(), 0.25), 0.1, 0.9)
    assert [p.name for p in optimizer.parameters] == [p.name for p in network.trainable_params()]


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_keeps_the_direction(limit):
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (5,))]
    tensors = tuple(ms.Tensor(g) for g in gradients)
    norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in gradients))
    assert float(optim.global_norm(tensors)) == pytest.approx(norm, rel=1e-6)
    clipped = optim.clip_by_global_norm(tensors, optim.global_norm(tensors), limit)
    for before, after in zip(gradients, clipped, strict=True):
        np.testing.assert_allclose(after.asnumpy(), before * min(1, limit / norm), rtol=1e-5)


# Whole runs.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": 0.3},
        {"ema": 0.6},
        {"clip": 0.3, "ema": 0.999, "parts": 4},
        {"mode": "graph", "clip": 0.3, "ema": 0.9, "parts": 4},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_a_run_gives_the_weights_of_the_oracle(make, options):
    clip, ema, parts = options.get("clip", 0.0), options.get("ema", 0.0), options.get("parts", 1)
    cell = make(
        clip_grad_norm=clip,
        ema_decay=ema,
        gradient_accumulation=parts,
        weight_decay=0.01,
        mode=options.get("mode", "pynative"),
    )
    begin = [p.asnumpy().astype(float) for p in cell.trained.get_parameters()]
    wanted, average = oracle_run(*begin, Source(8), 6, clip, ema, parts)
    logged = train(cell)
    for found, expected in zip(cell.trained.get_parameters(), wanted, strict=True):
        np.testing.assert_allclose(found.asnumpy(), expected, rtol=2e-5, atol=2e-6)
    for found, expected in zip(cell.network.get_parameters(), average if ema else wanted, strict=True):
        np.testing.assert_allclose(found.asnumpy(), expected, rtol=2e-5, atol=2e-6)
    assert [scalars["lr"] for _, scalars in logged] == pytest.approx(
        [oracle_rate("cosine", step, 6, 3, 0.05, 0.1, 1e-5) for step in range(6)]
    )
    assert ("gradient_norm" in logged[0][1]) == (clip > 0)


def test_adam_reads_the_same_groups(make):
    cell = make(optimizer="adam", weight_decay=0.5, lr_max=0.01)
    weight, bias = (p.asnumpy().copy() for p in cell.trained.get_parameters())
    images, labels = Source(8).batch(0)
    rows = images.reshape(8, -1).astype(float)
    error = softmax(rows @ weight.T + bias) - wanted_probabilities(labels, 0.1, CLASSES)
    train(cell, 0, 1)
    rate = oracle_rate("cosine", 0, 6, 3, 0.05, 0.01, 1e-5)
    # The first step of Adam is the learning rate times the gradient's sign.
    for before, gradient, after in (
        (weight, error.T @ rows / 8 + 0.5 * weight, parameter(cell.trained, "classifier.weight")),
        (bias, error.mean(0), parameter(cell.trained, "classifier.bias")),
    ):
        np.testing.assert_allclose(after.asnumpy(), before - rate * np.sign(gradient), atol=1e-4)


def test_accumulated_parts_equal_one_large_batch(make):
    whole, parts = make(), make(gradient_accumulation=4)
    left, right = train(whole), train(parts)
    for (_, one), (_, other) in zip(left, right, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for one, other in zip(whole.network.get_parameters(), parts.network.get_parameters(), strict=True):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-5, atol=1e-6)


def test_domains_are_joined_part_by_part(make):
    domains = {"one": Source(8), "two": Source(4, shift=5)}
    batches = {name: loader.batch(0) for name, loader in domains.items()}
    cell, seen = make(loaders=domains, gradient_accumulation=2), []

    def step(parts, loss_scale):
        seen.extend([value.asnumpy() for value in part] for part in parts)
        return 0.0, (0.0,), 0.0, True

    cell.updates["train"].step = step
    cell.train_step(cell.phases[0], batches)
    halves = [slice(0, 4), slice(4, 8)], [slice(0, 2), slice(2, 4)]
    assert len(seen) == 2
    for found, one, two in zip(seen, *halves, strict=True):
        for kind, values_ in enumerate(found):
            wanted = np.concatenate((batches["one"][kind][one], batches["two"][kind][two]))
            np.testing.assert_array_equal(values_, wanted)
        assert len(found) == 2  # no masks
    with pytest.raises(ValueError, match="equal parts"):
        make(loaders=domains, gradient_accumulation=3).train_step(cell.phases[0], batches)


def test_dropout_masks_belong_to_the_step_and_reach_the_network(make):
    cell = make(lambda: linear(0.5))
    (first,), (again,), (later,) = (cell.masks(1000, "dropout", step, 0, 0) for step in (3, 3, 4))
    np.testing.assert_array_equal(first.asnumpy(), again.asnumpy())
    assert first.shape == (1000, SIDE * SIDE)
    assert abs((first.asnumpy() == 0).mean() - 0.5) < 0.05
    assert not np.array_equal(first.asnumpy(), later.asnumpy())
    (_, masked), (_, plain) = train(cell, 0, 1)[0], train(make(), 0, 1)[0]
    assert masked["loss"] != plain["loss"]
    # The loss is that of the masked features of the first step.
    images, labels = Source(8).batch(0)
    weight, bias = (p.asnumpy().astype(float) for p in make(lambda: linear(0.5)).network.get_parameters())
    (mask,) = cell.masks(8, "dropout", 0, 0, 0)
    logits = images.reshape(8, -1) * mask.asnumpy() @ weight.T + bias
    wanted = -(wanted_probabilities(labels, 0.1, CLASSES) * np.log(softmax(logits))).sum(1).mean()
    assert masked["loss"] == pytest.approx(wanted, rel=1e-5)


# Batch normalisation.


@pytest.mark.parametrize("policy", ["joint", "per_domain", "frozen"])
def test_batch_normalisation_takes_the_statistics_of_its_policy(make, policy):
    """Of two domains, one far from the other: loss and running statistics are those of numpy."""
    domains = {"one": Source(8), "two": Source(8, shift=3)}
    cell = make(normed, loaders=domains, batch_norm=policy)
    stored = {p.name: p.asnumpy().astype(float) for p in cell.network.get_parameters()}
    batches = [loader.batch(0) for loader in domains.values()]
    images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
    ((_, logged),) = train(cell, 0, 1)

    padded = np.pad(images[:, 0].astype(float), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    maps = np.einsum("nijhw,ohw->noij", windows, stored["body.0.weight"][:, 0])
    running, hidden = (stored["body.1.moving_mean"], stored["body.1.moving_variance"]), []
    for part in {"joint": [maps], "per_domain": [maps[:8], maps[8:]], "frozen": [maps]}[policy]:
        mean, variance = running
        if policy != "frozen":
            mean, variance = part.mean((0, 2, 3)), part.var((0, 2, 3))
            unbiased = variance * part[:, 0].size / (part[:, 0].size - 1)
            running = [0.9 * old + 0.1 * new for old, new in zip(running, (mean, unbiased), strict=True)]
        scale = stored["body.1.gamma"] / np.sqrt(variance + 1e-5)
        part = (part - mean[:, None, None]) * scale[:, None, None] + stored["body.1.beta"][:, None, None]
        hidden.append(np.clip(part, 0, 6).reshape(len(part), -1))
    logits = np.concatenate(hidden) @ stored["classifier.weight"].T + stored["classifier.bias"]
    wanted = -(wanted_probabilities(labels, 0.1, CLASSES) * np.log(softmax(logits))).sum(1).mean()
    assert logged["loss"] == pytest.approx(wanted, rel=1e-5)
    for name, value in zip(("moving_mean", "moving_variance"), running, strict=True):
        np.testing.assert_allclose(parameter(cell.network, name).asnumpy(), value, rtol=1e-5, atol=1e-6)


def test_a_step_is_compiled_once(make):
    """Neither the learning rate, nor masks, scales or parts may be constants of the graph."""
    options = {"amp_level": "O2", "loss_scale_mode": "dynamic", "loss_scale": 2.0**22}
    cell = make(
        lambda: linear(0.5),
        ema_decay=0.9,
        clip_grad_norm=1.0,
        gradient_accumulation=2,
        mode="graph",
        **options,
    )
    train(cell, 0, 1)
    before = len(graphs())
    train(cell, 1)
    assert len(graphs()) == before


def test_first_step_shifts_the_learning_rate_only(make):
    whole, rest = make(steps=9), make(steps=6, pretrain_epoch_size=1)
    for step in range(6):
        whole.phases[0].step, rest.phases[0].step = step + 3, step
        assert rest.learning_rate(rest.phases[0]) == whole.learning_rate(whole.phases[0])


def test_a_frozen_backbone_stays_to_the_last_statistic(make):
    cell = make(normed, freeze_backbone=True)
    before = values(cell)
    train(cell)
    moved = {name for name, value in values(cell).items() if not np.array_equal(before[name], value)}
    weights = {p.name for p in cell.network.get_parameters()}
    assert moved & weights == {"classifier.weight", "classifier.bias"}
    assert {p.name for p in cell.updates["train"].optimizers["network"].parameters} == moved & weights


def test_an_evaluation_leaves_every_cell_in_its_own_mode(place):
    cell = build(tiny_config("supervised", freeze_backbone=True, bottleneck=4), place)
    cell.start_phase(cell.phases[0])
    modes = {name: inner.training for name, inner in cell.network.cells_and_names()}
    assert modes["neck.norm"] and not modes["backbone"]
    with evaluating(cell.network, cell.network.neck):
        assert not any(inner.training for _, inner in cell.network.cells_and_names())
    assert modes == {name: inner.training for name, inner in cell.network.cells_and_names()}


# Mixed precision.


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_half_precision_trains_float32_weights(make, level, ema):
    cell, single = make(normed, amp_level=level, ema_decay=ema), make(normed, ema_decay=ema)
    found, wanted = train(cell), train(single)
    losses_found = [scalars["loss"] for _, scalars in found]
    assert losses_found == pytest.approx([scalars["loss"] for _, scalars in wanted], abs=0.02)
    assert losses_found != [scalars["loss"] for _, scalars in wanted]  # it did compute in half precision
    stored = values(cell)
    assert {value.dtype for name, value in stored.items() if value.dtype.kind == "f"} == {
        np.dtype(np.float32)
    }
    assert {n for n in stored if "/" not in n} == {p.name for p in normed().get_parameters()}
    assert any(name.startswith("trained/") for name in stored) == (ema > 0)
    images = ms.Tensor(Source(8).batch(0)[0])
    cell.network.set_train(False)
    plain = normed()
    checkpoint.fill(
        {p.name: p for p in plain.get_parameters()}, {n: stored[n] for n in stored if "/" not in n}, "", ""
    )
    logits = cell.network(images)
    assert logits.dtype == ms.float32
    np.testing.assert_allclose(logits.asnumpy(), plain.set_train(False)(images).asnumpy(), atol=1e-6)


def test_a_static_scale_changes_nothing_in_float32(make, monkeypatch):
    monkeypatch.setattr(precision, "lower", lambda network, level: network)  # the scale without float16
    plain, scaled = make(), make(amp_level="O1", loss_scale=1024.0)
    assert scaled.updates["train"].scaled and not plain.updates["train"].scaled
    assert train(plain) == train(scaled)  # a power of two only moves the exponent
    for one, other in zip(plain.network.get_parameters(), scaled.network.get_parameters(), strict=True):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())


def test_an_overflow_is_skipped_counted_and_logged(make, caplog):
    caplog.set_level(logging.INFO, "run")
    logging.getLogger("run").propagate = True
    cell = make(
        normed, loaders={"train": Source(8, factor=50)}, amp_level="O2", loss_scale_mode="dynamic",
        loss_scale=2.0**22, ema_decay=0.9, clip_grad_norm=1.0,
    )  # fmt: skip
    before = values(cell)
    (_, scalars), *_ = train(cell, 0, 1)
    after = values(cell)
    kept = [name for name in before if not name.startswith("loss_scale/") and "moving_" not in name]
    kept = [name for name in kept if not name.endswith("learning_rate")]
    assert [name for name in kept if not np.array_equal(before[name], after[name])] == []
    assert math.isfinite(scalars["loss"])
    assert scalars["scale"] == 2.0**22 and scalars["skipped"] == 1
    assert float(cell.loss_scale.scale) == 2.0**21
    assert "overflowed at loss scale 4.1943e+06" in caplog.text
    cell.loss_scale.scale.assign_value(ms.Tensor(1024.0, ms.float32))
    (_, scalars), *_ = train(cell, 1, 2)
    assert scalars["skipped"] == 1
    assert not np.array_equal(
        values(cell)["trained/trained.classifier.weight"], after["trained/trained.classifier.weight"]
    )


def test_sums_of_an_overflow_do_not_reach_the_next_step(make):
    options = {"amp_level": "O2", "loss_scale_mode": "dynamic", "gradient_accumulation": 2}
    good = Source(8)
    images, labels = good.batch(0)
    bad = Lists({0: (images * 1000, labels), 1: good.batch(1)})
    cell = make(loaders={"train": bad}, steps=2, loss_scale=2.0**24, **options)
    train(cell, 0, 1)
    assert int(cell.loss_scale.skipped) == 1
    ops.assign(cell.loss_scale.scale, ms.Tensor(1.0, ms.float32))
    train(cell, 1, 2)
    assert all(np.isfinite(p.asnumpy()).all() for p in cell.network.get_parameters())


def test_at_the_smallest_scale_nothing_is_hidden(make):
    images, labels = Source(8).batch(0)
    images[0] = np.inf
    cell = make(
        loaders={"train": Lists({0: (images, labels)})},
        amp_level="O2",
        loss_scale_mode="dynamic",
        loss_scale=1.0,
    )
    train(cell, 0, 1)
    assert int(cell.loss_scale.skipped) == 0
    assert not np.isfinite(parameter(cell.network, "classifier.weight").asnumpy()).all()


def test_a_dynamic_scale_doubles_after_good_steps_within_bounds():
    scale = precision.LossScale(4.0, window=3)
    seen = []
    for overflow in (False, False, False, True, False, False, False, True, True, True, True):
        scale.adjust(overflow)
        seen.append(float(scale.scale))
    assert seen == [4, 4, 8, 4, 4, 4, 8, 4, 2, 1, 1]
    assert int(scale.skipped) == 5
    top = precision.LossScale(precision.SCALE_MAX, window=1)
    top.adjust(False)
    assert float(top.scale) == precision.SCALE_MAX


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_bad_gradient_is_found(bad):
    good = [np.ones((2, 3), np.float32), np.full(4, 3e38, np.float32)]
    assert bool(optim.all_finite(tuple(ms.Tensor(g) for g in good)))
    good[1][2] = bad
    assert not bool(optim.all_finite(tuple(ms.Tensor(g) for g in good)))


def test_sharing_needs_the_same_kind_of_network():
    with pytest.raises(ValueError, match="no counterpart"):
        precision.share_parameters(normed(), linear())


# Resume, averaging, evaluation.


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_with_everything_on_ends_bit_identical(make, tmp_path, accumulation):
    options = {
        "amp_level": "O2",
        "loss_scale_mode": "dynamic",
        "loss_scale": 2.0**24,
        "ema_decay": 0.9,
        "clip_grad_norm": 0.5,
        "gradient_accumulation": accumulation,
        "loaders": {"train": Source(8, factor=20)},
    }
    whole = make(normed, **options)
    logged = train(whole, 0, 3)
    checkpoint.save_state(whole.state(), {"step": 3}, tmp_path / "half.ckpt")
    logged += train(whole, 3)
    assert logged[-1][1]["skipped"] > 0
    resumed = make(normed, seed=8, **options)
    checkpoint.restore_state(resumed.state(), checkpoint.read(tmp_path / "half.ckpt")[0], "")
    assert train(resumed, 3) == logged[3:]
    wanted, found = values(whole), values(resumed)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not np.array_equal(wanted[name], found[name])] == []


def test_the_average_takes_in_running_statistics_and_starts_as_a_copy():
    trained, averaged = normed(), normed()
    trained.prefix_names("trained.")
    average = Average(trained, averaged, 0.99, types.SimpleNamespace(mode="graph"))
    statistic, mean = (parameter(network, "moving_mean") for network in (trained, averaged))
    weights = [parameter(network, "classifier.weight").asnumpy() for network in (trained, averaged)]
    np.testing.assert_array_equal(*weights)
    ops.assign(statistic, ms.Tensor([1.0, 2, 3, 4], ms.float32))
    average.update(0)
    np.testing.assert_allclose(mean.asnumpy(), [0.9, 1.8, 2.7, 3.6], rtol=1e-6)
    average.update(10_000)
    np.testing.assert_allclose(
        mean.asnumpy(), 0.99 * 0.9 * np.arange(1, 5) + 0.01 * np.arange(1, 5), rtol=1e-6
    )


class Given(nn.Cell):
    """Logits (N, K) from images (N, 1, 1, K): the images themselves."""

    def features(self, images):
        return images[:, 0, 0]

    def classify(self, features):
        return features


class Few(list):
    batch_size = 4


@pytest.mark.parametrize("classes", [5, 6, 9])
def test_top5_counts_each_image_once(place, classes):
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(size=(10, classes)).astype(np.float32), rng.integers(0, classes, 10)
    images = logits[:, None, None]
    loader = Few((images[i : i + 4], labels[i : i + 4].astype(np.int32)) for i in (0, 4, 8))
    settings = types.SimpleNamespace(mode="graph")
    evaluator = Evaluator(Given(), settings, place, top5=True)
    better = (logits > logits[np.arange(10), labels][:, None]).sum(1)
    assert evaluator.accuracies({"val": loader}) == {"val": (better == 0).mean()}
    assert evaluator.accuracies({"val": loader}) == Evaluator(Given(), settings, place).accuracies(
        {"val": loader}
    )
    assert evaluator.top5_accuracy == ({"val": (better < 5).mean()} if classes > 5 else {})
