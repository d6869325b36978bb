"""The choice of a device, on a double that refuses a second id as MindSpore does (tests/device_double.py)."""

import os

import pytest

from model_utils import device
from model_utils.errors import UserError
from src.setup import place
from tests import helpers
from tests.device_double import DeviceDouble, launched

VISIBLE = device.VISIBLE


def set_up(monkeypatch, machine, environment=None, **keys):
    """The Device that `setup` gives on this machine."""
    machine.install(monkeypatch)
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    settings = helpers.demo_config(**{"device_target": "auto", **keys})
    place = device.setup(settings, lambda *_: "CPU operator: none")
    machine.first_operator()
    return place


@pytest.mark.parametrize("target", ("GPU", "Ascend"))
@pytest.mark.parametrize("wanted", ("auto", "own"))
@pytest.mark.parametrize("number", (0, 1, 3))
def test_device_id_chooses_that_device(monkeypatch, target, wanted, number):
    machine = DeviceDouble(**{target: 4})
    keys = {"device_target": target if wanted == "own" else "auto", "device_id": number}
    place = set_up(monkeypatch, machine, **keys)
    assert (place.target, place.rank, place.world) == (target, 0, 1)
    assert machine.physical == (target, number)
    assert machine.calls == [(target, number)]
    assert place.notes[0].startswith(f"device: {target}")


@pytest.mark.parametrize("target", ("GPU", "Ascend"))
def test_device_id_counts_the_visible_devices(monkeypatch, target):
    machine = DeviceDouble(**{target: 8})
    set_up(monkeypatch, machine, {VISIBLE[target]: "6,4"}, device_target=target, device_id=1)
    assert machine.physical == (target, 4)


@pytest.mark.parametrize("target", ("GPU", "Ascend"))
@pytest.mark.parametrize(
    "visible, left",
    [("6,4", "devices 0 to 1"), ("", "no device"), ("1,-1,2", "0 to 0"), ("1,1,2", "0 to 0")],
)
def test_an_id_beyond_the_visible_devices_is_one_line(monkeypatch, target, visible, left):
    with pytest.raises(UserError, match=f"device_id: 2, but {VISIBLE[target]}={visible} leaves .*{left}"):
        set_up(monkeypatch, DeviceDouble(**{target: 8}), {VISIBLE[target]: visible}, device_id=2)


@pytest.mark.parametrize("target", ("GPU", "Ascend"))
@pytest.mark.parametrize("rank", (0, 3))
def test_each_process_of_msrun_has_its_own_device(monkeypatch, target, rank):
    machine = DeviceDouble(**{target: 8})
    several = {**launched(4, local_rank=rank), VISIBLE[target]: "4,5,6,7"}
    place = set_up(monkeypatch, machine, several, device_id=1)
    assert (place.target, place.rank, place.world) == (target, rank, 4)
    assert machine.physical == (target, 4 + rank)
    assert machine.calls == [(target, None)]
    assert "device_id 1 is not used: msrun gives each process its own" in place.notes


def test_auto_takes_ascend_then_gpu_then_cpu(monkeypatch):
    for devices, wanted in (({"GPU": 1, "Ascend": 1}, "Ascend"), ({"GPU": 1}, "GPU"), ({}, "CPU")):
        assert set_up(monkeypatch, DeviceDouble(**devices)).target == wanted


def test_the_compile_cache_is_turned_off_and_said(monkeypatch):
    """The cached graphs of MindSpore 2.10 compute with other weights, so that a second run fails."""
    place = set_up(monkeypatch, DeviceDouble(), {device.COMPILE_CACHE: "1"})
    assert os.environ[device.COMPILE_CACHE] == "0"
    assert [note for note in place.notes if note.startswith(f"{device.COMPILE_CACHE}: off")]
    place = set_up(monkeypatch, DeviceDouble(), {device.COMPILE_CACHE: "0"})
    assert not [note for note in place.notes if device.COMPILE_CACHE in note]


def test_a_driver_without_its_libraries_falls_to_the_cpu_and_says_so(monkeypatch):
    machine = DeviceDouble().install(monkeypatch)
    monkeypatch.setattr(device, "_has_driver", lambda target: target == "GPU")
    settings = helpers.demo_config(device_target="auto", device_id=2)
    place = device.setup(settings, lambda *_: "CPU operator: none")
    assert place.target == "CPU" and machine.calls == [("GPU", 2), ("CPU", None)]
    assert place.notes[0] == "GPU is not used: The device target GPU is not available: no driver or library"
    assert "device_id 2 is not used: there is one CPU" in place.notes
    with pytest.raises(UserError, match="device_target: GPU was asked for, .* no driver or library"):
        device.setup(settings.replace(device_target="GPU"), None)


def test_the_double_refuses_what_mindspore_refuses(monkeypatch):
    machine = DeviceDouble(GPU=4).install(monkeypatch)
    machine.set_device("GPU", 1)
    machine.set_device("GPU", 1)
    for other in (("GPU", 2), ("GPU",), ("CPU",)):
        with pytest.raises(RuntimeError, match="can not be modified"):
            machine.set_device(*other)
    with pytest.raises(RuntimeError, match="MS_WORKER_NUM"):
        machine.init("nccl")
    with pytest.raises(RuntimeError, match="backend_name"):
        machine.init("hccl")
    with pytest.raises(RuntimeError, match="not inited"):
        machine.get_rank()
    fresh = DeviceDouble(GPU=4)
    fresh.running = True
    with pytest.raises(RuntimeError, match="has been initialized"):
        fresh.set_device("GPU", 1)


def test_mindspore_itself_refuses_a_second_device():
    """What the double imitates, on the one device that every machine has."""
    import mindspore as ms

    with pytest.raises((RuntimeError, ValueError)):
        ms.set_device("CPU", 1)


@pytest.mark.parametrize(
    "changes, several, line",
    [
        ({}, False, "compiled"),
        ({"sync_bn": True}, False, "compiled"),
        ({"sync_bn": True}, True, "CPU operator: plain MindSpore operators (sync_bn)"),
        ({"amp_level": "O2"}, False, "CPU operator: plain MindSpore operators (amp_level O2)"),
        ({"cpu_operator": False}, False, "CPU operator: plain MindSpore operators (cpu_operator is false)"),
    ],
)
def test_plain_operators_get_the_setting_that_makes_their_convolution_fast(
    monkeypatch, changes, several, line
):
    """Without it, float16 convolutions took a hundred times as long on AVX-512 processors."""
    tuned = []
    monkeypatch.setattr(place.ops, "prepare", lambda: "compiled")
    monkeypatch.setattr(place.ops, "tune_plain", lambda: tuned.append(True))
    config = helpers.tiny_config("dann", **changes)
    assert place._prepare_cpu(config, several) == line
    assert bool(tuned) == (line != "compiled")
