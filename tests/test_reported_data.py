"""Reports about reading data, from users of other projects, tried on ours: each with its right outcome.

Every one stands for a kind: one file's fault falls on others, two readers have two rules, images are left out
silently, text comes from elsewhere.
"""

import functools
import os
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import fails
from PIL import Image
from test_tasks import CPU, configure, opened

from src.data import decode, files, load, mnist_m, photos, tasks
from src.data.files import LeftOut
from src.data.preparation import Preparation
from src.data.reading import Reader

COLOURS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 30, 30)}
VIEW = Preparation(32)


@pytest.fixture
def rgb(tmp_path):
    """train/ and val/ of three classes, eight and four JPEGs each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "rgb" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 6, (48, 48, 3)), 0, 255).astype("u1")
                Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=95)
    return tmp_path / "rgb"


def trained(task, steps=6):
    """Labels of the first steps, four images each; their colours are checked."""
    loader, seen = next(iter(task.labelled(VIEW, 4).values())), []
    for step in range(steps):
        images, labels = loader.batch(step)
        brightest = images.mean((2, 3)).argmax(1)
        assert (brightest == 2 - labels).all()  # blue is class 0 and channel 2
        seen += labels.tolist()
    return seen


def evaluated(task):
    """Labels of all test images that were read."""
    ((_, loader),) = task.test(VIEW).items()
    labels = np.concatenate([labels for _, labels in loader])
    assert loader.total == len(labels)
    return labels.tolist()


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


# One file's fault falls on others


def test_reported_a_name_that_is_no_utf_8_harms_nothing(rgb, caplog):
    names = (b"caf\xe9.jpg", "größe.jpg".encode(), b"new\nline.jpg", b"quote'\".jpg", b"\xff.jpg")
    for split in ("train", "val"):
        folder = os.fsencode(rgb / split / "red")
        for number, name in enumerate(names[: 5 if split == "train" else 3]):
            os.rename(folder + b"/%03d.jpg" % number, folder + b"/" + name)
    task = opened(dataset_path=rgb)
    with caplog.at_level("INFO", logger="run"):
        assert sorted(trained(task)) == [0] * 8 + [1] * 8 + [2] * 8
        assert evaluated(task) == [0] * 4 + [1] * 4 + [2] * 4
    assert task.left_out == {} and "warning" not in caplog.text
    listed = files.find([str(rgb)])
    assert len(list(Reader(listed).stream(range(36)))) == 36


def test_reported_a_bad_name_is_told_in_a_line_that_can_be_printed(rgb, caplog):
    path = os.fsencode(rgb / "val" / "red") + b"/caf\xe9\n.jpg"
    Path(os.fsdecode(path)).write_bytes(b"no image")
    task = opened(dataset_path=rgb)
    evaluated(task)
    ((reason, paths),) = task.left_out.items()
    assert reason.startswith("neither JPEG") and paths[0].endswith("caf\\xe9\\x0a.jpg")
    caplog.text.encode("utf-8")
    assert "caf\\xe9\\x0a.jpg: neither JPEG" in caplog.text


# Two readers, two rules


TAILS = [b"\n", b"\0" * 8, bytes(64), b"SEFT" * 1000, b"\xff\xd8\xff"]


@pytest.mark.parametrize("tail", TAILS)
def test_reported_bytes_behind_the_end_of_an_image_are_legal(rgb, tail):
    for path in rgb.rglob("*/red/*.jpg"):
        path.write_bytes(path.read_bytes() + tail)
    task = opened(dataset_path=rgb)
    assert sorted(trained(task)) == [0] * 8 + [1] * 8 + [2] * 8
    assert evaluated(task) == [0] * 4 + [1] * 4 + [2] * 4 and task.left_out == {}


@pytest.mark.parametrize("tail", TAILS)
def test_reported_the_same_holds_for_pacs_bsds500_mnist_m_and_inference(tmp_path, tail):
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    for ending in (".jpg", ".png"):
        data = cv2.imencode(ending, pixels)[1].tobytes()
        (tmp_path / f"x{ending}").write_bytes(data + tail)
        read = dict(Reader([tmp_path / f"x{ending}"]).stream([0]))
        np.testing.assert_array_equal(read[0], decode.decode(data))
        np.testing.assert_array_equal(photos.decode(data + tail, "x"), decode.decode(data))
    (tmp_path / "mnist_m_train").mkdir()
    shutil.copy(tmp_path / "x.png", tmp_path / "mnist_m_train" / "0.png")
    (tmp_path / "mnist_m_train_labels.txt").write_text("0.png 3\n")
    digits = mnist_m.load(tmp_path, "train")
    np.testing.assert_array_equal(digits.images[0], pixels[2:30, 2:30, ::-1])


def enormous(path):
    """An image file that claims 20,000 x 20,000 pixels and has few bytes."""
    pixels = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    data = bytearray(cv2.imencode(path.suffix, pixels)[1].tobytes())
    if path.suffix == ".png":
        data[16:24] = (20000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    else:
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = (20000).to_bytes(2, "big") * 2
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_reported_one_limit_of_pixels_with_one_message(rgb, tmp_path, ending):
    enormous(rgb / "val" / "red" / f"x.{ending}")
    task = opened(dataset_path=rgb)
    assert evaluated(task) == [0] * 4 + [1] * 4 + [2] * 4
    ((reason, _),) = task.left_out.items()
    assert reason.startswith("20000x20000 pixels, more than the 100 million")
    (tmp_path / "train").mkdir()
    enormous(tmp_path / "train" / f"x.{ending}")
    fails(lambda: photos.read_training_photos(tmp_path), "20000x20000 pixels, more than the 100 million")


def test_reported_what_a_mac_leaves_in_archives_is_passed_over(rgb, caplog):
    for folder in rgb.glob("*/*"):
        for image in list(folder.iterdir()):
            (folder / f"._{image.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf")
    for split in ("train", "val"):
        (rgb / split / "__MACOSX" / "red").mkdir(parents=True)
    task = opened(dataset_path=rgb)
    assert task.classes == tuple(COLOURS)
    assert sorted(trained(task)) == [0] * 8 + [1] * 8 + [2] * 8
    assert evaluated(task) == [0] * 4 + [1] * 4 + [2] * 4
    ((reason, paths),) = task.left_out.items()
    assert reason == "hidden and system files" and paths[-1] == f"and {36 + 14 - 20} more"
    assert "warning" not in caplog.text
    assert len(files.find([str(rgb)])) == 36


def test_reported_macosx_beside_domains_is_no_domain(rgb, tmp_path):
    shutil.copytree(rgb / "train", tmp_path / "set" / "one")
    shutil.copytree(rgb / "val", tmp_path / "set" / "two")
    (tmp_path / "set" / "__MACOSX" / "one" / "red").mkdir(parents=True)
    task = opened(domain_set="folders", domains_image_root=tmp_path / "set", target_domain="two")
    assert [source.name for source in task.form.sources] == ["one"] and task.classes == tuple(COLOURS)


# Images left out silently


def test_reported_a_class_of_which_nothing_can_be_read_is_an_error(rgb):
    for path in rgb.rglob("*/red/*.jpg"):
        cut(path)
    message = "class red: none of its {} images can be read"
    fails(lambda: evaluated(opened(dataset_path=rgb)), message.format(4), "truncated JPEG")
    fails(lambda: trained(opened(dataset_path=rgb)), message.format(8), "truncated JPEG")


def test_reported_what_was_left_out_is_counted_and_named_once(rgb, caplog):
    bad = [rgb / "val" / "red" / "002.jpg", rgb / "val" / "blue" / "000.jpg"]
    for path in bad:
        cut(path)
    task = opened(dataset_path=rgb)
    ((_, loader),) = task.test(VIEW).items()
    for _ in range(3):
        assert sum(len(labels) for _, labels in loader) == 10
    assert task.images == {"val": 10}
    assert sorted(task.left_out["truncated JPEG"]) == sorted(map(str, bad))
    assert [caplog.text.count(str(path)) for path in bad] == [1, 1]


def test_reported_links_that_lead_nowhere_are_counted_and_named(rgb, caplog):
    (rgb / "val" / "red" / "x.jpg").symlink_to("nowhere.jpg")
    (rgb / "val" / "red" / "loop.jpg").symlink_to("loop.jpg")
    (rgb / "val" / "red" / "good.jpg").symlink_to("000.jpg")
    task = opened(dataset_path=rgb)
    assert evaluated(task) == [0] * 4 + [1] * 4 + [2] * 5
    assert [os.path.basename(path) for path in task.left_out["links that lead nowhere"]] == [
        "loop.jpg",
        "x.jpg",
    ]
    assert "x.jpg" in caplog.text
    fails(lambda: evaluated(opened(dataset_path=rgb, strict=True)), "links that lead nowhere", "x.jpg")
    left_out = LeftOut()
    assert len(files.find([str(rgb)], left_out)) == 37 and list(left_out.as_dict()) == [
        "links that lead nowhere"
    ]


def test_reported_a_damaged_or_missing_listed_image_stops_nothing(rgb, tmp_path):
    root = tmp_path / "set"
    for domain in ("one", "two", "three"):
        shutil.copytree(rgb / "train", root / domain)
        for part, numbers in (("train", range(2, 9)), ("crossval", range(2)), ("test", range(8))):
            lines = [
                f"{domain}/{name}/{number:03}.jpg {place}"
                for place, name in enumerate(COLOURS, 1)
                for number in numbers  # 8 was never there
            ]
            (root / f"{domain}_{part}_kfold.txt").write_text("\n".join(lines))
    cut(root / "one" / "red" / "003.jpg")
    settings = configure(domain_set="folders", domains_image_root=root, kfold_root=".", target_domain="two")
    task = tasks.open_task(settings, CPU)
    loader = task.labelled(VIEW, 18, joined=False)["one"]
    assert len(loader.batch(0)[1]) == 18
    assert task.images["one train"] == 17 and sorted(task.left_out) == [
        "listed images that are missing",
        "truncated JPEG",
    ]
    strict = tasks.open_task(settings.replace(strict=True), CPU)
    fails(lambda: strict.labelled(VIEW, 8, joined=False), "one/blue/008.jpg")


def test_reported_folders_too_deep_are_said(rgb):
    """Office-31 keeps its classes in amazon/images/: given amazon, `images` looks like a class."""
    shutil.move(rgb / "train", rgb / "images")
    shutil.rmtree(rgb / "val")
    (rgb / "other").mkdir()
    fails(
        lambda: opened(source_image_root=rgb).labelled(VIEW, 4),
        "images",
        "no image",
        "it holds folders: blue, green",
    )


# Text and paths from elsewhere


def test_reported_home_folders_and_impossible_paths_in_every_path_key():
    home = os.path.expanduser("~")
    for name, key in configure().keys.items():
        if key.path and name.endswith(("_root", "dataset_path", "list_classes")):
            assert key.parse(name, "~/x", "here") == f"{home}/x"
    for name in ("mnist", "mnist_m", "usps", "svhn"):
        fails(functools.partial(load, name, "x" * 300, "train"), "x" * 300)
    fails(lambda: photos.read_training_photos("x" * 300), "not found")
    for changes in (
        {"dataset_path": "x" * 300},
        {"source_image_root": "x" * 300},
        {"domain_set": "folders", "domains_image_root": "x" * 5000},
    ):
        fails(lambda: opened(**changes), "too long")  # noqa: B023 - called at once


# Kinds of images


def test_reported_pictures_of_cameras_and_editors_are_read_alike_everywhere(rgb):
    """Turned, CMYK, with palette, with transparency, with 16 bits: each has its colour, none a warning."""
    picture = Image.open(rgb / "train" / "red" / "000.jpg")
    exif = Image.Exif()
    exif[0x112] = 6
    picture.save(rgb / "val" / "red" / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(rgb / "val" / "red" / "print.jpg", quality=95)
    picture.quantize(64).save(rgb / "val" / "red" / "palette.png")
    picture.convert("RGBA").save(rgb / "val" / "red" / "alpha.PNG")
    picture.save(rgb / "val" / "red" / "new.webp")
    picture.save(rgb / "val" / "red" / "old.BMP")
    deep = np.asarray(picture).astype(np.uint16)[..., ::-1] * 257
    assert cv2.imwrite(str(rgb / "val" / "red" / "deep.png"), deep)
    task = opened(dataset_path=rgb)
    ((_, loader),) = task.test(VIEW).items()
    for images, labels in loader:
        assert (images.mean((2, 3)).argmax(1) == 2 - labels).all()
    assert loader.total == 12 + 7 and task.left_out == {}


def test_reported_a_file_of_another_kind_behind_an_image_s_name(rgb):
    for name, data in (
        ("page.jpg", b"<!DOCTYPE html>"),
        ("empty.png", b""),
        ("movie.jpg", b"GIF89a" + bytes(99)),
    ):
        (rgb / "train" / "red" / name).write_bytes(data)
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    (rgb / "train" / "red" / "phone.heic").write_bytes(heic)
    task = opened(dataset_path=rgb)
    trained(task, 12)
    assert {reason: len(paths) for reason, paths in task.left_out.items()} == {
        "pictures of formats that are not read": 1,
        "neither JPEG, PNG, BMP nor WebP": 2,
        "empty file": 1,
    }
