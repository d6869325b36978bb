"""Training on the kept features of a frozen backbone: `cache_features`."""

import dataclasses
import errno
import fcntl
import itertools
import json
import shutil
from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from helpers import (
    build,
    build_network,
    command,
    fails,
    make_data,
    options,
    refused,
    succeeded,
    train,
    values,
)
from test_matrix import CLASSES, DATA, METHODS, STEPS, folders

from model_utils import checkpoint
from model_utils.digests import digest
from src.setup import settings as experiment
from src.training.feature_cache import PLAIN, FeatureCache

KEYS = {"freeze_backbone": "true", "cache_features": "true", "pretrained": "none", "bottleneck": 8}


def configured(method, tmp_path, kind=None, **changes):
    """A few steps of a method on the features of a small network."""
    kind = kind or ("folders" if method == "masf" else "pair")
    keys = {"method": method, "network": "digits", **KEYS, **DATA[kind](), **STEPS[method]}
    keys["output_dir"] = tmp_path / "run"
    if method == "shot":
        keys |= make_data("shot", CLASSES)
    return experiment.load(options(**{**keys, **changes}, device_target="CPU"))


def features_in(folder):
    """The files of features in a folder."""
    return sorted(folder.rglob("*.npy"))


@pytest.fixture
def copied(tmp_path):
    """A copy of the image folders that a test may change."""
    shutil.copytree(folders(), tmp_path / "data")
    roots = {"source_image_root": tmp_path / "data" / "a", "target_image_root": tmp_path / "data" / "c"}
    return tmp_path / "data", roots


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_kept_features(method, place, tmp_path):
    settings = configured(method, tmp_path)
    cell = build(settings, place)
    before = values(cell)
    logged = train(cell)
    assert all(np.isfinite(value) for _, scalars in logged for value in scalars.values())
    after = values(cell)
    backbone = {p.name for p in cell.whole.backbone.get_parameters()}
    assert backbone and all(np.array_equal(before[name], after[name]) for name in backbone)
    moved = [p.name for p in cell.network.trainable_params()]
    assert moved and any(not np.array_equal(before[name], after[name]) for name in moved)

    # What the checkpoint holds says of an image what training has seen of its features.
    (name, loader), *_ = cell.task.test(cell.preparation).items()
    (images, labels), kept = next(iter(loader)), cell.test_sets()[name]
    cell.ready()
    features, same = next(iter(kept))
    np.testing.assert_array_equal(labels, same)
    plain = build_network(settings, place).set_train(False)
    parameters = {p.name: p for p in plain.get_parameters()}
    checkpoint.fill(parameters, {name: after[name] for name in parameters}, "network", "test")
    cell.network.set_train(False)
    expected = plain(ms.Tensor(images)).asnumpy()
    np.testing.assert_allclose(cell.network(ms.Tensor(features)).asnumpy(), expected, rtol=1e-4, atol=1e-5)


def test_losses_are_those_of_training_through_the_frozen_backbone(place, tmp_path):
    changes = {"feature_views": 0, "train_iterations": 4, "batch_size": 6}
    losses = []
    for cached in ("true", "false"):
        settings = configured("supervised", tmp_path, **changes, cache_features=cached, dropout=0)
        losses.append([scalars["loss"] for _, scalars in train(build(settings, place))])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert len(set(losses[0])) == 4


def test_digits_in_arrays_are_kept_too(place, tmp_path):
    cell = build(configured("supervised", tmp_path, "digits"), place)
    train(cell)
    stored = sum(len(np.load(path)) for path in features_in(tmp_path / "features"))
    images = sum(loader.count for loader in cell.phases[0].loaders.values())
    assert stored >= 3 * images


def test_digits_resized_in_another_way_have_features_of_their_own(place, tmp_path):
    """Features of images in files do not depend on it, and the stores of the default keep their names."""
    kept = {}
    for how in ("area", "corners"):
        cell = build(configured("supervised", tmp_path, "digits", digit_resize=how), place)
        cache = FeatureCache(cell.config, place, cell.network)
        loader = next(iter(cell.task.test(cell.preparation).values()))
        kept[how] = cache._store(cache.loader(loader), PLAIN).folder.name
        if how == "area":
            preparation = dataclasses.asdict(cell.network.preparation)
            del preparation["crop_scale_min"], preparation["flip"]
            about = [1, "digits", cache._weights(), preparation, "plain"]
            assert kept[how] == digest(json.dumps(about).encode())
    assert kept["area"] != kept["corners"]


def test_views_are_the_plain_one_and_augmented_ones(place, tmp_path):
    settings = configured("supervised", tmp_path, feature_views=2, crop_scale_min=0.3)
    cell = build(settings, place)
    cell.ready()
    (loader,) = cell.phases[0].loaders.values()
    views = [view.take(loader.places) for view in loader.views]
    assert len(views) == 3 and views[0].shape == (25, cell.whole.backbone.feature_size)
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(views, 2))
    features, _ = loader.batch(0)
    np.testing.assert_array_equal(features, loader.batch(0)[0])
    rows = {row.tobytes() for view in views for row in view}
    assert all(row.tobytes() in rows for row in features)


def test_features_are_reused_until_something_changes(place, tmp_path, copied, caplog):
    root, roots = copied
    (tmp_path / "elsewhere").mkdir()

    def fill(**changes):
        caplog.clear()
        cell = build(configured("supervised", tmp_path, **{**roots, **changes}), place, seed=1)
        with caplog.at_level("INFO", "run"):
            cell.ready()
        return sum(int(part.split()[0]) for part in caplog.text.split("features: ")[1:] if part[0].isdigit())

    assert fill() == 28 + 25 + 25
    assert not fill()
    assert not fill(lr_max=0.001, seed=5)
    shutil.move(root / "a", tmp_path / "elsewhere" / "a")
    roots["source_image_root"] = tmp_path / "elsewhere" / "a"
    assert not fill(), "the content counts, not the place"
    count = len(features_in(tmp_path / "features"))
    image = next((tmp_path / "elsewhere" / "a" / "round").iterdir())
    shutil.copy(next((root / "c" / "square").iterdir()), image)
    assert fill() in (1, 3), "another image under an old name"
    assert fill(feature_views=3) == 25
    assert not fill(feature_views=1)
    assert fill(crop_scale_min=0.5)
    assert len(features_in(tmp_path / "features")) > count


@pytest.mark.parametrize("damage", ("cut", "bit", "empty"))
def test_a_damaged_file_is_made_anew(damage, place, tmp_path, caplog):
    train(build(configured("supervised", tmp_path), place, seed=1), 0, 1)
    contents = {path: path.read_bytes() for path in features_in(tmp_path / "features")}
    path = max(contents, key=lambda path: len(contents[path]))
    broken = bytearray(contents[path])
    broken[-5] ^= 8
    path.write_bytes({"cut": contents[path][:-100], "bit": bytes(broken), "empty": b""}[damage])
    with caplog.at_level("INFO", "run"):
        train(build(configured("supervised", tmp_path), place, seed=1), 0, 1)
    assert f"{path} is damaged or cut short; what it should hold is computed anew" in caplog.text
    assert path.read_bytes() == contents[path]


def test_a_run_waits_for_another_one_that_computes_the_same(place, tmp_path, caplog, monkeypatch):
    lock = fcntl.flock

    def held_by_another(handle, how):
        if how & fcntl.LOCK_NB:
            raise BlockingIOError
        monkeypatch.setattr(fcntl, "flock", lock)
        build(configured("supervised", tmp_path), place, seed=1).ready()  # meanwhile the other one ends

    monkeypatch.setattr(fcntl, "flock", held_by_another)
    with caplog.at_level("INFO", "run"):
        build(configured("supervised", tmp_path), place, seed=1).ready()
    assert caplog.text.count("waiting for it") == 1
    assert caplog.text.count("go through the backbone once") == 2, "plain and augmented, by the other one"


def test_a_disk_without_locks_is_said(place, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
    build(configured("supervised", tmp_path), place, seed=1).ready()
    assert caplog.text.count("can't be locked") == 2 and features_in(tmp_path / "features")


def test_unreadable_files_are_left_out_and_remembered(place, tmp_path, copied):
    root, roots = copied
    bad = sorted((root / "a" / "round").iterdir())[1], sorted((root / "c" / "square").iterdir())[2]
    for path in bad:
        path.write_bytes(b"\x89PNG\r\n\x1a\n no image")
    for _ in range(2):  # computed, then read from the file
        cell = build(configured("dann", tmp_path, **roots), place)
        sets = cell.test_sets()
        train(cell)
        (reasons,) = cell.task.left_out.values()
        assert sorted(reason.split(":")[0] for reason in reasons) == sorted(map(str, bad)), reasons
        assert sets["target"].total == 27
        assert sum(len(labels) for _, labels in sets["target"]) == 27
    fails(lambda: train(build(configured("dann", tmp_path, **roots, strict="true"), place)), "--strict")


def test_refusals(place, tmp_path, monkeypatch):
    def built(**changes):
        return lambda: build(configured(changes.pop("method", "supervised"), tmp_path, **changes), place)

    fails(built(freeze_backbone="false"), "cache_features", "--freeze_backbone true")
    fails(built(method="adda", consistency_weight=1), "consistency_weight", "cache_features")
    fails(built(method="dann", vat_weight=0.1), "vat_weight", "cache_features")
    cell = build(configured("supervised", tmp_path), place)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fails(cell.ready, "feature_folder", "has room for 0.0 MB")
    (tmp_path / "file").write_text("")
    cell = build(configured("supervised", tmp_path, feature_folder=tmp_path / "file"), place)
    fails(cell.ready, "feature_folder", "choose another one")


@pytest.mark.slow
def test_commands_train_resume_and_evaluate(tmp_path):
    keys = {"method": "dann", "network": "digits", **KEYS, **DATA["pair"](), "batch_size": 8}
    keys |= {"steps_per_epoch": 2, "n_epoch": 2, "output_dir": tmp_path / "run", "log_interval": 1}
    succeeded(command("train.py", **keys))
    assert features_in(tmp_path / "features")
    said = succeeded(command("eval.py", ckpt_path=tmp_path / "run"))
    result = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    line = [line for line in result.splitlines() if "target domain accuracy" in line][-1]
    assert line.split("target domain accuracy: ")[1] in said

    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*.ckpt"))
    whole = {name: v for name, v in checkpoint.read(newest[-1])[0].items()}
    newest[-1].unlink()
    shutil.rmtree(tmp_path / "features")
    succeeded(command("train.py", **keys, resume="true"))
    again = checkpoint.read(newest[-1])[0]
    assert [name for name in whole if not np.array_equal(whole[name], again[name])] == []
    refused(command("train.py", **{**keys, "freeze_backbone": "false"}), "output_dir")
