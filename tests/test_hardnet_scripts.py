"""The launchers under the names and with the arguments that users of the published HarDNet know."""

import json
import os

import pytest
from helpers import ROOT, refused
from test_launch import dry, msrun_options, script
from test_rank_table import server, table

PUBLISHED, SMALL = "configs/hardnet85_imagenet.yaml", "configs/hardnet39ds_imagenette.yaml"


def settings(program):
    """(program, {key: value}) of a command's words."""
    name, *words = program
    return name, {key[2:]: value for key, value in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize(
    "name, arguments, target, config, wanted",
    [
        ("run_single_train", ["d", "3", "p.ckpt"], "Ascend", PUBLISHED, {"device_id": "3"}),
        ("run_single_train", ["d", "3"], "Ascend", PUBLISHED, {"device_id": "3"}),
        ("run_single_train", ["d"], "Ascend", PUBLISHED, {}),
        ("run_single_train_gpu", ["1", "d", "p.ckpt"], "GPU", PUBLISHED, {"device_id": "1"}),
        ("run_single_train_gpu", ["1", "d"], "GPU", PUBLISHED, {"device_id": "1"}),
        ("run_single_train_cpu", ["d", "p.ckpt"], "CPU", SMALL, {}),
        ("run_single_train_cpu", ["d"], "CPU", SMALL, {}),
    ],
)
def test_one_process(tmp_path, name, arguments, target, config, wanted):
    ((variables, command, _),) = dry(name, *arguments, "--lr_max", "0.2", cwd=tmp_path)
    program, given = settings(command[1:])
    assert (program, variables) == ("train.py", {})
    # Paths count from the folder the user is in, although the program runs in the repository.
    wanted = {**wanted, "device_target": target, "config": config, "dataset_path": str(tmp_path / "d")}
    if "p.ckpt" in arguments:
        wanted["pre_ckpt_path"] = str(tmp_path / "p.ckpt")
    assert given == {**wanted, "lr_max": "0.2"}


@pytest.mark.parametrize("words", [["d", "p.ckpt"], ["d"]])
def test_gpus_one_process_each(tmp_path, words):
    ((variables, command, _),) = dry("run_distribute_train_gpu", "2", "4,6", *words, cwd=tmp_path)
    assert variables["CUDA_VISIBLE_DEVICES"] == "4,6"
    given, program = msrun_options(command)
    assert given["worker_num"] == given["local_worker_num"] == "2"
    name, keys = settings(program)
    assert (name, keys["device_target"], keys["config"]) == ("train.py", "GPU", PUBLISHED)
    assert keys["dataset_path"] == str(tmp_path / "d")
    assert keys.get("pre_ckpt_path") == (str(tmp_path / "p.ckpt") if len(words) == 2 else None)


def test_cpu_processes_share_the_cores_and_take_another_configuration():
    ((variables, command, _),) = dry("run_distribute_train_cpu", "2", "data/x", "--config", PUBLISHED)
    assert variables["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    given, program = msrun_options(command)
    assert given["worker_num"] == "2"
    assert settings(program)[1]["config"] == PUBLISHED


@pytest.mark.parametrize("words", [["d", "p.ckpt"], ["d"]])
def test_ascend_devices_of_a_rank_table(tmp_path, words):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table(server("203.0.113.1", range(8)))))
    ((_, command, comment),) = dry("run_distribute_train", *words, "table.json", cwd=tmp_path)
    given, program = msrun_options(command)
    assert comment == "host 203.0.113.1: node_rank 0, ranks 0 to 7"
    assert (given["worker_num"], given["rank_table_file"]) == ("8", str(path))
    keys = settings(program)[1]
    assert (keys["device_target"], keys["config"]) == ("Ascend", PUBLISHED)
    assert keys["dataset_path"] == str(tmp_path / "d")
    assert keys.get("pre_ckpt_path") == (str(tmp_path / "p.ckpt") if len(words) == 2 else None)


def test_onnx_evaluation(tmp_path):
    ((variables, command, _),) = dry("run_onnx_eval_gpu", "d", "2", "m.onnx", cwd=tmp_path)
    wanted = {"dataset_path": str(tmp_path / "d"), "onnx_path": str(tmp_path / "m.onnx")}
    assert variables == {}
    assert settings(command[1:]) == ("eval_onnx.py", {"device_target": "GPU", "device_id": "2", **wanted})
    ((_, command, _),) = dry("run_onnx_eval_cpu", "d", "m.onnx", cwd=tmp_path)
    assert settings(command[1:]) == ("eval_onnx.py", {"device_target": "CPU", **wanted})


@pytest.mark.parametrize("more", [[], ["5"]])
def test_mindir_inference(tmp_path, more):
    ((_, command, _),) = dry("run_infer_310", "m.mindir", "d", *more, "--batch_size", "16", cwd=tmp_path)
    name, keys = settings(command[1:])
    assert name == "infer.py"
    assert keys["model_path"] == str(tmp_path / "m.mindir")
    assert keys["dataset_path"] == str(tmp_path / "d")
    assert (keys["device_target"], keys["batch_size"]) == ("auto", "16")
    assert keys["result_dir"] == "outputs/infer_310"
    assert keys.get("device_id") == (more[0] if more else None)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("run_single_train", []),
        ("run_single_train", ["a", "b", "c", "d"]),
        ("run_single_train_gpu", ["0"]),
        ("run_single_train_cpu", []),
        ("run_distribute_train", ["data"]),
        ("run_distribute_train_gpu", ["8", "0,1"]),
        ("run_distribute_train_cpu", ["2"]),
        ("run_onnx_eval_gpu", ["data", "m.onnx"]),
        ("run_onnx_eval_cpu", ["data"]),
        ("run_infer_310", ["m.mindir"]),
    ],
)
def test_wrong_number_of_arguments_shows_the_usage(name, arguments):
    refused(script(name, *arguments), f"{len(arguments)} arguments", f"usage: bash scripts/{name}.sh")


def test_as_many_devices_as_processes():
    refused(script("run_distribute_train_gpu", "3", "0,1", "data"), "N is 3", "names 2")


def test_every_script_says_in_its_comment_what_it_takes():
    for path in (ROOT / "scripts").glob("run_*train*.sh"):
        text = path.read_text(encoding="utf-8")
        assert f"bash scripts/{path.name}" in text
