"""The data sets: what they hand out, and what they say about files that are missing, damaged or hostile."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from web_server import Server, closed_port

from model_utils.errors import UserError
from src.data import available, idx, load, mnist

ROOT = Path(__file__).resolve().parents[1]
DATA_ROOT = os.environ.get("DATA_ROOT")


def real(name):
    """Folder of real data, or skip."""
    folder = Path(DATA_ROOT or "", name)
    if not DATA_ROOT or not folder.is_dir():
        pytest.skip(f"DATA_ROOT has no {name}")
    return folder


def digits(count, shape=(28, 28), seed=0):
    rng = np.random.RandomState(seed)
    return rng.randint(0, 256, (count, *shape)).astype(np.uint8), (np.arange(count) % 10).astype(np.uint8)


def idx_bytes(array):
    return idx.header(array.shape) + array.tobytes()


def write_mnist(root, compress=True, count=20):
    """Small MNIST files in `root`; returns {split: (images, labels)}."""
    root.mkdir(parents=True, exist_ok=True)
    made = {}
    for seed, (split, stems) in enumerate(mnist.FILES.items()):
        made[split] = digits(count, seed=seed)
        for stem, array in zip(stems, made[split], strict=True):
            data = idx_bytes(array)
            name = stem + ".gz" if compress else stem
            (root / name).write_bytes(gzip.compress(data) if compress else data)
    return made


# Lookup by name


def test_available_lists_exactly_the_data_sets():
    assert available() == ["demo_digits", "demo_photos", "mnist", "mnist_m", "svhn", "usps"]


@pytest.mark.parametrize("name", ["demo_digits", "DEMO-DIGITS", "demodigits"])
def test_names_are_forgiving(name):
    assert len(load(name, "", "test").labels) > 100


def test_mnistm_is_mnist_m(tmp_path):
    fails(lambda: load("mnistm", tmp_path, "train"), "MNIST-M", "create_mnistm.py")


def test_unknown_name_lists_data_sets_and_the_nearest():
    fails(lambda: load("mnsit", "", "train"), "mnsit", "did you mean 'mnist'", "svhn", "usps")


@pytest.mark.parametrize("name", ["idx", "loaders", "../mnist", "os", "", "split"])
def test_helper_modules_are_not_data_sets(name):
    fails(lambda: load(name, "", "train"), "does not exist", "mnist")


def test_unknown_split():
    fails(lambda: load("mnist", "", "val"), "val", "train", "test")


def test_importing_the_package_is_light():
    names = "src.data, src.data.mnist_m, src.data.usps, src.data.svhn, src.data.demo_photos"
    heavy = "{'sklearn', 'skimage', 'cv2', 'scipy', 'pooch', 'mindspore'}"
    code = f"import sys, {names}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# IDX


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)), st.booleans())
def test_idx_round_trip(array, compress):
    data = idx_bytes(array)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array")
        path.write_bytes(gzip.compress(data) if compress else data)
        back = np.array(idx.read(path, array.ndim))
    assert back.shape == array.shape and back.dtype == np.uint8
    np.testing.assert_array_equal(back, array)


def test_idx_header_is_the_published_one():
    # The first 16 bytes of train-images-idx3-ubyte, as the format's page gives them.
    assert idx.header((60000, 28, 28)).hex() == "00000803" + "0000ea60" + "0000001c" * 2


def test_plain_idx_is_a_read_only_memory_map(tmp_path):
    (tmp_path / "x").write_bytes(idx_bytes(digits(3)[0]))
    array = idx.read(tmp_path / "x", 3)
    assert isinstance(array, np.memmap) and not array.flags.writeable


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.booleans(), st.integers(1, 4))
def test_idx_of_any_bytes_is_read_or_refused(data, compress, ndim):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        path.write_bytes(gzip.compress(data)[: len(data) + 12] if compress else data)
        try:
            idx.read(path, ndim)
        except UserError as error:
            assert str(path) in str(error)


# MNIST


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
def test_mnist_returns_what_was_written(tmp_path, compress, folder):
    made = write_mnist(tmp_path / folder, compress)
    for split, (images, labels) in made.items():
        got = load("mnist", tmp_path, split)
        np.testing.assert_array_equal(got.images, images)
        np.testing.assert_array_equal(got.labels, labels)
        assert got.images.dtype == np.uint8 and got.labels.dtype == np.int32


def test_mnist_with_a_dot_in_the_name(tmp_path):
    write_mnist(tmp_path, compress=False)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(load("mnist", tmp_path, "test").labels) == 20


def change(path, how):
    """Rewrite the unpacked content of a gzipped file with `how`."""
    path.write_bytes(gzip.compress(how(gzip.decompress(path.read_bytes()))))


IMAGES, LABELS = (name + ".gz" for name in mnist.FILES["train"])
DAMAGE = {
    "wrong magic": (IMAGES, lambda d: b"\0\0\x0d\x03" + d[4:], "magic number 0x00000d03"),
    "labels for images": (IMAGES, lambda d: b"\0\0\x08\x01" + d[4:], "magic number 0x00000801"),
    "short": (IMAGES, lambda d: d[:-1], "truncated"),
    "long": (IMAGES, lambda d: d + b"\0", "more than"),
    "header only half": (IMAGES, lambda d: d[:9], "inside its header"),
    "wrong size": (IMAGES, lambda d: idx.header((20, 14, 56)) + d[16:], "14x56"),
    "absurd count": (IMAGES, lambda d: struct.pack(">4I", 2051, 2**32 - 1, 28, 28) + d[16:], "4294967295"),
    "count": (LABELS, lambda d: idx.header((19,)) + d[8:-1], "20 images but"),
    "label 10": (LABELS, lambda d: d[:-1] + b"\x0a", "label 10"),
    "empty": (IMAGES, lambda d: b"", "the file is empty"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_mnist_is_refused(tmp_path, case):
    write_mnist(tmp_path)
    name, how, part = DAMAGE[case]
    change(tmp_path / name, how)
    fails(lambda: load("mnist", tmp_path, "train"), name, part)


@pytest.mark.parametrize("keep", [5, 30, -4, -9])
def test_truncated_gzip_is_refused(tmp_path, keep):
    write_mnist(tmp_path)
    path = tmp_path / IMAGES
    path.write_bytes(path.read_bytes()[:keep])
    fails(lambda: load("mnist", tmp_path, "train"), path, "replace")


def test_gzip_with_a_wrong_checksum_is_refused(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / IMAGES
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(bytes(data))
    fails(lambda: load("mnist", tmp_path, "train"), path, "CRC")


def test_empty_idx_is_refused(tmp_path):
    write_mnist(tmp_path, count=0)
    fails(lambda: load("mnist", tmp_path, "train"), "no images")


@pytest.mark.parametrize("exists", [True, False])
def test_missing_mnist_names_both_remedies(tmp_path, exists):
    root = tmp_path if exists else tmp_path / "none"
    fails(lambda: load("mnist", root, "train"), IMAGES[:-3], root, "--download true", "source_image_root")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Small MNIST files standing for the published ones: {"/name.gz": bytes}, their MD5 put in place."""
    made = write_mnist(tmp_path / "published")
    files = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "published").iterdir()}
    sums = {name[1:-3]: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(mnist, "MD5", sums)
    return made, files


def test_download_goes_on_to_the_next_mirror(tmp_path, monkeypatch, published):
    made, files = published
    root = tmp_path / "root"
    with Server({name: b"tampered" for name in files}) as bad, Server({}) as empty, Server(files) as good:
        monkeypatch.setattr(mnist, "MIRRORS", (closed_port(), bad.url, empty.url, good.url))
        got = load("mnist", root, "train", download=True)
    np.testing.assert_array_equal(got.images, made["train"][0])
    assert sorted(path.name for path in root.iterdir()) == sorted([IMAGES, LABELS])


def test_failed_download_names_the_mirrors_and_leaves_nothing(tmp_path, monkeypatch, published):
    root = tmp_path / "root"
    with Server({name: b"tampered" for name in published[1]}) as bad, Server({}) as empty:
        mirrors = (closed_port(), bad.url, empty.url)
        monkeypatch.setattr(mnist, "MIRRORS", mirrors)
        fails(lambda: load("mnist", root, "train", download=True), *mirrors, "MD5", "HTTP 404")
    assert list(root.iterdir()) == []


def test_download_fetches_only_what_is_missing(tmp_path, monkeypatch, published):
    root = tmp_path / "root"
    write_mnist(root)
    (root / LABELS).unlink()
    kept = (root / IMAGES).read_bytes()
    with Server({f"/{LABELS}": published[1][f"/{LABELS}"]}) as mirror:
        monkeypatch.setattr(mnist, "MIRRORS", (mirror.url,))
        load("mnist", root, "train", download=True)
    assert (root / IMAGES).read_bytes() == kept


def test_real_mnist():
    train, test = (load("mnist", real("mnist"), split) for split in ("train", "test"))
    assert train.images.shape == (60000, 28, 28) and test.images.shape == (10000, 28, 28)
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
