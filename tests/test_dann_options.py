"""DANN's options: self-training on pseudo-labels, virtual adversarial training, conditional alignment."""

import mindspore as ms
import numpy as np
import pytest
from helpers import build, graphs, tiny_config, train, values
from mindspore import nn, ops

from model_utils import checkpoint
from model_utils.errors import UserError
from model_utils.noise import generator
from src.data import augment
from src.losses import consistency
from src.losses.adversarial import Conditioning
from src.losses.classification import GradientReversal
from src.losses.virtual_adversarial import VirtualAdversary, add_scaled, divergence, unit

# Every option at once, in a way in which each has something to do after four steps.
OPTIONS = {
    "n_refine_epochs": 2,
    "strong_augment": "invert+affine+cutout",
    "pseudo_threshold": 0.2,
    "pseudo_portion": 0.7,
    "conditional": True,
    "vat_weight": 1.0,
}
BEGIN = 8  # the first step of self-training in tests/tiny/dann.yaml


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def tensor(array):
    return ms.Tensor(np.asarray(array, np.float32))


def softmax(logits):
    powers = np.exp(np.asarray(logits, float) - np.max(logits, 1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


# Pseudo-labels


@pytest.mark.parametrize("thresholds", [0.4, (0.3, 0.9, 0.2, 0.5)], ids=["one for all", "by class"])
def test_pseudo_labels_match_numpy(rng, thresholds):
    logits = rng.normal(size=(200, 4)) * 1.5
    given = thresholds if isinstance(thresholds, float) else tensor(thresholds)
    classes, chosen = (t.asnumpy() for t in consistency.pseudo_labels(tensor(logits), given))
    wanted = [int(np.argmax(row / np.array(thresholds))) for row in softmax(logits)]
    passes = [float((row / np.array(thresholds)).max() >= 1) for row in softmax(logits)]
    assert classes.dtype == np.int32 and classes.tolist() == wanted
    assert chosen.tolist() == passes and 0 < sum(passes) < 200


def test_thresholds_by_class_help_the_class_that_is_rarely_sure():
    logits = tensor(np.log([[0.55, 0.45]]))
    assert consistency.pseudo_labels(logits, 0.5)[0].asnumpy().tolist() == [0]
    assert consistency.pseudo_labels(logits, tensor([0.9, 0.4]))[0].asnumpy().tolist() == [1]


@pytest.mark.parametrize("kind", consistency.KINDS)
def test_pseudo_label_loss_matches_numpy(rng, kind):
    logits, teacher = rng.normal(size=(2, 6, 5))
    classes, chosen = np.array([0, 4, 2, 1, 3, 3], np.int32), np.array([1, 0, 1, 1, 0, 1], np.float32)
    measured = consistency.pseudo_label_loss(
        tensor(logits), tensor(teacher), ms.Tensor(classes), tensor(chosen), kind
    )
    total = 0.0
    for row, other, label, use in zip(softmax(logits), softmax(teacher), classes, chosen, strict=True):
        cost = {
            "hard": -np.log(row[label]),
            "soft": -(other * np.log(row)).sum(),
            "squared": ((row - other) ** 2).sum(),
        }
        total += use * cost[kind]
    assert float(measured) == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("kind", consistency.KINDS)
def test_pseudo_labels_nobody_is_sure_of_cost_nothing(rng, kind):
    logits, teacher = rng.normal(size=(2, 6, 5))
    none = tensor(np.zeros(6))
    labels = ms.Tensor(np.zeros(6), ms.int32)
    assert float(consistency.pseudo_label_loss(tensor(logits), tensor(teacher), labels, none, kind)) == 0


def test_class_thresholds_move_as_written(rng):
    cell = consistency.ClassThresholds(3, 0.6, start=0.5, rate=0.01)
    logits = rng.normal(size=(40, 3)) * 2
    expected = np.full(3, 0.5)
    for row in softmax(logits):
        label = row.argmax()
        expected[label] += 0.01 * (0.4 if row[label] >= 0.5 else -0.6)
    np.testing.assert_allclose(cell(tensor(logits)).asnumpy(), expected, atol=1e-6)
    np.testing.assert_allclose(cell.values.asnumpy(), expected, atol=1e-6)


def test_class_thresholds_come_to_pass_the_portion_of_every_class(rng):
    """One class is always surer than the other; a common threshold would take the one and not the other."""
    cell = consistency.ClassThresholds(2, 0.5, start=0.9, rate=0.003)
    sure, unsure = rng.uniform(0.85, 0.99, 2000), rng.uniform(0.55, 0.75, 2000)
    rows = np.concatenate((np.stack((sure, 1 - sure), 1), np.stack((1 - unsure, unsure), 1)))
    for _ in range(60):
        cell(tensor(np.log(rows[rng.integers(0, 4000, 64)])))
    passed = (rows >= cell.values.asnumpy()).astype(float)
    assert passed[:2000, 0].mean() == pytest.approx(0.5, abs=0.15)
    assert passed[2000:, 1].mean() == pytest.approx(0.5, abs=0.15)


def test_class_thresholds_stay_probabilities():
    cell = consistency.ClassThresholds(2, 0.99, start=0.6, rate=5.0)
    assert cell(tensor([[0.1, 0.0]])).asnumpy().min() == 0.5
    assert cell(tensor([[50.0, 0.0]])).asnumpy().max() <= 1.0


# Virtual adversarial training


class Linear(nn.Cell):
    """Logits W x of images (N, 1, 2, 2)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = ms.Parameter(tensor(weight), name="weight")

    def construct(self, images):
        return ops.matmul(images.reshape(images.shape[0], -1), self.weight)


def kl(wanted, logits):
    p, q = softmax(wanted), softmax(logits)
    return (p * (np.log(p) - np.log(q))).sum(1).mean()


def test_divergence_matches_numpy(rng):
    logits, wanted = rng.normal(size=(2, 7, 5)) * 3
    assert float(divergence(tensor(logits), tensor(wanted))) == pytest.approx(kl(wanted, logits), rel=1e-5)
    assert float(divergence(tensor(logits), tensor(logits))) == pytest.approx(0, abs=1e-6)


def test_unit_vectors_have_length_one_and_zero_stays_zero(rng):
    moves = rng.normal(size=(3, 2, 4, 4))
    moves[1] = 0
    lengths = np.linalg.norm(unit(tensor(moves)).asnumpy().reshape(3, -1), axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 1], rtol=1e-5)


def test_virtual_adversary_finds_a_worse_move_than_chance(rng):
    """On a linear network with one steep direction: it is found from a random start in one iteration."""
    weight = rng.normal(size=(4, 3)) * 0.05
    weight[2] = (3.0, -3.0, 0.0)
    network, images = Linear(weight), rng.random((16, 1, 2, 2))
    adversary = VirtualAdversary(network, ms.ParameterTuple(network.trainable_params()), radius=0.5)
    start = rng.normal(size=images.shape)
    cost, _, _ = adversary.loss_and_gradients(tensor(1.0), tensor(images), tensor(start), tensor(0.3))
    flat = images.reshape(16, 4)
    clean = flat @ weight

    def moved(direction):
        return kl(clean, (flat + 0.5 * direction) @ weight)

    steepest = max(moved(np.eye(4)[2]), moved(-np.eye(4)[2]))
    by_chance = start.reshape(16, 4) / np.linalg.norm(start.reshape(16, 4), axis=1, keepdims=True)
    assert float(cost) > 1.3 * moved(by_chance)
    assert float(cost) == pytest.approx(steepest, rel=0.25)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_virtual_adversary_gradient_is_that_of_the_moved_prediction(rng, scale):
    """Finite differences of KL(p(x) || p(x + r)) with both p(x) and r held fixed; times the loss scale."""
    weight = rng.normal(size=(4, 3))
    network, images = Linear(weight), rng.random((5, 1, 2, 2))
    adversary = VirtualAdversary(network, ms.ParameterTuple(network.trainable_params()), radius=0.3)
    start = tensor(rng.normal(size=images.shape))
    cost, weighs, (gradient,) = adversary.loss_and_gradients(
        tensor(scale), tensor(images), start, tensor(0.25)
    )
    assert float(weighs) == 0.25
    clean = network(tensor(images))
    slope = adversary.by_move(tensor(images), adversary.probe * unit(start), clean, tensor(1.0))
    moved = (images + 0.3 * unit(slope).asnumpy()).reshape(5, 4)
    expected = np.zeros((4, 3))
    for index in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[index] = 1e-4
        high, low = (kl(clean.asnumpy(), moved @ (weight + sign * step)) for sign in (1, -1))
        expected[index] = (high - low) / 2e-4
    assert float(cost) == pytest.approx(kl(clean.asnumpy(), moved @ weight), rel=1e-3)
    np.testing.assert_allclose(gradient.asnumpy() / scale, expected, rtol=2e-2, atol=1e-3)


def test_scaled_gradients_are_added_one_by_one(rng):
    ones, others = ([rng.normal(size=shape) for shape in ((2, 3), (4,))] for _ in range(2))
    added = add_scaled(tuple(map(tensor, ones)), tensor(0.5), tuple(map(tensor, others)))
    for result, one, other in zip(added, ones, others, strict=True):
        np.testing.assert_allclose(result.asnumpy(), one + 0.5 * other, rtol=1e-6)


# Conditional alignment


def test_conditioning_matches_the_randomised_multilinear_map(rng):
    features, logits = rng.normal(size=(6, 8)), rng.normal(size=(6, 3))
    cell = Conditioning(4, 8, classes=3)
    draws = generator(4, "conditional alignment")
    of_features = draws.standard_normal((8, 8), np.float32)
    of_classes = draws.standard_normal((3, 8), np.float32)
    expected = (features @ of_features) * (softmax(logits) @ of_classes) / np.sqrt(8)
    np.testing.assert_allclose(
        cell(tensor(features), tensor(logits)).asnumpy(), expected, rtol=1e-4, atol=1e-5
    )
    assert not list(cell.get_parameters())


def test_conditioning_tells_inner_products_of_the_outer_product(rng):
    """Averaged over many columns, the map keeps <f ⊗ g, f' ⊗ g'>: eq. 6 and theorem 1 of Long et al."""
    features, logits = rng.normal(size=(2, 400)) / 20, rng.normal(size=(2, 5)) * 3
    joined = Conditioning(0, 400, classes=5)(tensor(features), tensor(logits)).asnumpy()
    wanted = (features @ features.T) * (softmax(logits) @ softmax(logits).T)
    np.testing.assert_allclose(joined @ joined.T, wanted, atol=0.15 * np.abs(wanted).max())


def test_conditioning_gives_class_predictions_no_gradient(rng):
    cell, reversal = Conditioning(0, 8, classes=3), GradientReversal()

    def loss(features, logits):
        return ops.sum(cell(reversal(features, tensor(2.0)), logits))

    features, logits = tensor(rng.normal(size=(4, 8))), tensor(rng.normal(size=(4, 3)))
    of_features, of_logits = ms.grad(loss, (0, 1))(features, logits)
    assert not of_logits.asnumpy().any()
    plain = ms.grad(lambda f, g: ops.sum(cell(f, g)))(features, logits)
    np.testing.assert_allclose(of_features.asnumpy(), -2 * plain.asnumpy(), rtol=1e-5)


def test_conditional_alignment_needs_gradient_reversal(place):
    with pytest.raises(UserError, match="adversary"):
        build(tiny_config("dann", conditional=True, adversary="alternate"), place)


# Augmentation


def test_invert_gives_negatives_of_half_the_images(rng):
    images = rng.random((400, 3, 4, 4), dtype=np.float32)
    after = augment.invert(images, np.random.default_rng(0))
    assert after.dtype == np.float32
    same = (after == images).all((1, 2, 3))
    np.testing.assert_array_equal(after[~same], 1 - images[~same])
    assert 150 < same.sum() < 250


def test_cutout_covers_one_square_with_one_colour(rng):
    images = rng.uniform(2, 3, (300, 3, 28, 28)).astype(np.float32)  # outside what a colour may be
    after = augment.cutout(images, np.random.default_rng(0))
    assert after.dtype == np.float32
    for image, before in zip(after, images, strict=True):
        changed = (image != before).all(0)
        np.testing.assert_array_equal(changed, (image != before).any(0))
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert 4 <= len(rows) <= 8 and 4 <= len(columns) <= 8
        assert changed.sum() == len(rows) * len(columns) == np.ptp(rows + 1) * len(columns) + len(columns)
        assert all(len(np.unique(channel[changed])) == 1 for channel in image)
        assert 0 <= image[:, changed].min() and image[:, changed].max() <= 1


@pytest.mark.parametrize("name", augment.STRONG)
def test_strong_augmentations_keep_shape_type_and_range(rng, name):
    images = rng.random((9, 3, 28, 28), dtype=np.float32)
    apply = augment.build(name)
    if apply is None:
        return
    first, again = apply(images, generator(0, "x")), apply(images, generator(0, "x"))
    np.testing.assert_array_equal(first, again)
    assert first.shape == images.shape and first.dtype == np.float32
    assert 0 <= first.min() and first.max() <= 1 and not np.array_equal(first, images)


# The whole


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A tiny run with every option, compiled: settings, cell, logged steps, folder with a checkpoint inside
    each phase, {step: number of graphs compiled until then}.
    """
    settings = tiny_config("dann", **OPTIONS, mode="graph")
    cell = build(settings, place)
    folder, logged, done, compiled = tmp_path_factory.mktemp("options"), [], 0, {}
    for stop in (2, 4, 6, BEGIN - 1, BEGIN, BEGIN + 2, BEGIN + 4):
        logged += train(cell, done, stop)
        checkpoint.save_state(cell.state(), {"step": stop}, folder / f"{stop}.ckpt")
        compiled[stop], done = len(graphs()), stop
    return settings, cell, logged, folder, compiled


def test_options_are_off_by_default(place):
    cell = build(tiny_config("dann"), place)
    assert [phase.name for phase in cell.phases] == ["pretrain", "adapt"]
    optimizers = {"optimizer_backbone", "optimizer_class_classifier", "optimizer_domain_classifier"}
    assert set(cell.state()) == {"network", "domain_classifier", "loss_scale"} | optimizers
    assert all("smoothness" not in scalars for _, scalars in train(cell, 4, 5))


def test_every_option_gives_finite_scalars_and_has_something_to_do(whole):
    _, cell, logged, *_ = whole
    assert [name for name, _ in logged] == ["pretrain"] * 4 + ["adapt"] * 4 + ["refine"] * 4
    assert all(np.isfinite(value) for _, scalars in logged for value in scalars.values())
    assert all(scalars["smoothness"] > 0 for name, scalars in logged if name == "adapt")
    refined = [scalars for name, scalars in logged if name == "refine"]
    assert any(scalars["pseudo_loss"] > 0 for scalars in refined)
    assert all(0 <= scalars["pseudo_share"] <= 1 for scalars in refined)
    for scalars in refined:
        assert scalars["loss"] == pytest.approx(scalars["class_loss"] + scalars["pseudo_loss"], rel=1e-5)
    assert "err_pseudo" in cell.log_line(cell.phases[2], refined[0])


def test_self_training_trains_student_and_teacher_and_leaves_the_adversary_alone(whole):
    _, cell, _, folder, _ = whole
    before, _ = checkpoint.read(folder / f"{BEGIN}.ckpt")
    after = values(cell)
    weights = [name for name in before if not name.startswith("optimizer_")]
    moved = {name for name in weights if not np.array_equal(before[name], after[name])}
    parts = ("backbone.", "class_classifier.", "student/", "thresholds/")
    assert moved == {name for name in weights if name.startswith(parts)}
    untouched = [n for n in before if n.startswith("optimizer_") and not n.startswith("optimizer_student/")]
    assert untouched and all(np.array_equal(before[name], after[name]) for name in untouched)


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"amp_level": "O1"}], ids=str)
def test_student_starts_as_the_network_and_the_teacher_follows_it(place, changes):
    settings = tiny_config("dann", **{**OPTIONS, "teacher_decay": 0.75, **changes})
    cell = build(settings, place)
    for weight in cell.trained.trainable_params() if "ema_decay" in changes else ():
        ops.assign(weight, weight + 1.0)  # what adversarial training has left, which the average is not
    before = {p.name: p.asnumpy().copy() for p in cell.network.get_parameters()}
    phase = cell.phases[2]
    phase.step = 0
    cell.start_phase(phase)
    student = {p.name.removeprefix("student."): p for p in cell.parts["student"].get_parameters()}
    assert student.keys() == before.keys()
    assert all(np.array_equal(p.asnumpy(), before[name]) for name, p in student.items())
    cell.train_step(phase, phase.batch(0))
    for parameter in cell.network.trainable_params():
        expected = 0.75 * before[parameter.name] + 0.25 * student[parameter.name].asnumpy()
        np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_the_student_s_backbone_has_its_share_of_the_rate(place, factor):
    cell = build(tiny_config("dann", **OPTIONS, backbone_lr_factor=factor, bottleneck=4), place)
    (*_, (_, scalars)) = train(cell, BEGIN, BEGIN + 1)
    optimizers = cell.updates["refine"].optimizers
    rates = {name: float(optimizer.learning_rate) for name, optimizer in optimizers.items()}
    wanted = {"student": 1.0} if factor == 1 else {"student_backbone": factor, "student": 1.0}
    assert rates == pytest.approx({name: share * scalars["lr"] for name, share in wanted.items()})
    trained = [p.name for optimizer in optimizers.values() for p in optimizer.parameters]
    assert trained == [p.name for p in cell.student.trainable_params()]


def test_every_rank_ends_a_step_with_the_thresholds_of_rank_0(place, monkeypatch):
    shared = []
    monkeypatch.setattr(
        "src.train_cells.dann.broadcast_parameters", lambda cells, device: shared.extend(cells)
    )
    cell = build(tiny_config("dann", **OPTIONS), place)
    train(cell, BEGIN, BEGIN + 2)
    assert shared == [cell.parts["thresholds"]] * 2


def test_teacher_gathers_the_statistics_of_the_target_alone(place):
    """Its running mean after a step is its own mix of what it was and of the target batch as it is."""
    settings = tiny_config("dann", **OPTIONS, input_norm="none")
    cell = build(settings, place)
    backbone, phase = cell.network.backbone, cell.phases[2]
    before = backbone.bn1.moving_mean.asnumpy().copy()
    images = ms.Tensor(phase.batch(0)["target"][0])
    backbone.set_train(False)
    mean = backbone.conv1(backbone.norm(images)).asnumpy().mean((0, 2, 3))
    train(cell, BEGIN, BEGIN + 1)
    share = 1 - backbone.bn1.momentum
    kept = before + (mean - before) * (share if share < 0.5 else 1 - share)
    np.testing.assert_allclose(backbone.bn1.moving_mean.asnumpy(), kept, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{"batch_norm": "frozen"}, {"freeze_backbone": True}], ids=str)
def test_frozen_statistics_stay_in_self_training(place, changes):
    """The student's and the teacher's, also where the network that is trained is another tree of cells."""
    cell = build(tiny_config("dann", **OPTIONS, **changes, amp_level="O1"), place)
    before = values(cell)
    train(cell, BEGIN, BEGIN + 1)
    after = values(cell)
    moved = [name for name in after if "moving_" in name and not np.array_equal(before[name], after[name])]
    assert moved and all("class_classifier." in name for name in moved)
    weights = {p.name for p in cell.network.backbone.get_parameters()}
    kept = {name for name in weights if np.array_equal(before[name], after[name])}
    assert kept == weights if "freeze_backbone" in changes else kept < weights


def test_strong_view_belongs_to_the_step_and_the_teacher_sees_the_image_as_it_is(place, monkeypatch):
    cell = build(tiny_config("dann", **OPTIONS), place)
    phase, seen = cell.phases[2], []
    cell.start_phase(phase)

    def step(parts, loss_scale):
        ((source, labels, target, weak, *masks),) = parts
        seen.append([t.asnumpy() for t in (weak, target)])
        zero = ms.Tensor(0.0)
        return zero, (zero, zero, zero, zero), zero, zero

    monkeypatch.setattr(cell.updates["refine"], "step", step)
    for step in (0, 0, 1):
        phase.step = step
        cell.train_step(phase, phase.batch(step))
    (weak, strong), (_, again), (other_weak, other) = seen
    np.testing.assert_array_equal(weak, phase.batch(0)["target"][0])
    np.testing.assert_array_equal(strong, again)
    assert not np.array_equal(weak, strong)
    np.testing.assert_array_equal(other_weak, phase.batch(1)["target"][0])
    assert not np.array_equal(other, strong)


@pytest.mark.parametrize("network", ["digits", "hardnet39ds"])
def test_augmentations_within_a_step_see_values_between_0_and_1(place, network):
    keys = {"network": network, "image_size": 0 if network == "digits" else 32, "pretrained": "none"}
    cell, seen = build(tiny_config("dann", n_refine_epochs=1, **keys), place), []
    images = cell.phases[-1].batch(0)["target"][0]

    def negative(images, rng):
        seen.append(images)
        return 1 - images

    changed = cell.augmented(negative, images, None)
    assert -1e-6 <= seen[0].min() < 0.2 and 0.8 < seen[0].max() <= 1 + 1e-6
    mean = cell.preparation.normalise(np.full_like(images, 0.5))
    np.testing.assert_allclose(changed, 2 * mean - images, atol=1e-5)
    assert cell.augmented(None, images, None) is images


def test_each_phase_is_compiled_once(whole):
    """Nothing that changes from step to step may be a constant of the graph, in a tuple or as a number."""
    *_, compiled = whole
    assert 0 < compiled[2] == compiled[4] < compiled[6] == compiled[BEGIN] < compiled[BEGIN + 2]
    assert compiled[BEGIN + 2] == compiled[BEGIN + 4]


@pytest.mark.parametrize("cut", [BEGIN - 1, pytest.param(BEGIN, marks=pytest.mark.thorough), BEGIN + 2])
def test_a_run_with_every_option_resumes_bit_identical(whole, place, cut):
    settings, cell, logged, folder, _ = whole
    again = build(settings, place, seed=settings.seed + 7)
    stored, _ = checkpoint.read(folder / f"{cut}.ckpt")
    checkpoint.restore_state(again.state(), stored, "test")
    assert train(again, cut) == logged[cut:]
    wanted, ended = values(cell), values(again)
    assert [name for name in wanted if not np.array_equal(wanted[name], ended[name])] == []


def test_pynative_mode_computes_every_option_as_graph_mode_does(whole, place):
    settings, _, logged, folder, _ = whole
    eager = build(settings.replace(mode="pynative"), place)
    stored, _ = checkpoint.read(folder / f"{BEGIN - 1}.ckpt")
    checkpoint.restore_state(eager.state(), stored, "test")
    for (_, left), (_, right) in zip(train(eager, BEGIN - 1), logged[BEGIN - 1 :], strict=True):
        assert left == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in right.items()}
