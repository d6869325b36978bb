"""Every line and name of the published models' documents: accepted, or answered by one line that says what to
type. docs/earlier_names.md shows them all."""

import os
import re
import shutil
import sys
import types

import mindspore as ms
import numpy as np
import pth_files as pth
import pytest
from helpers import ROOT, command, fails, forked, options, succeeded, tiny_data

import eval_onnx
import export
import infer
import model_utils
import modelarts_entry
from model_utils import checkpoint
from src import networks, pth2ckpt
from src.evaluation.test_data import open_test_sets
from src.exported import trained
from src.setup import earlier_names
from src.setup import settings as experiment
from src.train_cells import find_method, method_names

PAGE = (ROOT / "docs" / "earlier_names.md").read_text(encoding="utf-8")
HARDNET, ADDA, MASF = (
    "configs/hardnet85_imagenet.yaml",
    "configs/adda_usps_mnist.yaml",
    "configs/masf_pacs.yaml",
)
ASCEND_LINE = "train.py --dataset_path D --pre_ckpt_path P --isModelArts False --distribute False"
GPU_LINE = "train.py --device_target GPU --distribute False --dataset_path D --pre_ckpt_path P"
CHECKPOINT_KEYS = {"eval.py": "ckpt_path", "export.py": "ckpt_file"}


def resolved(line):
    """The configuration of a line such as 'eval.py --ckpt_path x'."""
    program, *words = line.split()
    return experiment.load(words, program, CHECKPOINT_KEYS.get(program))


# Published lines that run as they stand, and what their options mean here.
ACCEPTED = [
    ("train.py", {"method": "dann"}),
    ("train.py --device_target CPU --model_root ./models", {"output_dir": "./models"}),
    ("train.py --imageSize 28 --Linear 800", {"image_size": 28}),
    (
        f"{ASCEND_LINE} --config {HARDNET}",
        {"dataset_path": "D", "pretrained": "P", "enable_modelarts": False, "network": "hardnet85"},
    ),
    (f"{GPU_LINE} --config {HARDNET}", {"device_target": "GPU", "pretrained": "P"}),
    (
        f"train.py --config {HARDNET} --save_checkpoint True --save_checkpoint_path /r/HarDNet-150_625.ckpt",
        {"output_dir": "/r"},
    ),
    (f"train.py --config {HARDNET} --save_checkpoint_path /r", {"output_dir": "/r"}),
    (f"train.py --config {HARDNET} --lr_decay_mode steps", {"lr_decay_mode": "step"}),
    (f"train.py --config {HARDNET} --lr_decay_mode cosine", {"lr_decay_mode": "cosine"}),
    (f"train.py --config {HARDNET} --dataset_type imagenet2012", {"num_classes": 1000}),
    (
        "train.py --init_learning_rate 0.01 --momentum_rate 0.9 --batch_size 256 --epoch 2000 "
        "--pre_model_path P",
        {"lr": 0.01, "momentum": 0.9, "batch_size": 256, "n_epoch": 2000, "pretrained": "P"},
    ),
    (
        "train.py --source_dataset_path S --target_dataset_path T",
        {"source_image_root": "S", "target_image_root": "T"},
    ),
    (
        "train.py --method adda --dataset usps --split train --model lenet --output lenet_usps "
        "--iterations 10000 --batch_size 128 --display 10 --lr 0.001 --snapshot 5000 --solver adam --seed 0",
        {
            "source_dataset_name": "usps",
            "network": "lenet",
            "output_dir": "lenet_usps",
            "iterations": 10000,
            "log_interval": 10,
            "save_checkpoint_steps": 5000,
            "optimizer": "adam",
        },
    ),
    (
        f"train.py --config {ADDA} --weights snapshot/lenet_usps --adversary_relu --gpu 1 --solver Adam",
        {"source_ckpt_file": "snapshot/lenet_usps", "device_id": 1},
    ),
    ("train.py --method adda --src_dataset mnist --tgt_dataset usps", {"target_dataset_name": "usps"}),
    (
        f"train.py --config {MASF} --dataroot PACS --logdir log --WEIGHTS_PATH bvlc_alexnet.npy "
        "--precision_mode allow_mix_precision --summary_interval 1 --test_print_interval 1",
        {
            "domains_image_root": "PACS",
            "output_dir": "log",
            "pretrained": "bvlc_alexnet.npy",
            "amp_level": "O2",
        },
    ),
    (f"train.py --config {MASF} --precision_mode force_fp32", {"amp_level": "O0"}),
    ("eval.py --method adda --split eval", {"method": "adda"}),
    (
        f"export.py --config {HARDNET} --batch_size 256 --file_name hardnet --file_format ONNX "
        "--device_target GPU",
        {"batch_size": 256, "file_name": "hardnet", "file_format": "ONNX", "device_target": "GPU"},
    ),
]

# Published lines that can't be run as they stand, and what they are answered.
ANSWERED = [
    (ASCEND_LINE, f"--config {HARDNET}"),
    (GPU_LINE, f"--config {HARDNET}"),
    ("train.py --class_num 1000", f"--config {HARDNET}"),
    ("train.py --epoch_size 150", f"--config {HARDNET}"),
    ("train.py --lr_decay_mode cosine", f"--config {HARDNET}"),
    ("train.py --bvlc_path bvlc_alexnet.npy", f"--config {MASF}"),
    ("train.py --dataroot PACS", f"--config {MASF}"),
    ("train.py --WEIGHTS_PATH x", f"--config {MASF}"),
    ("train.py --precision_mode allow_mix_precision", f"--config {MASF}"),
    ("train.py --iterations 10000 --display 10", f"--method adda or --config {ADDA}"),
    ("train.py --solver adam", "--method adda"),
    ("train.py --weights snapshot/lenet_usps", "--method adda"),
    ("train.py --split eval", "--method adda"),
    ("train.py --src_dataset MNIST", "--method adda"),
    ("train.py --method adda --split eval", "python eval.py --ckpt_path FOLDER"),
    ("train.py --method adda --stepsize 5000", "--lr_schedule"),
    ("train.py --method adda --num_epochs 60", "--adversary_iterations N"),
    ("train.py --method adda --d_learning_rate 3e-4", "--adversary_lr RATE"),
    ("train.py --method masf --epoch 3", "--method dann"),
    (f"train.py --config {HARDNET} --lr_decay_mode default", "cosine | step | poly"),
    (f"train.py --config {HARDNET} --distribute True", "bash scripts/run_distribute_train.sh DATASET_PATH"),
    (f"train.py --config {HARDNET} --save_checkpoint False", "--keep_checkpoint_max 1"),
    (f"train.py --config {MASF} --precision_mode fast", "allow_mix_precision"),
    ("train.py --Linear 900", "leave it out"),
    ("train.py --config_path ./default_config.yaml", "--config FILE"),
    ("train.py --model_root a --output_dir b", "give one of them"),
]


@pytest.mark.parametrize("line, wanted", ACCEPTED, ids=[line for line, _ in ACCEPTED])
def test_a_published_line_means_what_it_meant(line, wanted):
    values = resolved(line).as_dict()
    assert {name: values[name] for name in wanted} == wanted


@pytest.mark.parametrize("line, answer", ANSWERED, ids=[line for line, _ in ANSWERED])
def test_a_published_line_is_answered_with_what_to_type(line, answer):
    fails(lambda: resolved(line), answer)


def test_every_name_is_on_the_page_and_every_key_it_stands_for_exists():
    for method in method_names():
        own = find_method(method).ALIASES
        names = {**earlier_names.aliases(method, own), **earlier_names.gone(method, own)}
        missing = [name for name in names if f"`{name}`" not in PAGE and f"--{name}" not in PAGE]
        assert not missing
        # A name may stand for a key of some methods only: `pretrained` all have, `momentum` not all use.
        keys = experiment.schema(method)
        aliases = earlier_names.aliases(method, own).values()
        stands_for = {key if isinstance(key, str) else key.key for key in aliases} - {"lr_decay_mode"}
        assert stands_for <= keys.keys()


def test_every_published_program_is_on_the_page():
    programs = (
        "tools/train.py train_adda.py eval_classification.py modelarts_entry.py npu_train.sh main.py "
        "boot_modelarts.py train_MNIST2MNIST_M.py run_train.sh run_eval.sh run_onnx_eval_gpu.sh pth2ckpt.py"
    )
    assert not [program for program in programs.split() if program not in PAGE]


def test_every_command_on_the_page_that_is_ours_exists():
    files = set(re.findall(r"(?:configs|scripts|src|docs)/[\w/.-]+\.(?:yaml|sh|py|md)", PAGE))
    assert files and not [name for name in files if not (ROOT / name).exists()]


# Without a path: the checkpoint of output_dir


def saved(path, **keys):
    """A network checkpoint of HarDNet-39DS with random weights at `path`; returns the network."""
    settings = experiment.load(["--method=hardnet", *options(num_classes=6, image_size=32, **keys)])
    network = networks.build(settings, 6)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {"method": "hardnet", "network": settings.network, "num_classes": 6, "image_size": 32}
    checkpoint.save_cell(
        network, path, {"format": checkpoint.FORMAT, "config": {**stored, "experiment": "x"}}
    )
    return network


@pytest.mark.parametrize("program", CHECKPOINT_KEYS)
@pytest.mark.parametrize("name", ["output_dir", "model_root", "save_checkpoint_path"])
def test_without_a_path_the_checkpoint_of_output_dir_is_used(tmp_path, program, name):
    network = saved(tmp_path / "network.ckpt")
    settings = resolved(f"{program} --{name} {tmp_path}")
    assert (settings.method, settings.network, settings.image_size) == ("hardnet", "hardnet39ds", 32)
    loaded = trained.find(settings, find_method("hardnet"), CHECKPOINT_KEYS[program])
    assert loaded.path == str(tmp_path / "network.ckpt")
    for before, after in zip(network.get_parameters(), loaded.network.get_parameters(), strict=True):
        np.testing.assert_array_equal(before.asnumpy(), after.asnumpy())


@pytest.mark.parametrize("program", CHECKPOINT_KEYS)
def test_without_a_path_the_published_files_in_model_root_are_used(tmp_path, program):
    settings = resolved(f"{program} --model_root {tmp_path}")
    key = CHECKPOINT_KEYS[program]
    fails(lambda: trained.find(settings, find_method("dann"), key), tmp_path, f"--{key}")
    network = networks.build(settings, 10)
    checkpoint.save_cell(network.backbone, tmp_path / "best_backbone_t.ckpt", {"format": checkpoint.FORMAT})
    checkpoint.save_cell(network.head, tmp_path / "best_class_classifier.ckpt", {"format": checkpoint.FORMAT})
    loaded = trained.find(settings, find_method("dann"), key)
    assert "best_backbone_t.ckpt" in loaded.path and "best_class_classifier.ckpt" in loaded.path
    for before, after in zip(network.get_parameters(), loaded.network.get_parameters(), strict=True):
        np.testing.assert_array_equal(before.asnumpy(), after.asnumpy())


def test_a_checkpoint_without_a_recipe_asks_for_the_configuration(tmp_path):
    path = tmp_path / "HarDNet85.ckpt"
    network = networks.build(experiment.load(["--method=hardnet", "--num_classes=6"]), 6)
    ms.save_checkpoint(network, str(path))
    settings = resolved(f"eval.py --dataset_path D --ckpt_path {path}")
    fails(lambda: trained.find(settings, find_method("dann"), "ckpt_path"), f"--config {HARDNET}")


# A folder of class folders, as …/imagenet2012/validation


def test_a_folder_of_classes_is_tested_whole(place, tmp_path):
    folder = tiny_data("hardnet")["dataset_path"]
    arguments = options(method="hardnet", image_size=32, eval_batch_size=7)
    seen = {}
    for root in (folder, folder / "val"):
        settings = experiment.load([*arguments, f"--dataset_path={root}"])
        classes = tuple(f"class{number}" for number in range(6))
        _, test_sets = open_test_sets(
            settings, place, classes, find_method("hardnet"), networks.preparation(settings)
        )
        assert list(test_sets) == ["val"]
        batches = list(test_sets["val"])
        seen[root] = [np.concatenate(part) for part in zip(*batches, strict=True)]
    for split, whole in zip(*seen.values(), strict=True):
        assert len(whole) == 30
        np.testing.assert_array_equal(split, whole)
    foreign = tmp_path / "class0"
    foreign.mkdir()
    (foreign / "a.png").write_bytes((folder / "val" / "class0" / "00.png").read_bytes())
    settings = experiment.load([*arguments, f"--dataset_path={tmp_path}"])
    fails(
        lambda: open_test_sets(
            settings, place, classes, find_method("hardnet"), networks.preparation(settings)
        ),
        "class1",
    )


def test_a_target_alone_is_tested_by_methods_that_need_no_source(place, tmp_path):
    """As a run of SHOT stores it: its target lies in dataset_path, which holds other folders too."""
    for name in ("studio", "phone"):
        shutil.copytree(tiny_data("hardnet")["dataset_path"] / "val", tmp_path / name)
    keys = {"method": "shot", "network": "digits", "dataset_path": tmp_path, "target_image_root": "phone"}
    classes = tuple(f"class{number}" for number in range(6))

    def opened():
        settings = experiment.load(options(**keys))
        return open_test_sets(settings, place, classes, find_method("shot"), networks.preparation(settings))

    assert list(opened()[1]) == ["target"]
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "phone" / "class0", flat)
    keys["target_image_root"] = "flat"
    fails(opened, "target_image_root", "no labelled images to test on")
    settings = experiment.load(options(**keys))
    network = types.SimpleNamespace(preparation=networks.preparation(settings))
    loaded = types.SimpleNamespace(network=network, classes=classes, names=classes)
    images, what, names = export.comparison(settings, place, loaded, find_method("shot"))
    assert "photographs" in what and names == classes and len(images) > 1


# Conversion, ModelArts, version


@pytest.mark.parametrize("cwd, script", [(ROOT / "src", "pth2ckpt.py"), (ROOT, "src/pth2ckpt.py")])
def test_the_published_conversion(tmp_path, monkeypatch, cwd, script):
    """In src/, and by its path; what is asked for is missing, so that no test writes into the repository."""
    done = forked([script, "--dataset_path", tmp_path / "hardnet85.pth"], cwd)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "hardnet85.pth" in done.stderr and not os.path.exists(cwd / "hardnet85.ckpt")


def test_the_published_conversion_writes_into_the_current_folder(tmp_path, monkeypatch, capsys):
    network = saved(tmp_path / "run" / "network.ckpt")
    values = {p.name: p.asnumpy() for p in network.get_parameters()}
    from src.networks._hardnet_weights import published_names

    state = {theirs: values[ours] for ours, theirs in published_names(network).items()}
    pth.write_state(tmp_path / "hardnet39.pth", state)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pth2ckpt.py", "--dataset_path", str(tmp_path / "hardnet39.pth")])
    assert pth2ckpt.main() == 0
    assert "hardnet39.ckpt: HarDNet 39ds, 6 classes" in capsys.readouterr().out
    assert (tmp_path / "hardnet39.ckpt").is_file()


def entry(monkeypatch, capsys, *words, **variables):
    """What modelarts_entry.py prints with --dry_run, for a job with these environment variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "argv", ["modelarts_entry.py", *words, "--dry_run"])
    assert modelarts_entry.main() == 0
    return capsys.readouterr().out


def test_modelarts_passes_options_that_are_its_own(monkeypatch, capsys):
    words = ("--data_url", "obs://b/data", "--num_gpus=1", "--init_method", "tcp://x", "--lr", "0.1")
    first, line = entry(monkeypatch, capsys, *words).splitlines()
    assert first.endswith("--num_gpus, --init_method")
    assert line.split("train.py ")[1].split() == (
        "--device_target auto --data_url obs://b/data --lr 0.1 --enable_modelarts".split()
    )


def test_on_eight_devices_one_process_starts_the_others(monkeypatch, capsys, tmp_path):
    from test_rank_table import server, table, write

    path = write(tmp_path, table(server("203.0.113.1", range(8))))
    job = {"RANK_SIZE": 8, "RANK_TABLE_FILE": path}
    others = entry(monkeypatch, capsys, "--data_url", "obs://b/data", ASCEND_DEVICE_ID=3, **job)
    assert "train.py" not in others
    shown = entry(monkeypatch, capsys, "--data_url", "obs://b/data", ASCEND_DEVICE_ID=0, **job)
    assert "msrun --worker_num=8 --local_worker_num=8" in shown
    assert f"--rank_table_file={path}" in shown and "--enable_modelarts" in shown


def test_an_unknown_value_is_still_refused(monkeypatch, capsys):
    options_, left_out = modelarts_entry.translated(["--data_url", "x", "--lr", "fast"])
    assert not left_out
    fails(lambda: experiment.load(options_), "lr", "'fast'")


def test_version(capsys):
    line = f"mindspore-domain-adaptation {model_utils.__version__}\n"
    assert experiment.load(["--version"]) is None and capsys.readouterr().out == line
    assert eval_onnx.load(["--version"]) == (None, None) and capsys.readouterr().out == line
    with pytest.raises(SystemExit):
        infer.arguments(["--version"])
    assert capsys.readouterr().out == line
    assert succeeded(command("train.py", "--version")) == line
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {model_utils.__version__}" in changes
    assert f"version: {model_utils.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
