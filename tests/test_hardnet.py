"""What the HarDNet method adds to supervised training: its recipe's keys, fine-tuning, what it prints."""

import json
import logging
import re

import mindspore as ms
import numpy as np
import pytest
from helpers import TINY, UNCOMPILED, build, command, refused, succeeded, tiny_config, tiny_data
from test_hardnet_network import hardnet

from model_utils import checkpoint
from model_utils.errors import UserError
from src.networks.pretrained import load_initial
from src.setup import settings as experiment
from src.train_cells import find_method
from src.training.contract import Phase

Method = find_method("hardnet")


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "run")
    logging.getLogger("run").propagate = True
    return caplog


def arrays(network):
    return {p.name: p.asnumpy().copy() for p in network.get_parameters()}


def test_the_published_recipe_is_what_the_configuration_says():
    settings = experiment.load(["--config=configs/hardnet85_imagenet.yaml"])
    wanted = {
        "network": "hardnet85", "num_classes": 1000, "epoch_size": 150, "pretrain_epoch_size": 0,
        "batch_size": 256, "momentum": 0.9, "weight_decay": 6e-5, "label_smooth_factor": 0.1,
        "warmup_epochs": 5, "lr_init": 0.05, "lr_max": 0.1, "lr_end": 1e-5, "lr_decay_mode": "cosine",
        "loss_scale": 1024.0, "save_checkpoint_epochs": 5, "keep_checkpoint_max": 10,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in wanted} == wanted


@pytest.mark.parametrize("variant", ["39ds", "68ds", "68"])
def test_the_other_variants_differ_in_their_name_only(variant):
    base = experiment.load(["--config=configs/hardnet85_imagenet.yaml"]).as_dict()
    other = experiment.load([f"--config=configs/hardnet{variant}_imagenet.yaml"]).as_dict()
    assert other["network"] == f"hardnet{variant}"
    named = {"network", "experiment", "output_dir"}
    assert {name for name in base if base[name] != other[name]} == named


def test_lines_that_users_grep():
    phase = Phase("train", 2000, 625, {}, step=624)
    line = Method.log_line(None, phase, {"loss": float(np.float32(2.4842823))})
    assert line == "epoch:1 step:625, loss is 2.4842823"
    phase.step = 625
    assert Method.log_line(None, phase, {"loss": 1.0}) == "epoch:2 step:1, loss is 1.0"
    assert Method.accuracy_lines({"val": 0.774}, {"val": 0.93125}) == [
        "accuracy:{'acc':0.774}",
        "top-5 accuracy: 0.93125",
    ]
    assert Method.accuracy_lines({"val": 1 / 3}, {}) == ["accuracy:{'acc':0.333333}"]


@pytest.mark.parametrize(
    ("variant", "size"), [("39ds", 64), pytest.param("85", 70, marks=pytest.mark.thorough)]
)
def test_dropout_masks_fit_the_network(variant, size):
    network = hardnet(variant, 4, image_size=size)
    assert [rate for _, rate in network.masks] == {"39ds": [0.05], "85": [0.1, 0.2]}[variant]
    images = ms.Tensor(np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32))
    zeros = [ms.Tensor(np.zeros((2, *shape), np.float32)) for shape, _ in network.masks]
    bias = network.head.dense.bias.asnumpy()
    np.testing.assert_array_equal(network(images, *zeros).asnumpy(), np.stack((bias, bias)))


# Fine-tuning.


def pretrained(path, classes, variant="39ds", **entries):
    """A checkpoint of a network with random weights; its values."""
    ms.set_seed(99)
    network = hardnet(variant, classes)
    for name, value in entries.items():
        parameter = next(p for p in network.get_parameters() if p.name == name.replace("__", "."))
        parameter.set_data(ms.Tensor(value))
    checkpoint.save_cell(network, path)
    return arrays(network)


def start(network, path, variant="39ds"):
    """Fill a network as a run does whose `pretrained` is `path`, under the name that users know."""
    load_initial(
        network, experiment.load(["--method=hardnet", f"--variant={variant}", f"--pre_ckpt_path={path}"])
    )


def test_the_same_classes_take_over_every_weight(tmp_path, lines):
    stored = pretrained(tmp_path / "net.ckpt", 4)
    ms.set_seed(1)
    network = hardnet("39ds", 4)
    start(network, tmp_path / "net.ckpt")
    assert all(np.array_equal(value, stored[name]) for name, value in arrays(network).items())
    assert "starting from the weights of" in lines.text and "class head" not in lines.text


def test_other_classes_get_a_new_classifier_and_the_log_says_so(tmp_path, lines):
    stored = pretrained(tmp_path / "net.ckpt", 4)
    ms.set_seed(1)
    network = hardnet("39ds", 7)
    fresh = arrays(network)
    start(network, tmp_path / "net.ckpt")
    for name, value in arrays(network).items():
        wanted = fresh if name.startswith("classifier.") else stored
        assert np.array_equal(value, wanted[name]), name
    assert "its class head of 4 classes is replaced by a new one of 7 classes" in lines.text


def test_a_run_folder_gives_its_newest_weights(tmp_path):
    meta = {"step": 1, "seconds": 1.0, "trained": [], "oracle": {}, "config": {}}
    network = hardnet("39ds", 4)
    for step in (1, 2):
        ms.ops.assign(network.head.dense.bias, ms.Tensor(np.full(4, step, np.float32)))
        checkpoint.save_state({"network": network}, meta, checkpoint.step_path(tmp_path, step))
    other = hardnet("39ds", 4)
    start(other, tmp_path)
    assert other.head.dense.bias.asnumpy().tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("classes", [4, 7])
def test_whatever_else_does_not_fit_is_an_error_that_names_it(tmp_path, classes):
    pretrained(tmp_path / "net.ckpt", 4, variant="68ds")
    network = hardnet("39ds", classes)
    before = arrays(network)
    with pytest.raises(
        UserError, match=r"net.ckpt does not fit .*left over: base.*other shape: base\.0\.conv"
    ):
        start(network, tmp_path / "net.ckpt")
    assert all(np.array_equal(value, before[name]) for name, value in arrays(network).items())


def test_what_is_no_checkpoint_or_not_finite_is_an_error(tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    pretrained(tmp_path / "nan.ckpt", 4, base__0__norm__gamma=np.full(24, np.nan, np.float32))
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("text.ckpt", "damaged"),
        ("nan.ckpt", "base.0.norm.gamma is infinite or not a number"),
        ("absent.ckpt", "does not exist"),
        ("empty", "no training checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            start(hardnet("39ds", 4), tmp_path / name)


# Building a run.


def cell_of(place, **changes):
    return build(tiny_config("hardnet", **{"ema_decay": 0, **changes}), place)


def test_epochs_done_before_shorten_the_run_and_shift_its_learning_rate(place):
    whole, rest = cell_of(place, epoch_size=5), cell_of(place, epoch_size=5, pretrain_epoch_size=2)
    (all_steps,), (steps,) = whole.phases, rest.phases
    epoch = all_steps.steps_per_epoch
    assert all_steps.steps == 5 * epoch and steps.steps == 3 * epoch
    for step in range(steps.steps):
        steps.step, all_steps.step = step, step + 2 * epoch
        assert rest.learning_rate(steps) == whole.learning_rate(all_steps)


def test_bad_recipes_are_refused(place, tmp_path):
    for changes, message in (
        ({"pretrain_epoch_size": 1}, "nothing is left to train"),
        ({"class_num": 5}, "num_classes: 5, but the data have 6 classes .class0"),
        ({"batch_size": 1}, "at least 2 images"),
        ({"batch_size": 999}, "batch_size: 999"),
        ({"dataset_path": tmp_path / "none"}, "dataset_path: .*none. is no folder"),
        ({"pre_ckpt_path": tmp_path / "none.ckpt"}, "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            cell_of(place, **changes)
    with pytest.raises(UserError, match="hardnet40ds.*hardnet39ds"):
        tiny_config("hardnet", variant="40ds")


def test_evaluation_takes_no_more_images_than_a_batch(place):
    """Who lowers the batch for want of memory need not look for a second key."""
    for batch_size, wanted in ((8, 8), (1000, 24)):
        settings = tiny_config("hardnet", batch_size=batch_size)
        assert Method.evaluation_batch(settings) == wanted
    cell = cell_of(place, batch_size=8)
    (loader,) = cell.task.test(cell.preparation, cell.evaluation_batch(cell.config)).values()
    assert loader.batch_size == 8


def test_every_key_is_explained():
    assert all(len(key.help) > 15 for key in Method.KEYS.values())


# The commands.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the command, what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("hardnet") / "run"
    done = command(
        "train.py", f"--config={TINY / 'hardnet.yaml'}", output_dir=folder, device_target="CPU",
        amp_level="O2", log_interval=1, tensorboard=False, timeout=300, **tiny_data("hardnet"), **UNCOMPILED,
    )  # fmt: skip
    return succeeded(done), folder


def test_a_run_prints_and_writes_what_it_should(finished):
    shown, folder = finished
    steps = re.findall(r"^epoch:1 step:(\d), loss is (\d\.\d+)$", shown, re.MULTILINE)
    assert [number for number, _ in steps] == ["1", "2", "3"]
    result = json.loads((folder / "result.json").read_text())
    assert set(result["accuracy"]) == set(result["top5_accuracy"]) == {"val"}
    assert result["top5_accuracy"]["val"] >= result["accuracy"]["val"]
    assert f"accuracy:{{'acc':{round(result['accuracy']['val'], 6)}}}" in shown
    assert f"top-5 accuracy: {round(result['top5_accuracy']['val'], 6)}" in shown


@pytest.mark.thorough
def test_eval_of_a_half_precision_run_says_what_the_run_said(finished, tmp_path):
    shown, folder = finished
    target = tmp_path / "result.json"
    done = command(
        "eval.py", ckpt_path=folder, device_target="CPU", result=target, timeout=300, **tiny_data("hardnet")
    )
    printed = succeeded(done)
    for line in re.findall(r"^(?:accuracy:|top-5 accuracy:|val domain accuracy:).*$", shown, re.MULTILINE):
        assert line in printed.splitlines()
    trained, evaluated = (json.loads(path.read_text()) for path in (folder / "result.json", target))
    for name in ("accuracy", "top5_accuracy"):
        assert evaluated[name] == trained[name]


def test_commands_refuse_in_one_line(finished, tmp_path):
    _, folder = finished
    elsewhere = command("eval.py", ckpt_path=folder, device_target="CPU", dataset_path=tmp_path / "none")
    refused(elsewhere, "dataset_path", tmp_path / "none")
    refused(
        command("train.py", method="hardnet", lr_decay_mode="linear", output_dir=tmp_path / "x"),
        "lr_decay_mode",
        "cosine | step | poly | constant | one_cycle",
    )
