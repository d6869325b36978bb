"""Whatever two folders of photographs hold, training on them works or ends in one line."""

import shutil

import cv2
import numpy as np
import pytest
from helpers import command, fails, options, refused
from test_matrix import folders

import sweep
from src.setup import settings as experiment
from src.training import run_folder

KEYS = {
    "config": "configs/photos.yaml",
    "device_target": "CPU",
    "image_size": 32,
    "batch_size": 8,
    "iterations": 2,
    "steps_per_epoch": 2,
    "feature_views": 0,
    "validator_images": 8,
    "report": "false",
    "tensorboard": "false",
}


@pytest.fixture
def roots(tmp_path):
    """Folders studio and phone with 14 images of each of two classes."""
    for name, domain in (("studio", "a"), ("phone", "c")):
        shutil.copytree(folders() / domain, tmp_path / name)
    return tmp_path / "studio", tmp_path / "phone"


def train(roots, **changes):
    studio, phone = roots
    output = studio.parent / "run"
    return command(
        "train.py",
        **{"source_image_root": studio, "target_image_root": phone, "output_dir": output, **KEYS, **changes},
    )


def no_common_class(studio, phone):
    for folder in list(phone.iterdir()):
        folder.rename(phone / f"other {folder.name}")


def nothing_readable_in_a_class(studio, phone):
    for path in (studio / "round").iterdir():
        path.write_bytes(b"no picture")


def one_class(studio, phone):
    shutil.rmtree(studio / "square")
    shutil.rmtree(phone / "square")


def fewer_than_a_batch(studio, phone):
    for path in sorted(studio.rglob("*.png")):
        if path.stem > "01":
            path.unlink()


def no_target_image(studio, phone):
    shutil.rmtree(phone)
    phone.mkdir()


def no_target_folder(studio, phone):
    shutil.rmtree(phone)


def a_target_of_one_image(studio, phone):
    image = next(phone.rglob("*.png"))
    image.rename(phone / "only.png")
    for name in ("round", "square"):
        shutil.rmtree(phone / name)


def accents_encoded_otherwise(studio, phone):
    (studio / "round").rename(studio / "Caf\u00e9")
    (phone / "round").rename(phone / "Cafe\u0301")


@pytest.mark.parametrize(
    "change, parts",
    [
        (accents_encoded_otherwise, ["'Cafe\\u0301'", "'Caf\\xe9'", "how accents are encoded"]),
        (no_common_class, ["class"]),
        (nothing_readable_in_a_class, ["round"]),
        (one_class, ["class"]),
        (fewer_than_a_batch, ["batch_size"]),
        (no_target_image, ["phone"]),
        (no_target_folder, ["phone"]),
        (a_target_of_one_image, ["target"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folders_that_cannot_be_trained_on(roots, change, parts):
    change(*roots)
    before = {path: path.read_bytes() for path in roots[0].parent.rglob("*.png")}
    refused(train(roots), *parts)
    assert {path: path.read_bytes() for path in roots[0].parent.rglob("*.png")} == before
    assert not list(roots[0].parent.glob("run/checkpoints/*.ckpt"))


@pytest.mark.parametrize("inside", ["studio", "phone/outputs/run"])
def test_a_run_inside_the_images_is_refused_before_it_makes_a_folder(roots, inside):
    before = sorted(roots[0].parent.rglob("*"))
    folder = roots[0].parent / inside
    refused(train(roots, output_dir=folder), "output_dir", str(folder), "choose an --output_dir elsewhere")
    assert sorted(roots[0].parent.rglob("*")) == before


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"domains_image_root": "PLACE/studio", "domain_set": "folders"}, "domains_image_root"),
        ({"source_image_root": "PLACE/studio", "target_image_root": "PLACE/phone"}, "source_image_root"),
        ({"target_image_root": "studio", "dataset_path": "PLACE"}, "target_image_root"),
    ],
)
def test_which_folders_a_run_must_lie_outside(roots, changes, key):
    place = str(roots[0].parent)
    keys = {name: value.replace("PLACE", place) for name, value in changes.items()}
    settings = experiment.load(["--config=configs/photos.yaml", *options(**keys)])
    fails(lambda: run_folder.check_outside(f"{place}/studio/outputs/run", settings), key)
    run_folder.check_outside(f"{place}/outputs/run", settings)


def test_a_sweep_inside_the_images_is_refused(roots, monkeypatch):
    monkeypatch.setenv("HOME", str(roots[0].parent))
    keys = options(source_image_root=roots[0], target_image_root=roots[1], output_dir="~/studio/sweep")
    (roots[0].parent / "space.yaml").write_text("mcc_weight: [0.5, 1.0]\n")
    given = ["--config=configs/photos.yaml", f"--space={roots[0].parent / 'space.yaml'}", "--trials=2", *keys]
    fails(lambda: sweep.prepare(*sweep.parse(given)), "output_dir", "source_image_root")


def test_train_and_val_folders_may_have_a_run_beside_them(roots, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(roots[0], tmp_path / "whole" / part)
    keys = {"source_image_root": tmp_path / "whole", "target_image_root": roots[1]}
    settings = experiment.load(["--config=configs/photos.yaml", *options(**keys)])
    run_folder.check_outside(tmp_path / "whole" / "run", settings)


def test_one_folder_as_source_and_target_is_a_warning(roots):
    done = train((roots[0], roots[0]))
    assert done.returncode == 0, done.stderr
    assert "same" in done.stdout + done.stderr


@pytest.mark.thorough
def test_a_picture_of_a_hundred_million_pixels_is_trained_on(roots):
    path = roots[1] / "round" / "huge.jpg"
    assert cv2.imwrite(str(path), np.zeros((10_000, 10_000, 3), np.uint8))
    done = train(roots)
    assert done.returncode == 0, done.stderr
