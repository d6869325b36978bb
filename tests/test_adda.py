"""ADDA: its losses against NumPy, what each phase trains, protocols, value ranges of the readers, scripts."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers import ROOT, build, build_network, fails, open_task, test_sets, tiny_config
from helpers import train as train_steps
from mindspore import ops
from scipy.io import savemat

from model_utils import checkpoint
from model_utils import device as devices
from model_utils.errors import UserError
from src import data, networks
from src.data import augment, forms, idx
from src.data.split import Split
from src.setup import settings as experiment
from src.training import whole_run
from src.training.batch_norm import batch_norms, statistics


@pytest.fixture
def new_cell(place):
    """A function: changes of tests/tiny/adda.yaml -> a new train cell."""
    return lambda **changes: build(tiny_config("adda", **changes), place)


def parts(cell):
    """(network, frozen source network, discriminator)"""
    return cell.network, cell.parts["source_network"], cell.parts["discriminator"]


def values(cell):
    return {p.name: p.asnumpy().copy() for p in cell.get_parameters()}


def train(cell, phase, step):
    phase.step = step
    return {name: float(value) for name, value in cell.train_step(phase, phase.batch(step)).items()}


def adapt_gradients(cell, *inputs):
    """((total, terms), {name of a weight: gradient}) of the adversarial losses."""
    update = cell.updates["adapt"]
    (_, total, terms), gradients = update.gradient(ms.Tensor(1.0), *inputs)
    names = [p.name for optimizer in update.optimizers.values() for p in optimizer.parameters]
    return (total, terms), {name: g.asnumpy() for name, g in zip(names, gradients, strict=True)}


def same(before, after):
    return all(np.array_equal(before[name], after[name]) for name in before)


def all_moved(before, after):
    return all(not np.array_equal(before[name], after[name]) for name in before)


# The losses, in NumPy


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def nll(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def domain_net(logits, weights):
    """(domain logits, activations) of the 500-500-2 network, float64."""
    layers = [logits]
    for number in (1, 2, 3):
        weight, bias = (weights[f"discriminator.fc{number}.{part}"] for part in ("weight", "bias"))
        out = layers[-1] @ weight.T.astype(np.float64) + bias
        layers.append(np.maximum(out, 0) if number < 3 else out)
    return layers[-1], layers


def gradient_to_logits(domain_logits, layers, labels, weights):
    """Gradient of the mean cross-entropy with respect to the class logits, by hand."""
    gradient = np.exp(log_softmax(domain_logits))
    gradient[np.arange(len(labels)), labels] -= 1
    gradient /= len(labels)
    for number in (3, 2, 1):
        gradient = gradient @ weights[f"discriminator.fc{number}.weight"]
        if number > 1:
            gradient = gradient * (layers[number - 1] > 0)
    return gradient


@pytest.fixture(scope="module", params=["target", "both"])
def losses(request, place):
    """One evaluation of the adversarial losses and gradients, and the logits they rest on."""
    cell = build(tiny_config("adda", mapping_rows=request.param), place)
    network, source_network, discriminator = parts(cell)
    rng = np.random.default_rng(3)
    # A source network that differs from the target's: otherwise mistaking one for the other would not show.
    for weight in source_network.get_parameters():
        ops.assign(weight, ms.Tensor(weight.asnumpy() + 0.01 * rng.standard_normal(weight.shape), ms.float32))
    source, target, strong = (rng.random((16, 1, 28, 28), dtype=np.float32) for _ in range(3))
    labels, domains = rng.integers(0, 10, 16).astype(np.int32), np.repeat([0, 1], 16).astype(np.int32)
    factors = np.array([0.7, 1.3, 0.2, 0.9], np.float32)
    inputs = [ms.Tensor(part) for part in (source, labels, target, strong, domains, factors)]
    (total, terms), gradients = adapt_gradients(cell, *inputs)
    logits = {
        "frozen": source_network(inputs[0]),
        "class": network(inputs[0]),
        "target": network(inputs[2]),
        "strong": network(inputs[3]),
    }
    return {
        "mapping_rows": request.param,
        "total": float(total),
        "terms": [float(term) for term in terms],
        "gradients": gradients,
        "confidence": cell.config.confidence,
        "logits": {name: value.asnumpy().astype(np.float64) for name, value in logits.items()},
        "weights": values(discriminator),
        "labels": labels,
        "domains": domains,
        "factors": factors,
    }


def test_losses_against_numpy(losses):
    logits, domains = losses["logits"], losses["domains"]
    joint, _ = domain_net(np.concatenate((logits["frozen"], logits["target"])), losses["weights"])
    probabilities = np.exp(log_softmax(logits["target"]))
    confident = probabilities.max(1) >= losses["confidence"]
    assert confident.any()
    # Inverted labels: the target is to pass for source, and by the authors' code the source for target.
    mapped = slice(None) if losses["mapping_rows"] == "both" else slice(16, None)
    expected = [
        nll(joint, domains).mean(),
        nll(joint[mapped], 1 - domains[mapped]).mean(),
        nll(logits["class"], losses["labels"]).mean(),
        -(probabilities * np.log(probabilities)).sum(1).mean(),
        (confident * nll(logits["strong"], probabilities.argmax(1))).mean(),
        (joint.argmax(1) == domains).mean(),
    ]
    np.testing.assert_allclose(losses["terms"], expected, rtol=1e-4)
    total = expected[0] + (losses["factors"] * expected[1:5]).sum()
    assert losses["total"] == pytest.approx(total, rel=1e-4)


def test_the_discriminator_learns_from_its_own_loss_alone(losses):
    logits, weights = losses["logits"], losses["weights"]
    joint, layers = domain_net(np.concatenate((logits["frozen"], logits["target"])), weights)
    error = np.exp(log_softmax(joint)) - np.eye(2)[losses["domains"]]
    gradients = losses["gradients"]
    np.testing.assert_allclose(gradients["discriminator.fc3.bias"], error.mean(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        gradients["discriminator.fc3.weight"], error.T @ layers[2] / 32, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("rows, share", [("target", 1.0), ("both", 0.5)])
def test_the_target_network_learns_from_the_inverted_labels(new_cell, rows, share):
    """The last bias's gradient is the sum over the batch of the mapping loss's, and nothing of any other."""
    cell = new_cell(class_weight=0, entropy_weight=0, consistency_weight=0, mapping_rows=rows)
    rng = np.random.default_rng(4)
    source, target = (ms.Tensor(rng.random((16, 1, 28, 28), dtype=np.float32)) for _ in range(2))
    factors = ms.Tensor([0.5, 0, 0, 0], ms.float32)
    labels = ms.Tensor(np.zeros(16), ms.int32)
    _, gradients = adapt_gradients(cell, source, labels, target, target, cell.domains, factors)
    weights, logits = values(parts(cell)[2]), cell.network(target).asnumpy().astype(np.float64)
    domain_logits, layers = domain_net(logits, weights)
    expected = share * 0.5 * gradient_to_logits(domain_logits, layers, np.zeros(16, int), weights).sum(0)
    np.testing.assert_allclose(gradients["fc2.bias"], expected, rtol=1e-3, atol=1e-7)


# What each phase trains


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_what_moves_in_each_phase(new_cell, solver):
    cell = new_cell(solver=solver)
    source, warm_up, adapt = cell.phases
    network, frozen, judge = parts(cell)

    before = [values(part) for part in (network, frozen, judge)]
    cell.start_phase(source)
    train(cell, source, 0)
    assert all_moved(before[0], values(network))
    assert same(before[1], values(frozen)) and same(before[2], values(judge))

    warm_up.step = 0
    cell.start_phase(warm_up)
    trained = values(network)
    copied = values(frozen)
    assert list(copied) == [f"source_network.{name}" for name in trained]
    assert all(np.array_equal(copied[f"source_network.{name}"], trained[name]) for name in trained)
    train(cell, warm_up, 0)
    assert same(trained, values(network)) and same(copied, values(frozen))
    assert all_moved(before[2], values(judge))

    warmed = values(judge)
    adapt.step = 0
    cell.start_phase(adapt)
    train(cell, adapt, 0)
    assert all_moved(trained, values(network)) and all_moved(warmed, values(judge))
    assert same(copied, values(frozen))


def test_without_warm_up_the_copy_is_made_at_adaptation(new_cell):
    cell = new_cell(discriminator_iterations=0)
    cell.start_phase(cell.phases[2])
    network, frozen, _ = (values(part) for part in parts(cell))
    for before, after in zip(network.values(), frozen.values(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("level", ["O0", pytest.param("O1", marks=pytest.mark.thorough)])
def test_the_frozen_source_network_keeps_its_batch_statistics(new_cell, level):
    """It normalises by what source training has left, at whichever step a run begins; the other goes on."""
    cell = new_cell(network="dann", amp_level=level, iterations=2, adversary_iterations=2)
    network, frozen, _ = parts(cell)
    train_steps(cell, 0, 2)
    learned = [value.asnumpy().copy() for value in statistics(network)]
    train_steps(cell, 2, 5)
    kept = values(frozen)
    assert len(learned) == 8 and np.abs(learned[0]).max() > 0
    for before, after in zip(learned, statistics(frozen), strict=True):
        np.testing.assert_array_equal(before, after.asnumpy())
    train_steps(cell, 5, 6)  # as a run that is resumed here
    assert same(kept, values(frozen))
    assert not any(norm.training for norm in batch_norms(frozen))
    assert all(norm.training for norm in batch_norms(cell.trained))
    moved = [value.asnumpy() for value in statistics(network)]
    assert all(not np.array_equal(before, after) for before, after in zip(learned, moved, strict=True))


def test_every_rank_freezes_the_statistics_of_rank_0(place, monkeypatch):
    """They are each rank's own until then, and a resumed run has those of rank 0."""
    cell = build(tiny_config("adda", network="dann"), place)
    means = {id(value): ms.Tensor(np.full(value.shape, 7, np.float32)) for value in statistics(cell.network)}

    def received(cells, device, statistics_only=False):
        assert statistics_only
        for parameter in (p for one in cells for p in one.get_parameters() if id(p) in means):
            ops.assign(parameter, means[id(parameter)])

    monkeypatch.setattr("src.train_cells.adda.broadcast_parameters", received)
    cell.start_phase(cell.phases[1])
    frozen = statistics(cell.parts["source_network"])
    assert len(frozen) == len(means) > 0 and all((value.asnumpy() == 7).all() for value in frozen)


def test_with_averaged_weights_adaptation_starts_at_the_average(new_cell, tmp_path):
    cell = new_cell(ema_decay=0.9)
    train_steps(cell, 0, 4)
    average = list(values(cell.network).values())
    assert not np.array_equal(average[0], next(iter(values(cell.trained).values())))
    checkpoint.save_cell(cell.network, tmp_path / "source.ckpt", {})
    cell.start_phase(cell.phases[1])
    begun = new_cell(ema_decay=0.9, source_ckpt_file=tmp_path / "source.ckpt")
    assert begun.phases[0].steps == 0
    for part in (*parts(cell)[:2], cell.trained, begun.network, begun.trained):
        assert all(map(np.array_equal, values(part).values(), average))


@pytest.mark.parametrize("names", ["1023456789", "abcdefghij"], ids=["another order", "others"])
def test_a_source_network_of_other_classes_is_refused(new_cell, place, tmp_path, names):
    network, path = build_network(tiny_config("adda"), place), tmp_path / "source.ckpt"
    checkpoint.save_cell(network, path, {"classes": list(names)})
    fails(lambda: new_cell(source_ckpt_file=path), "source_ckpt_file: ", path, "other classes")


@pytest.mark.parametrize("phase, step", [(0, 0), (1, 1), (2, 0), (2, 3)])
def test_a_run_that_resumes_later_keeps_its_source_network(new_cell, phase, step):
    cell = new_cell()
    before = values(parts(cell)[1])
    cell.phases[phase].step = step
    cell.start_phase(cell.phases[phase])
    # Phase 2 (adaptation) begins with a copy only where there is no phase before it.
    assert same(before, values(parts(cell)[1]))


def test_adversarial_adam_has_the_papers_beta1(new_cell):
    found = {}
    for update in new_cell().updates.values():
        found |= {name: float(adam.beta1.asnumpy()) for name, adam in update.optimizers.items()}
    assert found == {"source": pytest.approx(0.9), "discriminator": 0.5, "adapt": 0.5}


RATES = """
import mindspore as ms
from src.data.tasks import open_task
from src.setup import settings
from src.setup.place import set_up
from src.train_cells.adda import Method

keys = "--solver sgd --momentum 0 --weight_decay 0 --lr_schedule one_cycle --lr 0.1".split()
resolved = settings.load(["--config", "tests/tiny/adda.yaml", "--device_target", "CPU", *keys])
place = set_up(resolved)
cell = Method(resolved, place, open_task(resolved, place))
phase, weight = cell.phases[0], cell.network.head.dense.weight
for step in range(phase.steps):
    images, labels = phase.batch(step)["source"]
    _, gradients = cell.updates["source"].gradient(ms.Tensor(1.0), ms.Tensor(images), ms.Tensor(labels))
    before, phase.step = weight.asnumpy().copy(), step
    rate = cell.train_step(phase, phase.batch(step))["lr"]
    moved = abs(weight.asnumpy() - before).max()
    print(rate, moved / abs(gradients[-2].asnumpy()).max())
"""


@pytest.mark.parametrize("pipeline", [pytest.param("0", marks=pytest.mark.thorough), "1"])
def test_the_scheduled_rate_is_the_one_applied(pipeline):
    """Also where MindSpore runs steps from another thread, its default: set_data would go unnoticed there."""
    environment = {**os.environ, "MS_DEV_JIT_PIPELINE": pipeline, "GLOG_v": "3"}
    command = [sys.executable, "-c", RATES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rates, applied = np.array([line.split() for line in done.stdout.splitlines()[-4:]], float).T
    assert rates.max() > 10 * rates.min()
    np.testing.assert_allclose(applied, rates, rtol=0.01, atol=1e-6)


def test_the_paper_s_network_and_recipe():
    resolved = experiment.load(["--config", "configs/adda_usps_mnist_paper.yaml"])
    network = networks.build(resolved, 10)
    shapes = {p.name: p.shape for p in network.get_parameters() if p.name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (20, 1, 5, 5),
        "conv2.weight": (50, 20, 5, 5),
        "fc1.weight": (500, 800),
        "fc2.weight": (10, 500),
    }
    assert sum(p.size for p in network.trainable_params()) == 431_080
    recipe = (
        "iterations",
        "adversary_iterations",
        "batch_size",
        "lr",
        "adversary_lr",
        "weight_decay",
        "optimizer",
    )
    assert [getattr(resolved, key) for key in recipe] == [10000, 10000, 128, 1e-3, 2e-4, 2.5e-5, "adam"]
    authors = {"input_norm": "unit", "digit_resize": "origin", "initial_weights": "glorot"}
    authors |= {"weight_decay_on": "weights", "mapping_rows": "both"}
    assert {key: getattr(resolved, key) for key in authors} == authors
    extras = ("class_weight", "entropy_weight", "consistency_weight", "discriminator_iterations")
    assert [getattr(resolved, key) for key in extras] == [0, 0, 0, 0] and resolved.mapping_weight == 1


def test_validation_reads_no_target_label(new_cell):
    cell = new_cell()
    assert all((labels == -1).all() for _, labels in cell.held_out["target"])
    assert set(cell.validate(cell.phases[0])) == {"class_loss", "class_accuracy"}
    figures = cell.validate(cell.phases[2])
    assert set(figures) == {"class_loss", "class_accuracy", "domain_loss", "domain_accuracy"}
    assert all(0 <= figures[name] <= 1 for name in ("class_accuracy", "domain_accuracy"))


def test_published_option_names(new_cell):
    resolved = tiny_config(
        "adda", dataset="usps", output="o", display=7, snapshot=9, split="train", model="lenet"
    )
    assert (resolved.source_dataset_name, resolved.output_dir, resolved.network) == ("usps", "o", "lenet")
    assert (resolved.log_interval, resolved.save_checkpoint_steps) == (7, 9)
    for wrong, parts in (
        ({"display": 7, "log_interval": 8}, ("display", "another name of log_interval")),
        ({"solver": "lbfgs"}, ("solver: 'lbfgs'", "is not allowed", "adam | sgd")),
        ({"display": 0}, ("log_interval", "is not allowed")),
        ({"model": "lenett"}, ("network: 'lenett'", "did you mean lenet?")),
        ({"split": "eval"}, ("split", "training split", "python eval.py --ckpt_path")),
    ):
        fails(lambda wrong=wrong: tiny_config("adda", **wrong), *parts)
    nothing = {"iterations": 0, "discriminator_iterations": 0, "adversary_iterations": 0}
    fails(lambda: new_cell(**nothing), "nothing to train")


def test_the_recipe_of_an_earlier_release_s_checkpoint_is_understood():
    """Its keys `model` and `split` were read by nothing; `solver` is the optimizer's earlier name."""
    stored = {"method": "adda", "model": "lenet", "split": "train", "solver": "sgd", "input_norm": "instance"}
    for program in ("eval.py", "export.py"):
        resolved = experiment.load([], program, stored=stored)
        assert (resolved.method, resolved.network, resolved.optimizer) == ("adda", "lenet", "momentum")
        assert resolved.input_norm == "instance" and "split" not in resolved.as_dict()


# Protocols


def numbered(count):
    """A split whose images carry their own number."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return Split(images, (np.arange(count) % 10).astype(np.int32))


@pytest.mark.parametrize(
    "name, size, whole", [("mnist", 2000, 60000), ("MNIST", 2000, 2000), ("usps", 1800, 7291)]
)
def test_sampled_protocol(name, size, whole):
    split = numbered(whole)
    chosen = [forms.draw(split, name, "sampled", seed) for seed in (0, 0, 1)]
    numbers = [part.images[:, 0, 1].astype(int) * 256 + part.images[:, 0, 0] for part in chosen]
    assert all(len(set(part)) == len(part) == size for part in numbers)
    np.testing.assert_array_equal(numbers[0], numbers[1])
    assert whole == size or set(numbers[0]) != set(numbers[2])
    for part, number in zip(chosen, numbers, strict=True):
        np.testing.assert_array_equal(part.labels, number % 10)
    assert forms.draw(split, name, "full", 0) is split


def test_bad_protocols(new_cell):
    fails(lambda: tiny_config("adda", protocol="half"), "protocol: 'half'", "full | sampled")
    svhn, usps = numbered(3000), numbered(1799)
    fails(lambda: forms.draw(svhn, "svhn", "sampled", 0), "not defined for svhn", "--protocol full")
    fails(
        lambda: forms.draw(usps, "usps", "sampled", 0),
        "needs 1800 training images of usps, there are 1799",
    )
    fails(lambda: new_cell(protocol="sampled"), "not defined for demo_digits")


# Readers: one value range, and wrong files

GREYS = np.linspace(0, 1, 784).reshape(28, 28)


def write_digits(folder, count=40):
    """MNIST, USPS and SVHN files whose images run from the darkest to the lightest value; {name: folder}."""
    labels = np.arange(count) % 10
    folders = {name: folder / f"{name} files" for name in ("mnist", "usps", "svhn")}
    for path in folders.values():
        path.mkdir(parents=True)
    images = np.tile(np.rint(GREYS * 255).astype(np.uint8), (count, 1, 1))
    house = np.tile(np.linspace(0, 255, 1024).reshape(32, 32, 1, 1).astype(np.uint8), (1, 1, 3, count))
    ink = np.linspace(-1, 1, 256)
    row = " ".join(f"{index}:{value:.4f}" for index, value in enumerate(ink, 1))
    for stem, split, short, end in (("train", "train", "", ""), ("t10k", "test", ".t", ".t")):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            content = idx.header(array.shape) + array.tobytes()
            (folders["mnist"] / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 1))
        text = "".join(f"{label + 1} {row}\n" for label in labels)
        (folders["usps"] / f"usps{end or short}").write_text(text)
        wrapped = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(folders["svhn"] / f"{split}_32x32.mat", {"X": house, "y": wrapped})
    return folders


def test_all_domains_share_one_value_range(tmp_path):
    place = devices.Device("CPU")
    for name, folder in write_digits(tmp_path).items():
        sides = {"source_dataset_name": name, "target_dataset_name": name}
        roots = {"source_image_root": folder, "target_image_root": folder}
        resolved = tiny_config("adda", validation_size=0, **sides, **roots)
        task, preparation = open_task(resolved, place), networks.preparation(resolved)
        loaders = [*task.labelled(preparation, 16).values(), *task.unlabelled(preparation, 16).values()]
        tests = task.test(preparation)
        assert len(loaders) == len(tests) == 2
        batches = [loader.batch(0)[0] for loader in loaders]
        for images in (*batches, *(next(iter(loader))[0] for loader in tests.values())):
            assert images.dtype == np.float32 and images.shape[1:] == (1, 28, 28)
            assert images.min() == pytest.approx(0, abs=0.02), name
            assert images.max() == pytest.approx(1, abs=0.02), name
            assert images.mean() == pytest.approx(0.5, abs=0.02), name


def real(name):
    folder = Path(os.environ.get("DATA_ROOT", ""), name)
    if "DATA_ROOT" not in os.environ or not folder.is_dir():
        pytest.skip(f"DATA_ROOT has no {name}")
    return folder


def test_real_domains_share_one_value_range():
    loaded = {name: data.load(name, real(name), "test").images for name in ("mnist", "usps")}
    for images in loaded.values():
        assert images.dtype == np.uint8 and images.min() == 0 and images.max() == 255
        assert np.bincount(images.ravel()).argmax() == 0  # the background


def test_usps_text_in_another_range_is_refused(tmp_path):
    row = " ".join(f"{index}:{(index - 1) / 255:.3f}" for index in range(1, 257))  # 0..1, not -1..1
    (tmp_path / "usps").write_text(f"1 {row}\n" * 3)
    with pytest.raises(UserError, match="usps: no background .*0..1 in place of -1..1"):
        data.load("usps", tmp_path, "train")


# Augmentations


@pytest.mark.parametrize("name", augment.CHOICES[1:])
def test_augmentations_are_pure_and_keep_the_range(name):
    images = np.random.default_rng(0).random((20, 2, 28, 28), dtype=np.float32)
    kept, change = images.copy(), augment.build(name)
    first, again, other = (change(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(first, again)
    assert first.shape == images.shape and first.dtype == np.float32
    assert first.min() >= -1e-6 and first.max() <= 1 + 1e-6
    assert not np.array_equal(first, other) and not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    "name, low, high", [("affine", 0.8, 1.25), ("shrink", 0.55, 1.05), ("enlarge", 0.95, 1.45)]
)
def test_augmentations_change_the_size_as_announced(name, low, high):
    disc = (np.hypot(*(np.indices((28, 28)) - 13.5)) < 6).astype(np.float32)
    images = np.tile(disc, (400, 1, 1, 1))
    grown = np.sqrt(augment.build(name)(images, np.random.default_rng(0)).sum((1, 2, 3)) / disc.sum())
    assert low < grown.min() < low + 0.12 and high - 0.15 < grown.max() < high


def test_warp_keeps_the_centre():
    stretch = {"degrees": 0, "shear": 0, "pixels": 0}
    disc = np.tile((np.hypot(*(np.indices((28, 28)) - 13.5)) < 6).astype(np.float32), (3, 1, 1, 1))
    moved = augment.warp(disc, np.random.default_rng(0), (1, 1), **stretch)
    centre = (moved * np.indices((28, 28))[:, None, None]).sum((3, 4)) / moved.sum((2, 3))[:, None].T
    np.testing.assert_allclose(centre, 13.5, atol=0.02)


# Whole runs


@pytest.mark.thorough
def test_two_runs_end_as_one(place, tmp_path):
    """The scripts train the source network in a run of its own: bit for bit as one run does."""

    def run(folder, **changes):
        resolved = tiny_config("adda", tensorboard="false", output_dir=tmp_path / folder, **changes)
        cell = lambda: (build(resolved, place), test_sets(resolved, place))  # noqa: E731
        assert whole_run.run(cell, resolved, place, 0.0) == 0
        return checkpoint.read(tmp_path / folder / "network.ckpt")[0]

    whole = run("whole")
    source = run("source", adversary_iterations=0, discriminator_iterations=0)
    adapted = run("adapted", source_ckpt_file=tmp_path / "source" / "network.ckpt")
    assert same(whole, adapted) and all_moved(source, adapted)


def run_script(folder, *arguments):
    return subprocess.run(
        ["bash", str(ROOT / "scripts/svhn-mnist.sh"), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_script_from_another_folder_to_both_accuracies(tmp_path):
    """SVHN -> MNIST on generated files, through the real commands, with relative paths that hold spaces."""
    folder = tmp_path / "some where"
    write_digits(folder)
    few = "--batch_size 8 --iterations 3 --discriminator_iterations 1 --adversary_iterations 2".split()
    roots = ("--source_image_root", "svhn files", "--target_image_root=mnist files")
    done = run_script(folder, *few, *roots, "--output_dir", "my run", "--device_target", "CPU")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("+ python train.py") == done.stdout.count("+ python eval.py") == 2
    assert done.stdout.index("source only:") < done.stdout.index("adapted:")
    steps = []
    for part in ("source", "adapted"):
        result = json.loads((folder / "my run" / part / "result.json").read_text())
        assert set(result["accuracy"]) == {"source", "target"} and result["method"] == "adda"
        shown = done.stdout.split("source only:" if part == "source" else "adapted:")[1]
        assert f"target domain accuracy: {result['accuracy']['target']:.4f}" in shown
        steps.append(result["steps"])
    assert steps == [3, 3]


@pytest.mark.slow
def test_script_returns_the_failing_command_s_status(tmp_path):
    done = run_script(tmp_path, "--output_dir", "run", "--source_image_root", "nowhere")
    assert done.returncode == 2
    assert f"train_32x32.mat not found in {tmp_path}/nowhere" in done.stderr
    assert "eval.py" not in done.stdout


def test_train_refuses_a_mat_file_without_labels(tmp_path):
    folders = write_digits(tmp_path)
    savemat(folders["svhn"] / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 40), np.uint8)})
    roots = ["--source_image_root", str(folders["svhn"]), "--target_image_root", str(folders["mnist"])]
    command = [sys.executable, "train.py", "--config", "configs/adda_svhn_mnist.yaml", *roots]
    command += ["--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "no variable 'y'" in done.stderr
    assert done.stderr.count("\n") == 1
