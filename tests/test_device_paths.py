"""Whole programs on the double of a GPU and an Ascend (tests/device_double.py); none needs a CPU.

What runs here shows that the code asks the device layer for what it has, in the right order. It does not show
that a real device computes the same.
"""

import json
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

import export
import infer
import train
from model_utils import checkpoint, device, launch
from src.exported import exporting, model_files
from src.networks import heads
from src.ops import accelerate
from src.train_cells import method_names
from tests import helpers
from tests.device_double import BACKENDS, DeviceDouble, SchedulerEnds, launched, rounded
from tests.helpers import fails
from tests.test_rank_table import server, table

TARGETS = ("GPU", "Ascend")
DEVICES = 4


def machine_with(target, monkeypatch, **environment):
    machine = DeviceDouble(**{target: DEVICES}).install(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return machine


def set_up(target, exact=False, **keys):
    settings = helpers.demo_config(device_target=target, **keys)
    return device.setup(settings, lambda *_: pytest.fail("CPU operators off the CPU"), exact)


# The double itself


@pytest.mark.parametrize("target", TARGETS)
def test_the_double_refuses_cpu_code_and_rounds_convolutions(monkeypatch, target):
    machine = machine_with(target, monkeypatch)
    convolution = nn.Conv2d(1, 1, 1, weight_init="ones")
    x = np.full((1, 1, 1, 1), 1 + 2.0**-12 + 2.0**-20, np.float32)
    assert float(convolution(ms.Tensor(x)).asnumpy().ravel()[0]) == x.ravel()[0]
    machine.set_device(target)
    assert float(convolution(ms.Tensor(x)).asnumpy().ravel()[0]) == 1.0 == rounded(x).ravel()[0]
    with pytest.raises(RuntimeError, match="compiled for a CPU"):
        ops.Custom("lib.so:f", None, None, "aot")
    machine.rounds = False
    assert float(convolution(ms.Tensor(x)).asnumpy().ravel()[0]) == x.ravel()[0]


def test_the_double_refuses_init_after_a_tensor_and_keeps_the_scheduler(monkeypatch):
    machine = machine_with("Ascend", monkeypatch, **launched(2))
    machine.set_device("Ascend")
    monkeypatch.setattr(heads, "made_too_early", ms.Tensor(1.0), raising=False)
    with pytest.raises(RuntimeError, match="before the definition of any Tensor: src.networks.heads"):
        machine.init("hccl")
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with pytest.raises(SchedulerEnds):
        machine.init("hccl")


# model_utils/device.py


@pytest.mark.parametrize("target", TARGETS)
def test_a_number_that_the_machine_lacks_is_one_line(monkeypatch, target):
    machine_with(target, monkeypatch)
    fails(
        lambda: set_up(target, device_id=DEVICES), f"device_id: {target} {DEVICES} can't be used", "counted"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_process_without_a_device_of_its_own_is_one_line(monkeypatch, target):
    machine_with(target, monkeypatch, **launched(2, local_rank=1), **{device.VISIBLE[target]: "3"})
    fails(lambda: set_up(target), "process 1 of this host needs device 1", f"{device.VISIBLE[target]}=3")


@pytest.mark.parametrize("target", TARGETS)
def test_more_processes_than_devices_is_one_line(monkeypatch, target):
    machine_with(target, monkeypatch, **launched(8, local_rank=5))
    fails(lambda: set_up(target), f"over {BACKENDS[target].upper()}", "invalid device ordinal")


def test_gpus_may_be_named_by_their_long_names(monkeypatch):
    machine = machine_with("GPU", monkeypatch, CUDA_VISIBLE_DEVICES="GPU-2,GPU-0")
    assert set_up("GPU", device_id=1).target == "GPU" and machine.physical == ("GPU", 0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_scheduler_takes_no_device_and_makes_no_operators(monkeypatch, target):
    machine = machine_with(target, monkeypatch, **launched(4, role="MS_SCHED"))
    assert device.is_scheduler()
    with pytest.raises(SchedulerEnds):
        set_up(target)
    assert not machine.running and not machine.joined


@pytest.mark.parametrize("target", TARGETS)
def test_a_second_set_up_of_the_same_device_is_allowed_and_of_another_is_one_line(monkeypatch, target):
    machine_with(target, monkeypatch)
    assert set_up(target, device_id=1).target == set_up(target, device_id=1).target == target
    fails(lambda: set_up(target, device_id=2), "device_target", "can not be modified")


@pytest.mark.parametrize("target", TARGETS)
def test_only_an_exact_device_keeps_float32(monkeypatch, target):
    machine = machine_with(target, monkeypatch)
    set_up(target)
    assert machine.rounds
    machine = machine_with(target, monkeypatch)
    set_up(target, exact=True)
    assert not machine.rounds


# The launcher: what it hands to msrun leads each process to the device that was asked for.


def planned(script, *arguments):
    """(jobs of all hosts, as launch.plan makes them) of the script's arguments."""
    return launch.plan(*script, *arguments)[0]


@pytest.mark.parametrize("ids", ("0,1,2,3", "3,1"))
def test_gpus_of_the_launcher(monkeypatch, ids):
    words = ["--program", "train.py", "--target", "GPU", "--form", "N=@processes DEVICE_IDS=@devices", "--"]
    wanted = [int(word) for word in ids.split(",")]
    script, arguments = launch._read_script([*words, str(len(wanted)), ids])
    (job,) = planned((script,), *launch._split(script, arguments), {})
    assert len(job.ranks) == len(wanted)
    for rank in job.ranks:
        machine = machine_with("GPU", monkeypatch, **job.environment, **launched(len(wanted), rank))
        place = set_up("GPU")
        assert (place.rank, place.world, machine.physical) == (rank, len(wanted), ("GPU", wanted[rank]))


def test_devices_of_a_rank_table(monkeypatch, tmp_path):
    path = tmp_path / "ranks.json"
    hosts = server("10.0.0.1", (0, 1), (2, 3)), server("10.0.0.2", (2, 3), (0, 1))
    path.write_text(json.dumps(table(*hosts)))
    words = ["--program", "train.py", "--target", "Ascend", "--form", "RANK_TABLE_FILE=@rank_table", "--"]
    script, arguments = launch._read_script([*words, str(path)])
    jobs = planned((script,), *launch._split(script, arguments), {})
    found = []
    for job in jobs:
        for local, rank in enumerate(job.ranks):
            settings = {**job.environment, **launched(4, local, rank)}
            machine = machine_with("Ascend", monkeypatch, **settings)
            place = set_up("Ascend")
            found.append((place.rank, place.world, machine.physical[1]))
    assert found == [(0, 4, 2), (1, 4, 3), (2, 4, 0), (3, 4, 1)]


# Programs


def custom_cells(network):
    """Names of cells that belong to the compiled CPU operators."""
    return [name for name, cell in network.cells_and_names() if type(cell).__module__.startswith("src.ops._")]


@pytest.mark.parametrize("target", TARGETS)
def test_no_network_gets_cpu_operators(monkeypatch, target):
    machine_with(target, monkeypatch).set_device(target)
    network = nn.SequentialCell(nn.Conv2d(3, 4, 3, pad_mode="valid"), nn.BatchNorm2d(4), nn.ReLU())
    assert accelerate(network) == accelerate(network, second_order=True) == 0
    assert custom_cells(network) == []


@pytest.mark.parametrize(
    "method",
    [m if m == "supervised" else pytest.param(m, marks=pytest.mark.thorough) for m in method_names()],
)
def test_methods_train_on_it(monkeypatch, method):
    machine_with("Ascend", monkeypatch)
    settings = helpers.tiny_config(method, device_target="Ascend")
    place = device.setup(settings, lambda *_: pytest.fail("CPU operators off the CPU"))
    cell = helpers.build(settings, place)
    logged = helpers.train(cell, 0, 2)
    assert all(np.isfinite(value) for _, scalars in logged for value in scalars.values())
    assert not any(custom_cells(part) for part in cell.state().values())


def call(program, monkeypatch, *arguments, **keys):
    monkeypatch.setattr(sys, "argv", [program.__name__, *arguments, *helpers.options(**keys)])
    assert program.main() in (0, None)


KEYS = {**helpers.DEMO, "network": "lenet", "steps_per_epoch": 1, "n_epoch": 1, "validation_size": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, place):
    """A run's folder with the network that a run on a GPU would leave, untrained."""
    folder = tmp_path_factory.mktemp("trained")
    settings = helpers.demo_config(**{**KEYS, "device_target": "GPU", "output_dir": folder})
    network = helpers.build_network(settings, place)
    meta = {"format": checkpoint.FORMAT, "config": settings.as_dict(), "classes": list("0123456789")}
    checkpoint.save_cell(network, folder / "network.ckpt", meta)
    return folder


@pytest.mark.thorough  # the test process has MindSpore's own convolutions at their slowest
def test_train_runs_on_the_device_asked_for(monkeypatch, tmp_path):
    machine = machine_with("GPU", monkeypatch)
    keys = {**KEYS, "device_target": "auto", "device_id": 2, "eval_interval": 10**9, "tensorboard": False}
    call(train, monkeypatch, **keys, output_dir=tmp_path)
    assert machine.physical == ("GPU", 2) and machine.running
    assert json.loads((tmp_path / "result.json").read_text())["device"] == "GPU"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("file_format", ("MINDIR", "ONNX"))
def test_export_compares_at_full_precision(trained, monkeypatch, tmp_path, target, file_format):
    machine = machine_with(target, monkeypatch)
    keys = {"output_dir": trained, "file_name": tmp_path / "net", "file_format": file_format}
    call(export, monkeypatch, **keys, device_target=target)
    assert (tmp_path / f"net.{file_format.lower()}").is_file() and not machine.rounds


def test_a_rounding_device_would_not_agree_with_onnxruntime(monkeypatch, tmp_path):
    """Why export.py asks for an exact device: logits of a usual size differ in the third digit otherwise."""
    machine = machine_with("GPU", monkeypatch)
    machine.set_device("GPU")
    images = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)
    network = nn.SequentialCell(nn.Conv2d(3, 5, 8, pad_mode="valid", weight_init="ones"), nn.Flatten())
    with pytest.raises(RuntimeError, match="logits differ"):
        exporting.export(network, images, tmp_path / "net", "ONNX", device_target="GPU")
    machine.rounds = False
    assert exporting.export(network, images, tmp_path / "net", "ONNX", device_target="GPU")[1] < 1e-4


def test_export_writes_air_on_ascend_alone(trained, monkeypatch, tmp_path):
    machine_with("Ascend", monkeypatch)
    keys = {"output_dir": trained, "file_name": tmp_path / "net", "file_format": "AIR"}
    call(export, monkeypatch, **keys, device_target="Ascend", batch_size=3)
    assert (tmp_path / "net.air").read_text() == "AIR of [(3, 1, 28, 28)]"
    about = json.loads(exporting.sidecar(tmp_path / "net.air").read_text())
    assert about["method"] == "dann" and len(about["class_names"]) == 10
    machine_with("GPU", monkeypatch)
    fails(lambda: call(export, monkeypatch, **keys, device_target="GPU"), "AIR is written by Ascend only")


@pytest.mark.parametrize("target", TARGETS)
def test_infer_runs_a_checkpoint_and_a_mindir_there(trained, monkeypatch, tmp_path, target, capsys):
    import cv2

    picture = str(tmp_path / "a.png")
    cv2.imwrite(picture, np.full((40, 40, 3), 90, np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        machine_with("Ascend", patch)
        call(export, patch, output_dir=trained, file_name=tmp_path / "net", device_target="Ascend")
    for model in (trained / "network.ckpt", tmp_path / "net.mindir"):
        machine_with(target, monkeypatch)
        call(infer, monkeypatch, picture, "--json", model=model, device_target=target)
        shown = capsys.readouterr()
        assert json.loads(shown.out.splitlines()[-1])["top"] and f", {target}" in shown.err


def test_onnx_on_ascend_is_refused_with_the_mend(monkeypatch):
    fails(lambda: model_files.onnx_providers("Ascend"), "use a MINDIR or the checkpoint")
