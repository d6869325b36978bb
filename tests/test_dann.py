"""DANN: its network, recipe and both adversaries; and what the trainer does for DANN and ADDA alike."""

import functools

import mindspore as ms
import numpy as np
import pytest
from helpers import build, demo_config, fails, test_sets, tiny_config, train, values
from mindspore import nn, ops

from model_utils import checkpoint
from src import networks
from src.evaluation import held_out
from src.evaluation.evaluate import Evaluator
from src.exported import trained
from src.networks.heads import DomainHead
from src.train_cells.dann import Method
from src.training.batch_norm import set_frozen
from src.training.schedules import one_cycle, reversal_strength


def network(**changes):
    return networks.build(tiny_config("dann", **changes), 10).set_train(False)


def some_images(count):
    return ms.Tensor(np.random.default_rng(0).random((count, 3, 28, 28), dtype=np.float32))


def test_network_has_the_published_number_of_parameters():
    assert sum(p.size for p in network().trainable_params()) == 176_752
    assert sum(p.size for p in DomainHead(800).trainable_params()) == 80_100 + 200 + 202


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_shapes_from_image_to_logits(norm):
    own, images = network(input_norm=norm), some_images(3)
    features = own.features(images)
    assert features.shape == (3, own.feature_size) == (3, 800)
    assert own(images).shape == (3, 10)
    np.testing.assert_array_equal(own.classify(features).asnumpy(), own(images).asnumpy())
    assert DomainHead(800).set_train(False)(features).shape == (3, 2)


@pytest.mark.parametrize("kind, shape", [("element", (50, 8, 8)), ("channel", (50, 1, 1))])
def test_dropout_masks_drop_and_none_does_not(kind, shape):
    own, images = network(dropout_kind=kind), some_images(2)
    assert own.masks == ((shape, 0.5), ((100,), 0.5)) and own.split == 1
    ones = [ms.Tensor(np.ones((2, *of_one), np.float32)) for of_one, _ in own.masks]
    whole = own(images).asnumpy()
    np.testing.assert_array_equal(own(images, *ones).asnumpy(), whole)
    assert not own.features(images, ones[0] * 0).asnumpy().any()
    bare = own(images, ones[0], ones[1] * 0).asnumpy()  # all that is left of an image are biases
    np.testing.assert_array_equal(bare[0], bare[1])
    assert not np.array_equal(whole[0], whole[1])
    assert network(dropout=0).masks == ()


def test_learning_rates_follow_the_recipe(place):
    settings = tiny_config("dann", lr=0.01, lr_backbone_s=0.02, lr_schedule="one_cycle", gamma=10)
    cell = build(settings, place)
    logged = train(cell)
    for index, (phase, scalars) in enumerate(logged):
        step = index % 4
        factor = one_cycle(step, 4)
        backbone = 0.01 if phase == "pretrain" else 0.02
        assert scalars["lr"] == pytest.approx(0.01 * factor)
        assert scalars["lr_backbone"] == pytest.approx(backbone * factor)
        if phase == "adapt":
            assert scalars["lambda"] == pytest.approx(settings.lambda_max * reversal_strength(step / 4))
    last = one_cycle(3, 4)
    rates = {name: float(optimizer.learning_rate) for name, optimizer in cell.optimizers.items()}
    expected = {"backbone": 0.02, "class_classifier": 0.01, "domain_classifier": 0.01}
    assert rates == {name: pytest.approx(rate * last) for name, rate in expected.items()}


def test_constant_schedule_keeps_the_rate(place):
    cell = build(tiny_config("dann", lr=0.003, lr_schedule="constant"), place)
    assert {scalars["lr"] for _, scalars in train(cell, 0, 3)} == {0.003}


def test_a_step_is_one_of_adam_on_the_gradients_at_its_rate(place):
    """After the first step every weight has moved by about the learning rate: Adam's own property."""
    cell = build(tiny_config("dann", lr=0.001, lr_schedule="constant", weight_decay=0), place)
    before = values(cell)
    train(cell, 0, 1)
    moved = np.abs(values(cell)["class_classifier.fc3.bias"] - before["class_classifier.fc3.bias"])
    np.testing.assert_allclose(moved, 0.001, rtol=1e-2)


def test_alternating_adversary_trains_every_part(place):
    cell = build(tiny_config("dann", adversary="alternate", n_pretrain_epochs=0), place)
    before = values(cell)
    logged = train(cell)
    after = values(cell)
    assert len(logged) == 4
    assert all(np.isfinite(value) for _, scalars in logged for value in scalars.values())
    assert all(0 < scalars["domain_loss"] < 20 for _, scalars in logged)
    weights = [n for n, p in checkpoint.named_parameters(cell.state()).items() if p.requires_grad]
    weights = [name for name in weights if not name.startswith("optimizer_")]
    assert {name.split(".")[0] for name in weights} == {
        "backbone",
        "class_classifier",
        "domain_classifier/domain_classifier",
    }
    assert [name for name in weights if np.array_equal(before[name], after[name])] == []


@pytest.mark.parametrize("overflows", [(), ("discriminate",), ("discriminate", "adapt")], ids=str)
def test_a_step_of_two_updates_counts_once(place, overflows):
    keys = {"amp_level": "O2", "loss_scale_mode": "dynamic", "loss_scale": 8.0, "ema_decay": 0.9}
    cell = build(tiny_config("dann", adversary="alternate", n_pretrain_epochs=0, **keys), place)
    moves, zero = [], ms.Tensor(0.0)
    cell.averages[0].update = moves.append
    for name, count in (("discriminate", 1), ("adapt", 5)):
        found = zero, (zero,) * count, zero, ms.Tensor(name not in overflows)
        cell.updates[name].step = lambda parts, scale, found=found: found
    phase = cell.phases[1]
    cell.start_phase(phase)
    scalars = cell.train_step(phase, phase.batch(0))
    assert moves == ([] if overflows else [0])
    assert scalars["skipped"] == bool(overflows) and scalars["scale"] == 8.0
    scale, good = float(cell.loss_scale.scale), int(cell.loss_scale.good_steps)
    assert (scale, good) == ((4.0, 0) if overflows else (8.0, 1))


def test_alternating_discriminator_step_leaves_backbone_weights_alone(place):
    cell = build(tiny_config("dann", adversary="alternate", n_pretrain_epochs=0), place)
    phase = cell.phases[1]
    images = np.concatenate((phase.batch(0)["source"][0], phase.batch(0)["target"][0]))
    before = values(cell)
    of_backbone = cell.masks(len(images), "dropout adapt", 0, 0)[: cell.network.split]
    inputs = [ms.Tensor(images), cell.domains, *of_backbone]
    cell.updates["discriminate"].step([inputs], cell.loss_scale)
    after = values(cell)
    own = [p.name for p in cell.network.trainable_params()]
    assert all(np.array_equal(before[name], after[name]) for name in own)
    moved = [name for name in after if not np.array_equal(before[name], after[name])]
    assert "domain_classifier/domain_classifier.fc2.weight" in moved


def test_batch_norm_uses_batch_statistics_from_the_first_step(place):
    """Cells are born in evaluation mode, and a compiled step keeps the mode it was compiled in."""
    cell = build(tiny_config("dann", validation_size=0, n_pretrain_epochs=0), place)
    train(cell, 0, 1)
    for part in (cell.network.backbone, cell.network.head, cell.parts["domain_classifier"]):
        norm = part.bn1
        assert norm.training
        assert np.abs(norm.moving_mean.asnumpy()).max() > 0


def test_dropout_differs_from_step_to_step_phase_to_phase_and_repeats(place, monkeypatch):
    cell, seen = build(tiny_config("dann", dropout_kind="channel"), place), []
    pretrain, adapt = cell.phases

    def inputs_only(update, phase, batch, inputs):
        masks = [value.asnumpy() for value in inputs(batch, 0) if value.ndim in (2, 4)][1:]
        seen.append(masks)
        return ms.Tensor(0.0), (ms.Tensor(0.0),) * (1 if phase is pretrain else 5), {}

    monkeypatch.setattr(cell, "run", inputs_only)
    for phase, step in ((adapt, 0), (adapt, 1), (pretrain, 0), (adapt, 0)):
        phase.step = step
        cell.train_step(phase, phase.batch(step))
    first, later, earlier, again = seen
    assert [mask.shape for mask in first] == [(16, 50, 1, 1), (16, 100)]
    assert [mask.shape for mask in earlier] == [(8, 50, 1, 1), (8, 100)]
    for number, mask in enumerate(first):
        np.testing.assert_array_equal(mask, again[number])
        assert set(np.unique(mask)) == {0, 2}
        assert not np.array_equal(mask, later[number])
        assert not np.array_equal(mask[:8], earlier[number])


def test_log_line_is_the_one_people_grep(place):
    cell = build(tiny_config("dann"), place)
    phase = cell.phases[1]
    phase.step = 3
    scalars = {"domain_loss": 1.405273, "class_loss": 0.4, "entropy": 0.080713}
    line = cell.log_line(phase, scalars)
    assert line == (
        "epoch: 1, [iter: 2 / all 2],  err_D_domain: 1.405273, err_G_domain: 0.480713,err_sum:1.885986"
    )


def test_where_only_the_target_is_held_out_there_are_no_figures_of_classes():
    def forward(images, side):
        return ms.Tensor(np.zeros((2, 3), np.float32)), ms.Tensor(np.float32([[0, 1], [1, 0]]))

    batch = np.zeros((2, 1, 4, 4), np.float32), np.full(2, -1)
    assert held_out.figures(forward, {"target": [batch]}, False) == {}
    found = held_out.figures(forward, {"target": [batch]}, True)
    assert set(found) == {"domain_loss", "domain_accuracy"} and found["domain_accuracy"] == 0.5


def test_validation_figures_match_numpy(place):
    cell = build(tiny_config("dann"), place)
    train(cell, 0, 6)
    figures = cell.validate(cell.phases[1])
    domain_classifier = cell.parts["domain_classifier"]
    assert cell.network.training and domain_classifier.training
    cell.network.set_train(False)
    domain_classifier.set_train(False)
    losses, hits, domain_losses, domain_hits = [], [], [], []
    for domain, side in enumerate(("source", "target")):
        for images, labels in cell.held_out[side]:
            features = cell.network.features(ms.Tensor(images))
            logits = cell.network.classify(features).asnumpy().astype(np.float64)
            of_domain = domain_classifier(features).asnumpy().astype(np.float64)
            for row, label, pair in zip(logits, labels, of_domain, strict=True):
                domain_losses.append(np.log(np.exp(pair).sum()) - pair[domain])
                domain_hits.append(pair.argmax() == domain)
                if domain == 0:
                    losses.append(np.log(np.exp(row).sum()) - row[label])
                    hits.append(row.argmax() == label)
    assert len(losses) == 20 and len(domain_losses) == 40
    assert figures["class_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert figures["class_accuracy"] == np.mean(hits)
    assert figures["domain_loss"] == pytest.approx(2 * np.mean(domain_losses), rel=1e-4)
    assert figures["domain_accuracy"] == np.mean(domain_hits)


def test_published_files_fill_the_network_they_came_from(place, tmp_path):
    cell = build(tiny_config("dann"), place)
    for name, part in cell.published_files().items():
        checkpoint.save_cell(part, tmp_path / name)
    settings = tiny_config(
        "dann",
        backbone_ckpt_file=tmp_path / "best_backbone_t.ckpt",
        classifier_ckpt_file=tmp_path / "best_class_classifier.ckpt",
    )
    loaded = trained.load_parts(settings, Method)
    wanted = {p.name: p.asnumpy() for p in cell.network.get_parameters()}
    assert {p.name for p in loaded.network.get_parameters()} == set(wanted)
    assert all(np.array_equal(p.asnumpy(), wanted[p.name]) for p in loaded.network.get_parameters())
    assert loaded.classes == 10  # all that these files say of the classes is their number
    fails(lambda: trained.load_parts(settings.replace(bottleneck=8), Method), "bottleneck", "--ckpt_path")


def test_no_published_files_of_a_network_with_a_bottleneck(place):
    """Neither of the two would hold it."""
    assert build(tiny_config("dann", bottleneck=8), place).published_files() == {}


@pytest.mark.parametrize(
    "given, part",
    [
        ({"backbone_ckpt_file": "a.ckpt"}, "classifier_ckpt_file"),
        ({"classifier_ckpt_file": "a.ckpt"}, "backbone_ckpt_file"),
        ({"classifier_ckpt_file": "a.ckpt", "backbone_ckpt_file": "b.ckpt", "ckpt_path": "c"}, "not both"),
    ],
)
def test_eval_refuses_half_of_the_published_files(given, part):
    fails(lambda: trained.load_parts(tiny_config("dann", **given), Method), part)


def test_a_short_run_learns_the_demo_digits(place):
    settings = demo_config(
        batch_size=32,
        steps_per_epoch=30,
        n_pretrain_epochs=1,
        n_epoch=1,
        lr=0.002,
        lr_backbone_s=0.002,
        lr_schedule="constant",
        source_augment="none",
    )
    cell = build(settings, place)
    logged = train(cell)
    accuracies = Evaluator(cell.network, settings, place).accuracies(test_sets(settings, place))
    assert accuracies["source"] > 0.6, accuracies  # chance: 0.1
    losses = [scalars["class_loss"] for _, scalars in logged]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert isinstance(cell.optimizers["backbone"], nn.Adam)


# What the trainer does for a method: mixed precision, accumulation, clipping, averages. Each beside a run
# without it, or NumPy. ONE_STEP is a step of adversarial training by plain gradient descent, in which every
# loss has a weight that is not 0; a weight moves by its gradient.

DESCENT = {
    "optimizer": "momentum",
    "momentum": 0,
    "weight_decay": 0,
    "lr_schedule": "constant",
    "dropout": 0,
}
ONE_STEP = {
    "dann": ({"n_pretrain_epochs": 0, "lr": 1, "lr_backbone_s": 1, **DESCENT}, 1),
    "dann alternate": (
        {"n_pretrain_epochs": 0, "lr": 1, "lr_backbone_s": 1, "adversary": "alternate", **DESCENT},
        1,
    ),
    "adda": ({"adversary_lr": 1, **DESCENT}, 7),
}


def gradients_of(case, place, start=None, frozen=False, **changes):
    """One step of ONE_STEP: (cell, its scalars, its weights before, {name: gradient}).

    start: weights to begin with, by name; frozen: no batch normalisation uses its batch.
    """
    options, step = ONE_STEP[case]
    cell = build(tiny_config(case.split()[0], **{**options, **changes}), place)
    for name, parameter in checkpoint.named_parameters(cell.state()).items():
        if name in (start or {}):
            ops.assign(parameter, ms.Tensor(start[name]))
    before, phase = values(cell), cell.phases[-1]
    phase.step = step - sum(earlier.steps for earlier in cell.phases[:-1])
    cell.start_phase(phase)
    for part in (cell.trained, *cell.parts.values()) if frozen else ():
        set_frozen(part)
    scalars = {name: float(value) for name, value in cell.train_step(phase, phase.batch(phase.step)).items()}
    after = values(cell)
    moved = {p.name for part in (cell.trained, *cell.parts.values()) for p in part.trainable_params()}
    names = [name for name in before if name.rpartition("/")[2] in moved and "optimizer" not in name]
    return cell, scalars, before, {name: before[name] - after[name] for name in names}


def joined(gradients):
    return np.concatenate([gradient.ravel().astype(float) for gradient in gradients.values()])


@pytest.fixture(scope="module")
def plain(place):
    """A function: case and changes -> gradients_of it, computed once."""
    return functools.cache(lambda case, **changes: gradients_of(case, place, **changes))


@pytest.mark.parametrize(
    "level",
    [pytest.param("O1", marks=pytest.mark.thorough), "O2", pytest.param("O3", marks=pytest.mark.thorough)],
)
@pytest.mark.parametrize("case", ["dann", "adda"])
def test_half_precision_computes_nearly_the_gradients_of_single(place, plain, case, level):
    changes = {"vat_weight": 1.0} if case == "dann" else {}
    _, wanted, start, single = plain(case, **changes)
    cell, found, before, half = gradients_of(case, place, start, amp_level=level, **changes)
    assert before.keys() - {"loss_scale/scale"} == start.keys() - {"loss_scale/scale"}
    assert found == {name: pytest.approx(value, abs=5e-3) for name, value in wanted.items()}
    assert found["loss"] != wanted["loss"]  # it did compute in half precision
    assert half.keys() == single.keys()
    for part in ("discriminator/" if case == "adda" else "domain_classifier/", ""):
        one, other = (joined({n: g for n, g in c.items() if n.startswith(part)}) for c in (half, single))
        assert one @ other > 0.98 * np.linalg.norm(one) * np.linalg.norm(other)
        assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other), rel=0.02)
    assert {value.dtype for value in values(cell).values() if value.dtype.kind == "f"} == {np.dtype("f4")}
    images = ms.Tensor(cell.phases[-1].batch(0)["target"][0])
    same = networks.build(cell.config, 10).set_train(False)
    for parameter, own in zip(same.get_parameters(), cell.network.get_parameters(), strict=True):
        ops.assign(parameter, own)
    logits = cell.network.set_train(False)(images)
    assert logits.dtype == ms.float32
    np.testing.assert_allclose(logits.asnumpy(), same(images).asnumpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ONE_STEP)
def test_two_halves_of_a_batch_equal_the_whole(place, case):
    """Where no batch normalisation sees the batch, and no random number belongs to a part."""
    changes = {"batch_norm": "frozen", **({"consistency_weight": 0} if case == "adda" else {})}
    _, wanted, start, whole = gradients_of(case, place, frozen=True, batch_size=8, **changes)
    halves = {"batch_size": 4, "gradient_accumulation": 2}
    _, found, again, parts = gradients_of(case, place, frozen=True, **halves, **changes)
    assert all(np.array_equal(start[name], again[name]) for name in whole)
    assert found == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in wanted.items()}
    for name, gradient in whole.items():
        np.testing.assert_allclose(
            parts[name], gradient, rtol=1e-3, atol=1e-3 * np.abs(gradient).max() + 1e-7
        )


@pytest.mark.parametrize("share", [0.5, 2.0], ids=["shorter", "long enough"])
@pytest.mark.parametrize("case", ["dann", "adda"])
def test_clipping_shortens_all_gradients_together(place, plain, case, share):
    _, scalars, _, whole = plain(case)
    norm = np.linalg.norm(joined(whole))
    assert "gradient_norm" not in scalars
    _, scalars, _, clipped = gradients_of(case, place, clip_grad_norm=share * norm)
    assert scalars["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    np.testing.assert_allclose(joined(clipped), min(1, share) * joined(whole), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["dann", "adda"])
def test_the_evaluated_network_is_the_average_of_the_trained_one(place, method):
    """Over all phases, running statistics of batch normalisation included."""
    decay, network = 0.15, "dann"  # (1 + t) / (10 + t) is smaller in step 0 only
    cell = build(tiny_config(method, network=network, ema_decay=decay), place)
    names = [p.name for p in cell.network.get_parameters()]
    assert any(name.endswith("moving_mean") for name in names)
    average = {name: values(cell)[name].astype(float) for name in names}
    total = sum(phase.steps for phase in cell.phases)
    for step in range(total):
        train(cell, step, step + 1)
        stored, share = values(cell), min(decay, (1 + step) / (10 + step))
        for name in names:
            average[name] = share * average[name] + (1 - share) * stored[f"trained/trained.{name}"]
            np.testing.assert_allclose(stored[name], average[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert any(not np.array_equal(stored[name], stored[f"trained/trained.{name}"]) for name in names)
    images = ms.Tensor(cell.phases[-1].batch(0)["target"][0][:4])
    own = networks.build(cell.config, 10).set_train(False)
    checkpoint.fill({p.name: p for p in own.get_parameters()}, {n: stored[n] for n in names}, "", "")
    logits = cell.network.set_train(False)(images).asnumpy()
    np.testing.assert_allclose(logits, own(images).asnumpy(), rtol=1e-3, atol=1e-4)
    if method == "adda":
        kept = {name.removeprefix("source_network/source_network."): v for name, v in stored.items()}
        assert all(name in kept for name in names)


EVERYTHING = {
    "amp_level": "O2",
    "loss_scale_mode": "dynamic",
    "gradient_accumulation": 2,
    "clip_grad_norm": 1.0,
    "ema_decay": 0.9,
}


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["dann", "adda"])
def test_a_run_with_all_of_it_resumes_bit_identical(place, tmp_path, method):
    options = {
        "dann": {"n_pretrain_epochs": 0, "n_epoch": 1, "n_refine_epochs": 1},
        "adda": {"iterations": 0, "discriminator_iterations": 0},
    }
    settings = tiny_config(method, **EVERYTHING, **options[method])
    cell, cut = build(settings, place), 3
    assert sum(phase.steps for phase in cell.phases) == 4
    logged = train(cell, 0, cut)
    checkpoint.save_state(cell.state(), {"step": cut}, tmp_path / "cut.ckpt")
    logged += train(cell, cut)
    assert all(np.isfinite(value) for _, scalars in logged for value in scalars.values())
    again = build(settings, place, seed=settings.seed + 7)
    checkpoint.restore_state(again.state(), checkpoint.read(tmp_path / "cut.ckpt")[0], "test")
    assert train(again, cut) == logged[cut:]
    wanted, found = values(cell), values(again)
    assert [name for name in wanted if not np.array_equal(wanted[name], found[name])] == []
