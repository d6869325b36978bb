"""Pickled weights: right values from every format, and nothing run from hostile or damaged files."""

import contextlib
import pickle
import struct
import zipfile

import numpy as np
import pth_files as pth
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_utils.errors import UserError
from model_utils.restricted_pickle import load_numpy_pickle, load_torch

ARRAYS = {
    "weight": np.arange(24, dtype="f4").reshape(2, 3, 4),
    "double": np.array([[1.5, -2.0]]),
    "half": np.array([0.5, 1.5], "f2"),
    "count": np.array(7),
    "bytes": np.array([0, 255], "u1"),
    "empty": np.zeros((0, 3), "f4"),
}


def refused(action, *parts):
    with pytest.raises(UserError) as caught:
        action()
    for part in parts:
        assert str(part) in str(caught.value)


def write_npy(path, content, shape="()", version=1):
    """A `.npy` file of Python objects with a pickle of one's own."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header) + 1)
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + header + b"\n" + content)
    return path


def test_zip_format(tmp_path):
    loaded = load_torch(pth.write_state(tmp_path / "a.pth", ARRAYS))
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_legacy_format(tmp_path):
    arrays = {name: ARRAYS[name] for name in ("weight", "empty")}
    loaded = load_torch(pth.write_state(tmp_path / "a.pth", arrays, legacy=True))
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_strided_tensors_share_a_storage(tmp_path):
    content = {"0": np.arange(6, dtype="f4").tobytes()}
    items = {
        "transposed": pth.tensor("FloatStorage", "0", 6, 0, (3, 2), (1, 3)),
        "row": pth.tensor("FloatStorage", "0", 6, 3, (3,), (1,)),
    }
    loaded = load_torch(pth.write_zip(tmp_path / "a.pth", pth.mapping(items), content))
    np.testing.assert_array_equal(loaded["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(loaded["row"], [3, 4, 5])
    assert not loaded["row"].flags.writeable


def test_big_endian_storage(tmp_path):
    path = pth.write_zip(tmp_path / "a.pth", *pth.state({"w": np.array([1.0, 2.5], ">f4").view("<f4")}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    np.testing.assert_array_equal(load_torch(path)["w"], [1.0, 2.5])


def test_bfloat16_and_bool(tmp_path):
    items = {
        "b": pth.tensor("BFloat16Storage", "0", 2, 0, (2,), (1,)),
        "t": pth.tensor("BoolStorage", "1", 2, 0, (2,), (1,)),
    }
    upper = np.array([1.5, -3.0], "<f4").view("<u2")[1::2].tobytes()
    loaded = load_torch(pth.write_zip(tmp_path / "a.pth", pth.mapping(items), {"0": upper, "1": b"\0\1"}))
    np.testing.assert_array_equal(loaded["b"], np.array([1.5, -3.0], "f4"))
    assert loaded["t"].tolist() == [False, True]


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves(tmp_path, new):
    torch = pytest.importorskip("torch")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    saved = {
        "state_dict": layers.state_dict(),
        "epoch": 3,
        "one": layers[0].weight,
        "turned": torch.ones(2, 3).t(),
    }
    torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    loaded = load_torch(tmp_path / "a.pth")
    assert loaded["epoch"] == 3 and loaded["turned"].shape == (3, 2)
    np.testing.assert_array_equal(loaded["one"], layers[0].weight.detach().numpy())
    assert list(loaded["state_dict"]) == list(saved["state_dict"])
    for name, value in saved["state_dict"].items():
        np.testing.assert_array_equal(loaded["state_dict"][name], value.numpy())


# What a hostile pickle may call, each as the opcodes that would call it with the argument `touch FILE`.
TARGETS = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "getattr"),
    ("subprocess", "Popen"),
    ("numpy", "load"),
    ("numpy", "memmap"),
    ("torch", "load"),
    ("torch.FloatStorage", "__reduce__"),
    ("collections", "OrderedDict.fromkeys"),
    ("model_utils.restricted_pickle", "load_torch"),
]


def hostile(module, function, argument):
    """Five ways to call the same function."""
    call = pth.text(argument)
    names = pth.text(module) + pth.text(function) + b"\x93"
    return {
        "GLOBAL, REDUCE": pth.name(module, function) + b"(" + call + b"tR",
        "STACK_GLOBAL, REDUCE": names + b"(" + call + b"tR",
        "INST": b"(" + call + f"i{module}\n{function}\n".encode(),
        "OBJ": b"(" + pth.name(module, function) + call + b"o",
        "NEWOBJ": pth.name(module, function) + b"(" + call + b"t\x81",
    }


@pytest.mark.parametrize("module, function", TARGETS)
def test_hostile_pickles_run_nothing(tmp_path, module, function):
    marker = tmp_path / "ran"
    argument = f"touch {marker}" if "eval" not in function else f"open({str(marker)!r}, 'w')"
    for way, body in hostile(module, function, argument).items():
        for write in (pth.write_zip, pth.write_legacy):
            path = write(tmp_path / "a.pth", body)
            refused(lambda path=path: load_torch(path), path)
        path = write_npy(tmp_path / "a.npy", pth.program(body))
        refused(lambda path=path: load_numpy_pickle(path), path)
        assert not marker.exists(), way


def test_the_hostile_pickles_are_real(tmp_path):
    """Python's own reader runs them: else the test above could not fail."""
    for way, body in hostile("os", "system", f"touch {tmp_path / 'ran'}").items():
        if way in ("GLOBAL, REDUCE", "STACK_GLOBAL, REDUCE", "INST", "OBJ"):
            (tmp_path / "ran").unlink(missing_ok=True)
            pickle.loads(pth.program(body))
            assert (tmp_path / "ran").exists(), way


def tensor_of_four(offset=0, shape=(4,), stride=(1,), count=4, key="0"):
    return pth.mapping({"w": pth.tensor("FloatStorage", key, count, offset, shape, stride)})


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (5,)},
        {"offset": 1},
        {"offset": 10**30, "shape": (0,)},
        {"stride": (2,)},
        {"shape": (10**18,), "stride": (0,)},
        {"shape": (2, 2), "stride": (2**62, 1)},
        {"offset": -1},
        {"shape": (-1,)},
        {"stride": (-1,), "offset": 3},
        {"shape": (2, 2)},
        {"shape": (1,) * 40, "stride": (1,) * 40},
        {"count": 5},
        {"count": 10**15},
        {"key": "1"},
        {"key": "../version"},
    ],
    ids=str,
)
@pytest.mark.parametrize("write", [pth.write_zip, pth.write_legacy])
def test_tensors_stay_inside_their_storage(tmp_path, write, changes):
    content = {"0": np.arange(4, dtype="f4").tobytes()}
    assert load_torch(write(tmp_path / "good.pth", tensor_of_four(), content))["w"].tolist() == [0, 1, 2, 3]
    path = write(tmp_path / "a.pth", tensor_of_four(**changes), content)
    refused(lambda: load_torch(path), path)


BOMBS = {
    "length of bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "length of text": b"\x8d" + struct.pack("<Q", 2**62),
    "instructions": b"]" * 500_001,
    "deep key": b"}" + b")" + b"\x85" * 300_000 + b"Ns",
    "stack underflow": b"tRub",
    "unhashable key": b"}]Ns",
    "extension code": b"\x82\x01",
    "text persistent id": b"Pos\n",
    "storage of a text": b"(" + pth.text("storage") + pth.text("f") * 3 + b"K\x01tQ",
    "rebuild of a text": pth.name("torch._utils", "_rebuild_tensor_v2") + b"(" + pth.text("x") * 4 + b"tR",
    "attribute": pth.name("collections", "OrderedDict") + b")R}" + pth.text("clear") + b"Nsb",
    "extend a dict": b"}Na",
    "set in a list": b"]NNs",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(tmp_path, name):
    refused(lambda: load_torch(pth.write_zip(tmp_path / "a.pth", BOMBS[name])), "a.pth")
    refused(lambda: load_torch(pth.write_legacy(tmp_path / "a.pth", BOMBS[name])), "a.pth")
    refused(lambda: load_numpy_pickle(write_npy(tmp_path / "a.npy", pth.program(BOMBS[name]))), "a.npy")


def test_a_large_memo_index_takes_no_memory(tmp_path):
    """Python's own reader makes a table of 64 GB for it."""
    assert load_torch(pth.write_zip(tmp_path / "a.pth", b"Nr\xff\xff\xff\xff")) is None


def test_compressed_and_foreign_zip_files(tmp_path):
    content = {"0": bytes(10**6)}
    body = pth.mapping({"w": pth.tensor("FloatStorage", "0", 250_000, 0, (250_000,), (1,))})
    packed = pth.write_zip(tmp_path / "a.pth", body, content, zipfile.ZIP_DEFLATED)
    refused(lambda: load_torch(packed), "compressed")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("photo.png", b"")
    refused(lambda: load_torch(tmp_path / "b.pth"), "data.pkl")
    refused(lambda: load_torch(tmp_path / "none.pth"), "does not exist")
    refused(lambda: load_torch(tmp_path), "no file")


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files(tmp_path, legacy):
    arrays = {name: ARRAYS[name] for name in ("weight", "empty")}
    whole = pth.write_state(tmp_path / "a.pth", arrays, legacy).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused(lambda: load_torch(path), path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", ["zip", "legacy", "npy"])
def test_changed_bytes_load_or_are_refused(tmp_path, kind, data):
    path = tmp_path / "a"
    if kind == "npy":
        np.save(tmp_path / "a.npy", {"conv1": [np.ones((2, 3), "f4"), "x", 1]})
        path = tmp_path / "a.npy"
        load = load_numpy_pickle
    else:
        pth.write_state(path, {"w": ARRAYS["weight"]}, legacy=kind == "legacy")
        load = load_torch
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # both are right; any other exception is a bug
        load(path)


# numpy

WEIGHTS = {
    "conv1": [np.arange(6, dtype="f4").reshape(2, 3), np.zeros(3, "f4")],
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other order": np.array([1, 256], ">i4"),
    "scalar": np.float32(2.5),
    "rest": (1, 2.5, "text", b"bytes", None, True, [], {}),
}


def same(a, b):
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype.newbyteorder("=") == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_what_numpy_saves(tmp_path):
    np.save(tmp_path / "a.npy", WEIGHTS)
    assert same(WEIGHTS, load_numpy_pickle(tmp_path / "a.npy"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("version", [1, 2])
def test_pickle_protocols_and_header_versions(tmp_path, protocol, version):
    content = pickle.dumps(np.array(WEIGHTS, object), protocol)
    assert same(WEIGHTS, load_numpy_pickle(write_npy(tmp_path / "a.npy", content, version=version)))


def test_what_python_2_saved(tmp_path):
    """As numpy 1.x under Python 2 wrote bvlc_alexnet.npy: texts and values as byte strings."""

    def old(value):
        return b"T" + struct.pack("<i", len(value)) + value

    values = np.array([1.5, -2.0, 0.25, 3.0], "<f4")
    shape = b"K\x02K\x02\x86"
    dtype = pth.name("numpy", "dtype") + b"(" + old(b"f4") + b"K\x00K\x01tR(K\x03" + old(b"<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    make = pth.name("numpy.core.multiarray", "_reconstruct") + pth.name("numpy", "ndarray")
    array = (
        make
        + b"K\x00\x85"
        + old(b"b")
        + b"\x87R(K\x01"
        + shape
        + dtype
        + b"\x89"
        + old(values.tobytes())
        + b"tb"
    )
    objects = pth.name("numpy", "dtype") + b"(" + old(b"O8") + b"K\x00K\x01tR(K\x03" + old(b"|")
    objects += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    inner = b"}" + old(b"fc8") + b"]" + array + b"as"
    body = make + b"K\x00\x85" + old(b"b") + b"\x87R(K\x01)" + objects + b"\x89]" + inner + b"atb"
    path = write_npy(tmp_path / "a.npy", pth.program(body))
    np.testing.assert_array_equal(
        np.load(path, allow_pickle=True, encoding="latin1").item()["fc8"][0], values.reshape(2, 2)
    )
    loaded = load_numpy_pickle(path)
    assert list(loaded) == ["fc8"]
    np.testing.assert_array_equal(loaded["fc8"][0], values.reshape(2, 2))


def test_other_npy_files_are_refused(tmp_path):
    np.save(tmp_path / "plain.npy", np.ones(3))
    refused(lambda: load_numpy_pickle(tmp_path / "plain.npy"), "plain array")
    structures = np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")])
    np.save(tmp_path / "structures.npy", {"x": structures})
    refused(lambda: load_numpy_pickle(tmp_path / "structures.npy"), "structures.npy")
    content = pickle.dumps(np.array([1, None], object), 2)
    refused(lambda: load_numpy_pickle(write_npy(tmp_path / "shape.npy", content, "(3,)")), "shape.npy")
    (tmp_path / "text.npy").write_text("hello")
    refused(lambda: load_numpy_pickle(tmp_path / "text.npy"), "text.npy")


def test_truncated_npy(tmp_path):
    np.save(tmp_path / "a.npy", WEIGHTS)
    whole = (tmp_path / "a.npy").read_bytes()
    for length in range(0, len(whole), 11):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        refused(lambda: load_numpy_pickle(tmp_path / "cut.npy"), "cut.npy")
