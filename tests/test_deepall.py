"""DeepAll: one step against numpy, what it reads, its commands, and the table that compares it with MASF."""

import json
import subprocess

import cv2
import mindspore as ms
import numpy as np
import pytest
from helpers import (
    ROOT,
    TINY,
    build,
    build_network,
    command,
    environment,
    fails,
    forked,
    refused,
    succeeded,
    tiny_config,
    train,
    values,
)

from benchmarks import generalisation as comparison
from model_utils import noise
from src import networks

TINY_CONFIG = TINY / "deepall.yaml"


def joined(cell, step=0):
    """Images and labels of all domains of a batch, as one."""
    batch = cell.phases[0].batch(step)
    return tuple(np.concatenate(column) for column in zip(*batch.values(), strict=True))


def test_a_step_minimises_the_cross_entropy_of_the_joined_batch(place):
    """Adam's first step moves each weight by lr against the sign of its gradient, unless that is tiny."""
    settings = tiny_config("deepall", dropout=0.5, lr_max=0.01)
    cell = build(settings, place)
    before = values(cell)
    images, labels = joined(cell)
    mask = noise.keep_mask(noise.generator(settings.seed, "dropout", 0, 0, 0), (24, 128), 0.5)
    weights = before["classifier.weight"], before["classifier.bias"]
    hidden = cell.network.features(ms.Tensor(images)).asnumpy().astype(float) * mask
    logits = hidden @ weights[0].T.astype(float) + weights[1]
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponents / exponents.sum(1, keepdims=True)
    (_, logged), *_ = train(cell, 0, 1)
    assert logged["loss"] == pytest.approx(-np.log(probabilities[np.arange(24), labels]).mean(), rel=1e-5)
    probabilities[np.arange(24), labels] -= 1
    gradient = probabilities.T @ hidden / 24
    moved = values(cell)["classifier.weight"] - weights[0]
    large = np.abs(gradient) > 1e-4
    assert large.mean() > 0.5
    np.testing.assert_allclose(moved[large], -0.01 * np.sign(gradient[large]), rtol=1e-2)


def test_a_batch_has_each_source_domain_and_not_the_one_left_out(place):
    cell = build(tiny_config("deepall"), place)
    batch = cell.phases[0].batch(0)
    assert list(batch) == ["0", "25", "75"]
    assert all(images.shape == (8, 3, 28, 28) and len(labels) == 8 for images, labels in batch.values())
    assert list(cell.validate(cell.phases[0])) == [f"held_out_{name}_accuracy" for name in batch]


def test_nothing_is_held_out_where_holdout_is_0(place):
    cell = build(tiny_config("deepall", holdout=0), place)
    assert cell.validate(cell.phases[0]) == {}


def test_parts_of_a_step_add_up(place):
    """Two accumulated parts of 4 give the update that one batch of 8 gives; the images are the same."""
    common = {"dropout": 0, "augment": "none", "optimizer": "momentum", "lr_max": 0.1}
    whole, parts = (
        build(tiny_config("deepall", **common, **keys), place)
        for keys in ({"batch_size": 8}, {"batch_size": 4, "gradient_accumulation": 2})
    )
    before = values(whole)
    (_, one), (_, two) = train(whole, 0, 1)[0], train(parts, 0, 1)[0]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    for ours, theirs in zip(whole.network.get_parameters(), parts.network.get_parameters(), strict=True):
        moved = ours.asnumpy() - before[ours.name]
        largest = np.abs(moved).max()
        assert largest > 1e-4
        np.testing.assert_allclose(theirs.asnumpy() - before[ours.name], moved, rtol=0, atol=2e-4 * largest)


def test_it_learns_all_sources_at_once(place):
    cell = build(tiny_config("deepall", train_iterations=60, batch_size=16, dropout=0), place)
    logged = train(cell)
    assert logged[-1][1]["loss"] < 0.5 * logged[0][1]["loss"]
    assert all(value > 0.5 for value in cell.validate(cell.phases[0]).values())


# The networks


@pytest.mark.parametrize(
    "name, size, classes, weights", [("digits", 28, 10, 140_602), ("photos", 64, 7, 621_127)]
)
def test_networks_have_their_shapes(name, size, classes, weights):
    network = networks.build(tiny_config("deepall", network=name), classes)
    images = ms.Tensor(np.random.RandomState(0).rand(3, 3, size, size), ms.float32)
    ((shape, rate),) = network.masks
    assert rate == 0.5 and shape == (network.feature_size,)
    assert network(images).shape == (3, classes) and network.features(images).shape == (3, *shape)
    assert sum(parameter.size for parameter in network.trainable_params()) == weights
    nothing = network(images, ms.Tensor(np.zeros((3, *shape), np.float32))).asnumpy()
    bias = next(p for p in network.get_parameters() if p.name == "classifier.bias").asnumpy()
    np.testing.assert_allclose(nothing, np.tile(bias, (3, 1)), atol=1e-6)


def test_images_are_as_large_as_the_network_takes_them(place):
    cell = build(tiny_config("deepall", network="photos"), place)
    assert cell.phases[0].batch(0)["0"][0].shape == (8, 3, 64, 64)
    refusal = "image_size: 28, but network photos takes 64"
    fails(lambda: build(tiny_config("deepall", network="photos", image_size=28), place), refusal)


@pytest.fixture
def uneven(tmp_path):
    """Keys of a set of folders with three classes: domains of 12 and 30 images, and one that is left out."""
    for domain, count in (("large", 10), ("small", 4), ("target", 1)):
        for number, name in enumerate("abc"):
            (tmp_path / domain / name).mkdir(parents=True)
            for index in range(count):
                image = np.full((28, 28, 3), 80 * number + index, np.uint8)
                assert cv2.imwrite(str(tmp_path / domain / name / f"{index}.png"), image)
    keys = {"domain_set": "folders", "domains_image_root": tmp_path, "target_domain": "target"}
    return {**keys, "holdout": 0, "augment": "none", "batch_size": 4}


def test_the_number_of_classes_follows_from_the_data(place, uneven):
    for keys, classes in (({}, 10), (uneven, 3)):
        assert build_network(tiny_config("deepall", **keys), place).classes == classes


def test_the_warm_up_rises_from_zero_over_epochs_of_the_smallest_domain(place, uneven):
    """12 images in batches of 4: an epoch of three steps, however many iterations the run has."""
    keys = {**uneven, "warmup_epochs": 2, "lr_max": 0.03, "train_iterations": 9}
    cell = build(tiny_config("deepall", **keys), place)
    rates = [logged["lr"] for _, logged in train(cell)]
    assert rates == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.03, 0.03, 0.03])
    assert float(cell.updates["train"].optimizers["network"].learning_rate.asnumpy()) == pytest.approx(0.03)


# The commands


@pytest.mark.thorough
def test_train_evaluate_and_export(tmp_path):
    out = tmp_path / "run"
    succeeded(command("train.py", config=TINY_CONFIG, output_dir=out, device_target="CPU"))
    result = json.loads((out / "result.json").read_text())
    assert list(result["accuracy"]) == ["0", "25", "75", "50"] and result["method"] == "deepall"
    evaluated = tmp_path / "result.json"
    shown = succeeded(command("eval.py", ckpt_path=out, result=evaluated, device_target="CPU"))
    assert json.loads(evaluated.read_text())["accuracy"] == result["accuracy"]
    assert f"50 domain accuracy: {result['accuracy']['50']:.4f}" in shown
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not [key for row in rows if row["kind"] != "test" for key in row if "50" in key]


@pytest.mark.parametrize(
    "keys, parts",
    [
        ({"target_domain": "85"}, ["target_domain: '85'", "did you mean 75?", "0, 25, 50, 75"]),
        ({"target_domain": ""}, ["target_domain: ''"]),
        ({"batch_size": 500}, ["batch_size: 500", "domain 0"]),
        ({"num_classes": 7}, ["num_classes: 7"]),
        ({"train_size_per_domain": 9999}, ["train_size_per_domain: 9999"]),
        ({"domain_set": "folders", "domains_image_root": "nowhere"}, ["domains_image_root: 'nowhere'"]),
    ],
)
def test_bad_input_is_one_line(place, keys, parts):
    fails(lambda: build(tiny_config("deepall", **keys), place), *parts)


def test_train_refuses_bad_input_with_status_2(tmp_path):
    keys = {"config": TINY_CONFIG, "output_dir": tmp_path / "run", "device_target": "CPU"}
    refused(command("train.py", target_domain="85", **keys), "target_domain: '85'", "0, 25, 50, 75")


# The comparison


def test_the_table_pairs_methods_by_seed():
    """Gains 1 and 3 points: mean 2, sample deviation sqrt(2)."""
    accuracies = {("masf", "0"): [0.91, 0.95], ("deepall", "0"): [0.90, 0.92]}
    lines = comparison.table(accuracies, ["0"], ("masf", "deepall"))
    assert lines[0] == "| left out | masf | deepall | gain | gain of each seed |"
    assert lines[2] == "| 0 | 93.00 ± 2.83 | 91.00 ± 1.41 | +2.00 ± 1.41 | +1.00, +3.00 |"
    alone = comparison.table(accuracies, ["0"], ("deepall",))
    assert alone[0] == "| left out | deepall |" and alone[2] == "| 0 | 91.00 ± 1.41 |"
    worse = comparison.table({("masf", "a"): [0.5], ("deepall", "a"): [0.6]}, ["a"], ("masf", "deepall"))
    assert worse[2] == "| a | 50.00 | 60.00 | -10.00 | -10.00 |"


def compare(*words, program=("-m", "benchmarks.generalisation")):
    return forked([*program, *words])


ONE = ("rotated_mnist", "--methods", "deepall", "--targets", 25)
SHORT = ("--domain_set", "demo", "--train_iterations", 2, "--eval_batch_size", 300, "--device_target", "CPU")


def test_the_comparison_runs_the_commands_keeps_their_results_and_repeats_none(tmp_path):
    words = (*ONE, "--seeds", 3, "--folder", tmp_path / "kept", "--train_size_per_domain", 0)
    first = compare(*words, *SHORT)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "kept" / "deepall-25-3" / "result.json").read_text())
    assert result["seed"] == 3 and result["steps"] == 2
    line = f"| 25 | {100 * result['accuracy']['25']:.2f} |"
    assert line in first.stdout and "+ python train.py" in first.stdout
    again = compare(*words, *SHORT)
    assert again.returncode == 0 and line in again.stdout and "+ python" not in again.stdout
    refused(compare(*words, *SHORT, "--lr_max", 0.5), "comes from another command", "--folder")


@pytest.mark.parametrize(
    "words, parts",
    [
        (("nothing",), ["nothing", "deepall_nothing.yaml", "digits", "rotated_mnist"]),
        (("digits", "--targets", "svhn"), ["target_domain: 'svhn'", "mnist, mnist_m, usps"]),
        (("digits", "--seed", 1), ["seed: this command sets it"]),
        (("digits", "--bath_size", 1), ["bath_size", "did you mean batch_size?"]),
    ],
)
def test_the_comparison_refuses_bad_input_in_one_line(words, parts):
    refused(compare(*words, "--methods", "deepall"), *parts)


def test_a_failing_run_stops_the_comparison(tmp_path):
    words = (*ONE, "--folder", tmp_path, "--batch_size", 9999)
    done = compare(*words, *SHORT, "--train_size_per_domain", 0)
    assert done.returncode == 2 and "batch_size: 9999" in done.stderr and "status 2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "scripts").glob("run_masf_*.sh")))
def test_scripts_run_from_any_folder_and_take_its_folders(tmp_path, name):
    (tmp_path / "my data").mkdir()
    keys = ("--methods", "deepall", "--domain_set", "folders", "--domains_image_root", "my data")
    done = subprocess.run(
        ["bash", ROOT / "scripts" / f"{name}.sh", *keys],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused(done, f"{tmp_path}/my data holds no <domain>/<class> folders")
