"""MNIST-M as published and as made here, blending, and the demo data."""

import random
import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers import fails
from test_data import ROOT, digits, idx_bytes, real

from src.data import blend, demo_digits, demo_photos, load

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
