"""USPS and SVHN: what is handed out, and what is said about files that are missing, damaged or hostile."""

import bz2
import functools
import gzip
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from test_data import real

from model_utils.errors import UserError
from src.data import load, usps

# USPS


def usps_values(count, seed=0):
    """(N, 256) values in -1..1 on a grid that survives text, the extremes among them; labels 0..9."""
    values = np.random.RandomState(seed).randint(-1000, 1001, (count, 256)) / 1000
    values[:, 0], values[:, 255] = -1, 1
    return values, np.arange(count) % 10


def libsvm_text(values, labels, sparse=False):
    lines = []
    for row, label in zip(values, labels, strict=True):
        pairs = [f"{i}:{v:g}" for i, v in enumerate(row, 1) if v or not sparse]
        lines.append(f"{label + 1} {' '.join(pairs)} \n")
    return "".join(lines).encode()


def usps_expected(values):
    return np.rint((values + 1) / 2 * 255).reshape(-1, 16, 16)


@pytest.mark.parametrize("form", ["usps", "usps.bz2", "sparse", "zip.train", "zip.train.gz"])
def test_usps_forms_agree(tmp_path, form):
    values, labels = usps_values(30)
    if form.startswith("zip"):
        rows = zip(values, labels, strict=True)
        data = "".join(f"{label}.0 {' '.join(f'{v:g}' for v in row)} \n" for row, label in rows).encode()
        data = gzip.compress(data) if form.endswith(".gz") else data
    else:
        values[:, 7] = 0  # what the sparse form leaves out
        data = libsvm_text(values, labels, sparse=form == "sparse")
        data = bz2.compress(data) if form.endswith(".bz2") else data
    (tmp_path / ("usps" if form == "sparse" else form)).write_bytes(data)
    got = load("usps", tmp_path, "train")
    np.testing.assert_array_equal(got.labels, labels)
    assert got.images.shape == (30, 16, 16) and got.images.dtype == np.uint8
    assert np.abs(got.images - usps_expected(values)).max() <= 1


def test_usps_has_the_value_range_of_mnist(tmp_path):
    values, labels = usps_values(10)
    values[:5], values[5:] = -1, 1
    (tmp_path / "usps").write_bytes(libsvm_text(values, labels))
    images = load("usps", tmp_path, "train").images
    assert np.all(images[:5] == 0) and np.all(images[5:] == 255)


def on_line_two(change_line):
    """libsvm text of three lines, the second changed."""
    lines = libsvm_text(*usps_values(3)).decode().splitlines()
    lines[1] = change_line(lines[1])
    return "\n".join(lines).encode()


USPS_BAD = {
    "word": (on_line_two(lambda s: s.replace(" 5:", " five:")), "line 2"),
    "value": (on_line_two(lambda s: s + "x"), "line 2"),
    "index 257": (on_line_two(lambda s: s.replace(" 256:", " 257:")), "line 2"),
    "index 0": (on_line_two(lambda s: s.replace(" 1:", " 0:")), "line 2"),
    "no colon": (on_line_two(lambda s: s.replace(" 9:", " 9 ")), "line 2"),
    "falling": (on_line_two(lambda s: s.replace(" 9:", " 8:")), "line 2"),
    "label": (on_line_two(lambda s: "a" + s), "line 2"),
    "fraction": (on_line_two(lambda s: "2.5" + s[1:]), "line 2"),
    "label 11": (on_line_two(lambda s: "11" + s[1:]), "label 10"),
    "label 0": (on_line_two(lambda s: "0" + s[1:]), "label -1"),
    "out of range": (on_line_two(lambda s: s.replace("256:1", "256:255")), "sample 2"),
    "nan": (on_line_two(lambda s: s.replace("256:1", "256:nan")), "sample 2"),
    "empty": (b"", "no samples"),
    "binary": (bytes(range(256)), "line"),
    "cut bz2": (bz2.compress(libsvm_text(*usps_values(3)))[:-30], "truncated"),
    "bad bz2": (b"BZh9" + b"\0" * 50, "damaged"),
}


@pytest.mark.parametrize("case", USPS_BAD)
def test_bad_usps_is_refused(tmp_path, case):
    data, part = USPS_BAD[case]
    (tmp_path / "usps").write_bytes(data)
    fails(lambda: load("usps", tmp_path, "train"), tmp_path / "usps", part)


def test_short_line_of_zip_code_text(tmp_path):
    (tmp_path / "zip.train").write_text("3 " + "0 " * 256 + "\n4 " + "0 " * 255)
    fails(lambda: load("usps", tmp_path, "train"), "zip.train, line 2", "256")


def test_missing_usps(tmp_path):
    fails(lambda: load("usps", tmp_path, "test"), tmp_path, "usps.t", "zip.test")


def test_usps_in_hdf5_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "usps.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    fails(lambda: load("usps", tmp_path, "train"), "pip install h5py")


def test_usps_in_hdf5(tmp_path, monkeypatch):
    """With a stand-in for h5py.File, since h5py is not a requirement: what we do with what it returns."""
    values, labels = usps_values(8)
    content = {"train": {"data": (values + 1) / 2, "target": labels}}

    class File(dict):
        def __init__(self, path, mode):
            super().__init__(content)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    (tmp_path / "usps.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=File))
    got = load("usps", tmp_path, "train")
    np.testing.assert_array_equal(got.labels, labels)
    assert np.abs(got.images - usps_expected(values)).max() <= 1
    fails(lambda: load("usps", tmp_path, "test"), "usps.h5")
    content["train"]["data"] = values[:, :100]
    fails(lambda: load("usps", tmp_path, "train"), "(8, 100)")


def test_real_usps():
    train, test = (load("usps", real("usps"), split) for split in ("train", "test"))
    assert len(train.labels) == 7291 and len(test.labels) == 2007
    # Digit counts of the published set, 0 to 9.
    assert np.bincount(test.labels).tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    assert train.images.shape[1:] == (16, 16) and train.images.min() == 0 and train.images.max() == 255
    # The background is the most frequent value, and it is MNIST's.
    assert np.bincount(train.images.ravel()).argmax() == 0


def test_real_usps_text_is_parsed_alike_by_both_parsers():
    path = real("usps") / "usps.t.bz2"
    text = b"\n".join(bz2.decompress(path.read_bytes()).split(b"\n")[:300])
    fast = usps._table(text.replace(b":", b" "), 513)
    labels, values = usps._parse_lines(text, path, usps._parse_libsvm)
    np.testing.assert_array_equal(fast[:, 0], labels)
    np.testing.assert_array_equal(fast[:, 2::2], values)


# SVHN


def svhn_arrays(count=12):
    images = np.random.RandomState(0).randint(0, 256, (32, 32, 3, count)).astype(np.uint8)
    return images, (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]


@pytest.mark.parametrize("compress", [True, False])
def test_svhn(tmp_path, compress):
    images, labels = svhn_arrays()
    savemat(tmp_path / "test_32x32.mat", {"X": images, "y": labels}, do_compression=compress)
    got = load("svhn", tmp_path, "test")
    assert got.images.shape == (12, 32, 32, 3) and got.images.dtype == np.uint8
    for number in range(12):
        np.testing.assert_array_equal(got.images[number], images[..., number])
    assert got.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


X, Y = svhn_arrays()
SVHN_BAD = {
    "no X": ({"y": Y}, "'X'"),
    "no y": ({"X": X}, "'y'"),
    "nothing": ({}, "'X'"),
    "shape": ({"X": X[:28], "y": Y}, "(28, 32, 3, 12)"),
    "grey": ({"X": X[:, :, 0], "y": Y}, "(32, 32, 12)"),
    "count": ({"X": X, "y": Y[:11]}, "(11, 1)"),
    "floats": ({"X": X.astype(float), "y": Y}, "float64"),
    "label 11": ({"X": X, "y": Y + 1}, "label 11"),
    "label 0": ({"X": X, "y": Y - 1}, "label -1"),
}


@pytest.mark.parametrize("case", SVHN_BAD)
def test_bad_svhn_is_refused(tmp_path, case):
    content, part = SVHN_BAD[case]
    savemat(tmp_path / "train_32x32.mat", content)
    fails(lambda: load("svhn", tmp_path, "train"), "train_32x32.mat", part)


@functools.lru_cache
def svhn_bytes():
    with tempfile.TemporaryDirectory() as folder:
        savemat(Path(folder, "x.mat"), {"X": X, "y": Y}, do_compression=True)
        return Path(folder, "x.mat").read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 40000))
def test_damaged_svhn_is_read_or_refused(position, value, keep):
    data = bytearray(svhn_bytes()[: max(1, keep)])
    data[position % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train_32x32.mat").write_bytes(bytes(data))
        try:
            load("svhn", folder, "train")
        except UserError as error:
            assert "train_32x32.mat" in str(error)


def test_missing_svhn(tmp_path):
    fails(lambda: load("svhn", tmp_path, "test"), "test_32x32.mat", tmp_path)
