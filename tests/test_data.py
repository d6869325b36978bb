"""The data sets: what they hand out, and what they say about files that are missing, damaged or hostile."""

import bz2
import functools
import gzip
import hashlib
import os
import random
import struct
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.io import savemat
from web_server import Server, closed_port

from model_utils.errors import UserError
from src.data import available, blend, demo_digits, demo_photos, idx, load, mnist, usps

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


# MNIST-M


def published_mnist_m(folder, count=12, size=32):
    """The published layout with random images; returns them as uint8 RGB and their labels."""
    images, labels = digits(count, (size, size, 3), seed=3)
    (folder / "mnist_m_train").mkdir(parents=True)
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / "mnist_m_train" / f"{number:08d}.png"), image[..., ::-1])
    lines = "".join(f"{number:08d}.png {label}\n" for number, label in enumerate(labels))
    (folder / "mnist_m_train_labels.txt").write_text(lines)
    return images, labels


@pytest.mark.parametrize("given_root", [".", "mnist_m", "mnist_m/mnist_m_train"])
def test_published_mnist_m(tmp_path, given_root):
    images, labels = published_mnist_m(tmp_path / "mnist_m")
    got = load("mnist_m", tmp_path / given_root, "train")
    assert got.images.shape == (12, 28, 28, 3) and got.images.dtype == np.uint8
    np.testing.assert_array_equal(got.labels, labels)
    np.testing.assert_array_equal(got.images, images[:, 2:30, 2:30])


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_published_mnist_m_has_the_geometry_of_create_mnistm(split):
    """Inverting MNIST's digit back, as create_mnistm.py inverts it, leaves a smooth photograph."""
    images = load("mnist_m", real("mnist_m_published"), split).images[:100]
    masks = load("mnist", real("mnist"), split).images[:100] > 0

    def roughness(moved):
        photos = blend.invert(images.copy(), np.roll(masks, moved, (1, 2))).astype(int)
        return sum(np.abs(np.diff(photos, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))

    moves = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    best = np.argmin([roughness(move) for move in moves], 0)
    assert (best == moves.index((0, 0))).mean() > 0.95


def test_published_mnist_m_of_28_pixels_is_left_alone(tmp_path):
    images, _ = published_mnist_m(tmp_path, size=28)
    np.testing.assert_array_equal(load("mnist_m", tmp_path, "train").images, images)


def spoil(name, content):
    def act(folder):
        path = folder / name
        path.write_bytes(content(path.read_bytes()))

    return act


FIRST = "mnist_m_train/00000003.png"
TEXT = "mnist_m_train_labels.txt"
SPOILED = {
    "missing image": (lambda f: (f / FIRST).unlink(), ("00000003.png", "No such file")),
    "truncated image": (spoil(FIRST, lambda d: d[:-20]), ("00000003.png", "truncated")),
    "damaged image": (spoil(FIRST, lambda d: d[:100] + b"?" + d[101:]), ("00000003.png", "checksum")),
    "not an image": (spoil(FIRST, lambda d: b"GIF89a"), ("00000003.png", "neither")),
    "bad line": (spoil(TEXT, lambda d: d + b"00000001.png\n"), (TEXT, "line 13")),
    "label 10": (spoil(TEXT, lambda d: d + b"00000001.png 10\n"), (TEXT, "line 13")),
    "climbing": (spoil(TEXT, lambda d: b"../../x.png 1\n" + d), (TEXT, "line 1:")),
    "binary labels": (spoil(TEXT, lambda d: b"\xfd\0"), (TEXT, "no UTF-8 text")),
    "empty labels": (spoil(TEXT, lambda d: b""), (TEXT, "no images")),
    "no labels": (lambda f: (f / TEXT).unlink(), (TEXT, "not found")),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_published_mnist_m_is_refused(tmp_path, case):
    published_mnist_m(tmp_path)
    act, parts = SPOILED[case]
    act(tmp_path)
    fails(lambda: load("mnist_m", tmp_path, "train"), *parts)


def test_published_mnist_m_of_another_size_is_refused(tmp_path):
    published_mnist_m(tmp_path, size=40)
    fails(lambda: load("mnist_m", tmp_path, "train"), "40x40", "32x32")


def test_half_of_our_mnist_m_is_refused(tmp_path):
    (tmp_path / "mnist_m-train-images-idx4-ubyte").write_bytes(idx_bytes(digits(2, (28, 28, 3))[0]))
    fails(lambda: load("mnist_m", tmp_path, "train"), "mnist_m-train-labels-idx1-ubyte", "create_mnistm.py")


def test_empty_mnist_m_folder(tmp_path):
    fails(lambda: load("mnist_m", tmp_path, "train"), tmp_path, "python create_mnistm.py")


# Blending


def slow_crops(photos, seed, stream, count):
    """The draws of src/data/blend.py from Python's own Mersenne Twister, one pixel at a time."""
    twister = random.Random(seed + (stream << 32))
    out = np.zeros((count, 28, 28, 3), int)
    for image in out:
        first, second, third = twister.random(), twister.random(), twister.random()
        photo = photos[int(first * len(photos))]
        top = int(second * (len(photo) - 27))
        left = int(third * (len(photo[0]) - 27))
        for row in range(28):
            for column in range(28):
                image[row, column] = photo[top + row][left + column]
    return out


@pytest.mark.parametrize("seed", [1, 42, 2**32 - 1])
def test_blending_against_a_slow_oracle(seed):
    rng = np.random.RandomState(5)
    photos = [rng.randint(0, 256, size).astype(np.uint8) for size in ((28, 28, 3), (40, 61, 3), (33, 29, 3))]
    masks = rng.rand(25, 28, 28) > 0.5
    got = blend.invert(blend.random_crops(photos, blend.uniforms(seed, 2, 25)), masks)
    expected = np.abs(slow_crops(photos, seed, 2, 25) - 255 * masks[..., None])
    np.testing.assert_array_equal(got, expected)


def test_the_random_stream_is_pinned():
    # Printed by random.Random(42 + 2**32): NumPy's and Python's Mersenne Twister must go on agreeing.
    expected = [0.5649283078895424, 0.38389450975701744, 0.17509343463426008]
    assert blend.uniforms(42, 1, 1)[0].tolist() == expected


def test_every_position_of_a_photo_can_be_drawn():
    photo = np.arange(30 * 29 * 3, dtype=np.uint32).reshape(30, 29, 3).astype(np.uint8)
    crops = blend.random_crops([photo], blend.uniforms(0, 1, 300))
    assert len({crop.tobytes() for crop in crops}) == 3 * 2


def test_contact_sheet_places_digits_in_their_rows():
    labels = np.array([3, 3, 7])
    images = np.stack([np.full((28, 28, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = blend.contact_sheet(images, labels)
    assert sheet.shape == (280, 280, 3)
    assert [sheet[3 * 28, 0, 0], sheet[3 * 28, 28, 0], sheet[7 * 28, 0, 0]] == [10, 20, 30]
    assert sheet.astype(int).sum() == 28 * 28 * 3 * 60


# Demo data


def test_demo_digit_groups_are_disjoint_and_complete():
    groups = [demo_digits.SOURCE_TRAIN, demo_digits.TARGET_TRAIN, demo_digits.TEST]
    assert sorted(sum(groups, ())) == list(range(demo_digits.GROUP_SIZE))
    assert sum(len(demo_digits.digits(group).labels) for group in groups) == 1797


def test_demo_digits_look_like_mnist():
    for split in ("train", "test"):
        images, labels = load("demo_digits", "", split)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        assert images.min() == 0 and images.max() == 255
        assert not images[:, :4].any() and not images[:, :, -4:].any()
        assert np.bincount(labels, minlength=10).min() >= 25


def test_demo_test_digits_are_in_no_training_split():
    def pictures(groups):
        return {image.tobytes() for image in demo_digits.digits(groups).images}

    source, target, test = map(
        pictures, (demo_digits.SOURCE_TRAIN, demo_digits.TARGET_TRAIN, demo_digits.TEST)
    )
    assert not source & test and not target & test and not source & target


def test_demo_photos_splits_share_no_photograph():
    train, test = map(set, (demo_photos.PHOTOS["train"], demo_photos.PHOTOS["test"]))
    assert not train & test
    # The stereo pair is one scene.
    assert {name for name in train | test if "motorcycle" in name} <= train


def test_demo_photos_are_digits_over_photographs():
    for split in ("train", "test"):
        images, labels = load("demo_photos", "", split)
        count = len(labels) // demo_photos.CROPS_PER_DIGIT[split]
        plain = demo_digits.digits(demo_photos.DIGITS[split])
        np.testing.assert_array_equal(labels[:count], plain.labels)
        masks = np.tile(plain.images > demo_photos.INK, (demo_photos.CROPS_PER_DIGIT[split], 1, 1))[:40]
        stream = 1 if split == "train" else 2
        crops = slow_crops(demo_photos.photos(split), demo_photos.SEED, stream, 40)
        np.testing.assert_array_equal(images[:40], np.abs(crops - 255 * masks[..., None]))
        assert len({image.tobytes() for image in images}) > 0.99 * len(images)


def test_demo_data_need_no_network():
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import hashlib\n"
        "from src.data import load\n"
        "for name in ('demo_digits', 'demo_photos'):\n"
        "    for split in ('train', 'test'):\n"
        "        print(hashlib.sha256(load(name, '/nowhere', split).images.tobytes()).hexdigest())\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout and len(set(runs[0].stdout.split())) == 4
    assert runs[0].stderr == ""  # libpng would warn here about colour profiles


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
