"""What a run may see of its data: forms of data, classes by name, and labels that never leave their role."""

import functools
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_records import write_digits
from helpers import fails
from PIL import Image

from model_utils.config import Config
from model_utils.device import Device
from model_utils.key import Key
from model_utils.keys import COMMON
from src import data
from src.data import forms, keys, lists, tasks
from src.data.preparation import Preparation

CPU = Device("CPU")
PHOTO = Preparation(16)
CLASSES = ("cat", "dog", "emu")


def configure(**changes):
    table = {**COMMON, **keys.keys(validation_size=20), "num_classes": Key(0, "")}
    return Config({name: key.default for name, key in table.items()}, table).replace(**changes)


def opened(classes=None, **changes):
    return tasks.open_task(configure(**changes), CPU, classes)


def draw(path, red=0, green=0, blue=0):
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((16, 20, 3), (blue, green, red), np.uint8))


def tree(root, red=0, count=5, classes=CLASSES):
    """<root>/<class>/<number>.png: red says the domain, green the class (0, 50, 100), blue which."""
    for name in classes:
        for number in range(count):
            draw(root / name / f"{number:02}.png", red, 50 * (ord(name[0]) - ord("c")), 5 * number)
    return root


def flat(root, red=0, count=6):
    for number in range(count):
        draw(root / f"{number:02}.png", red, 50 * (number % 3), 5 * number)
    return root


def everything(loader):
    """(colours of the first pixels (N, 3), labels (N,)) of a test loader."""
    images, labels = zip(*loader, strict=True)
    return np.rint(np.concatenate(images)[:, :, 0, 0] * 255).astype(int), np.concatenate(labels)


def colours(images):
    return np.rint(images[:, :, 0, 0] * 255).astype(int)


# A pair of domains


def test_two_folders_without_a_split(tmp_path):
    """The usual protocol: the target is trained on as a whole without labels, and tested as a whole."""
    task = opened(
        source_image_root=tree(tmp_path / "a", 10), target_image_root=tree(tmp_path / "b", 20), holdout=0.4
    )
    assert task.classes == CLASSES
    (source,), (target,) = task.labelled(PHOTO, 9).items(), task.unlabelled(PHOTO, 15).items()
    assert (source[0], target[0]) == ("source", "target")
    images, labels = source[1].batch(0)
    assert (colours(images)[:, 1] == 50 * labels).all() and set(colours(images)[:, 0]) == {10}
    trained = {tuple(colour) for colour in colours(images)}
    images, labels = target[1].batch(0)
    assert labels is None and len({tuple(colour) for colour in colours(images)}) == 15
    held, tests = task.held_out(PHOTO), task.test(PHOTO)
    assert list(held) == ["source"] and list(tests) == ["source", "target"]
    kept, labels = everything(held["source"])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and not {tuple(colour) for colour in kept} & trained
    np.testing.assert_array_equal(everything(tests["source"])[0], kept)
    found, labels = everything(tests["target"])
    assert len(found) == 15 and (found[:, 1] == 50 * labels).all()
    counts = {
        "source train": 9,
        "target train": 15,
        "source held out": 6,
        "source test": 6,
        "target test": 15,
    }
    assert task.images == counts


def test_folders_with_a_split(tmp_path):
    for name, red in (("a", 10), ("b", 20)):
        tree(tmp_path / name / "train", red)
        tree(tmp_path / name / ("val" if name == "a" else "test"), red + 1, count=2)
    task = opened(source_image_root=tmp_path / "a", target_image_root=tmp_path / "b")
    assert set(colours(task.labelled(PHOTO, 15)["source"].batch(0)[0])[:, 0]) == {10}
    assert set(colours(task.unlabelled(PHOTO, 15)["target"].batch(0)[0])[:, 0]) == {20}
    assert task.held_out(PHOTO) is None
    for loader, red in zip(task.test(PHOTO).values(), (11, 21), strict=True):
        found, labels = everything(loader)
        assert len(found) == 6 and set(found[:, 0]) == {red} and (found[:, 1] == 50 * labels).all()


def test_a_target_may_be_a_flat_folder_and_is_then_not_tested(tmp_path):
    source = tree(tmp_path / "a")
    task = opened(source_image_root=source, target_image_root=flat(tmp_path / "b", 20))
    images, labels = task.unlabelled(PHOTO, 6)["target"].batch(0)
    assert labels is None and set(colours(images)[:, 0]) == {20}
    assert list(task.test(PHOTO)) == ["source"]
    for part in ("train", "val"):
        flat(tmp_path / "c" / part, 30)
    split = opened(source_image_root=source, target_image_root=tmp_path / "c")
    assert split.unlabelled(PHOTO, 6)["target"].steps_per_epoch == 1 and list(split.test(PHOTO)) == ["source"]
    fails(lambda: opened(source_image_root=tmp_path / "b"), "source", "no class folders", "labels")


def test_a_target_may_be_absent(tmp_path):
    task = opened(source_image_root=tree(tmp_path / "a"), holdout=0.2)
    assert list(task.test(PHOTO)) == ["source"]
    fails(lambda: task.unlabelled(PHOTO, 2), "no target", "target_image_root")
    fails(opened, "no data are given", "source_image_root")


def test_a_class_called_train_is_no_split(tmp_path):
    classes = tree(tmp_path / "a", classes=("cat", "dog")).parent / "a"
    shutil.copytree(classes / "cat", classes / "train")
    assert opened(source_image_root=classes).classes == ("cat", "dog", "train")


@pytest.mark.parametrize("name", ["mnist", "folder", ""])
def test_a_root_that_holds_photographs_is_read_as_such(tmp_path, caplog, name):
    """DANN's own defaults name MNIST: whoever gives a folder of photographs need not take that back."""
    with caplog.at_level("INFO", logger="run"):
        task = opened(source_dataset_name=name, source_image_root=tree(tmp_path / "a"))
        task.labelled(PHOTO, 4)
    assert task.classes == CLASSES
    assert f"source: image folder {tmp_path / 'a'}, 3 classes, 15 images" in caplog.text


def test_digits_keep_their_readers(tmp_path):
    root = write_digits(tmp_path / "digits")
    names = {"source_dataset_name": "mnist", "target_dataset_name": "mnist-m"}
    task = opened(**names, source_image_root=root, target_image_root=root)
    assert task.classes == tuple("0123456789")
    assert task.labelled(Preparation(28), 4)["source"].batch(0)[0].shape == (4, 3, 28, 28)
    wrong = opened(**names, source_image_root=tmp_path / "foto", target_image_root=root)
    fails(lambda: wrong.labelled(PHOTO, 4), "source_image_root: there is no", "foto", "--download true")
    fails(lambda: opened(source_dataset_name="mnits", source_image_root=root), "did you mean 'mnist'")


def test_published_mnist_m_is_not_taken_for_an_image_folder(tmp_path):
    """Its two folders of images look like two classes."""
    for part in ("train", "test"):
        for number in range(4):
            path = tmp_path / f"mnist_m_{part}" / f"{number:08}.png"
            path.parent.mkdir(exist_ok=True)
            assert cv2.imwrite(str(path), np.full((32, 32, 3), number, np.uint8))
        lines = [f"{number:08}.png {number}" for number in range(4)]
        (tmp_path / f"mnist_m_{part}_labels.txt").write_text("\n".join(lines))
    task = opened(source_dataset_name="mnist_m", source_image_root=tmp_path, validation_size=0)
    assert task.classes == tuple("0123456789") and task.test(Preparation(28))["source"].total == 4


def test_digits_can_be_adapted_to_photographs_of_digits(tmp_path):
    root = tree(tmp_path / "a", classes=())
    for digit in "073":
        draw(root / digit / "x.png", 10)
    task = opened(source_dataset_name="demo_digits", target_image_root=root)
    found, labels = everything(task.test(Preparation(28))["target"])
    assert labels.tolist() == [0, 3, 7] and len(found) == 3


@pytest.mark.parametrize("how", ["area", "corners", "origin"])
def test_digits_are_resized_as_asked(tmp_path, how):
    root = write_digits(tmp_path / "digits")
    task = opened(source_dataset_name="usps", source_image_root=root, digit_resize=how)
    native = data.load("usps", root, "test").images[0].astype(float)
    corner = next(iter(task.test(Preparation(28, 1))["source"]))[0][0, 0, :2, 1] * 255
    # Where output column 1 lies in the input; areas have half-pixel centres.
    place = {"corners": 15 / 27, "origin": 16 / 28, "area": 1.5 * 16 / 28 - 0.5}[how]
    assert abs(corner[0] - ((1 - place) * native[0, 0] + place * native[0, 1])) < 1


def test_the_sampled_protocol_knows_its_data_sets(tmp_path):
    split = data.Split(np.arange(2100, dtype=np.uint8), np.arange(2100))
    chosen = forms.draw(split, "MNIST", "sampled", 3)
    assert len(set(chosen.labels)) == 2000 and (np.diff(chosen.labels) > 0).all()
    assert len(forms.draw(split, "usps", "sampled", 3).labels) == 1800
    assert forms.draw(split, "svhn", "full", 3) is split
    assert set(forms.draw(split, "mnist", "sampled", 4).labels) != set(chosen.labels)
    fails(lambda: forms.draw(split, "svhn", "sampled", 3), "protocol", "svhn", "mnist 2000, usps 1800")
    fails(lambda: forms.draw(split.take(slice(90)), "usps", "sampled", 3), "needs 1800", "there are 90")
    fails(lambda: opened(source_image_root=tree(tmp_path / "a"), protocol="sampled"), "protocol: sampled")


# A folder


def folder(root, train=5, val=2):
    tree(root / "train", 10, train)
    tree(root / "val", 11, val)
    return root


def test_a_folder_with_train_and_val(tmp_path):
    task = opened(dataset_path=folder(tmp_path))
    ((name, loader),) = task.labelled(PHOTO, 15).items()
    assert name == "train" and set(colours(loader.batch(0)[0])[:, 0]) == {10}
    assert task.held_out(PHOTO) is None
    ((name, loader),) = task.test(PHOTO).items()
    assert name == "val" and set(everything(loader)[0][:, 0]) == {11} and loader.classes == CLASSES


def test_evaluation_needs_no_training_images(tmp_path):
    shutil.rmtree(folder(tmp_path) / "train")
    task = opened(CLASSES, dataset_path=tmp_path)
    assert task.test(PHOTO)["val"].total == 6
    fails(lambda: task.labelled(PHOTO, 2), "no folder train/", "there are: val")
    shutil.move(tmp_path / "val", tmp_path / "train")
    fails(lambda: opened(CLASSES, dataset_path=tmp_path).test(PHOTO), "no folder val/ or test/")


def test_a_folder_without_a_split_keeps_some_images_for_testing(tmp_path):
    task = opened(dataset_path=tree(tmp_path / "a"), holdout=0.2)
    assert task.labelled(PHOTO, 12)["train"].steps_per_epoch == 1 and task.test(PHOTO)["val"].total == 3
    task.held_out(PHOTO)
    assert task.images == {"train": 12, "val": 3, "train held out": 3}


def test_both_parts_of_a_folder_must_have_the_same_classes(tmp_path):
    (folder(tmp_path) / "val" / "emu").rename(tmp_path / "val" / "rhea")
    fails(lambda: opened(dataset_path=tmp_path), "train/ and val/", "emu, rhea")
    fails(lambda: opened(dataset_path=tmp_path / "none"), "dataset_path", "none", "no folder")
    (tmp_path / "empty").mkdir()
    fails(lambda: opened(dataset_path=tmp_path / "empty"), "dataset_path", "no class folders")


# Lists


def listed(path, root, label, classes=CLASSES, count=5):
    """A list of the images in `root`: label(class, its number) gives the label."""
    lines = [
        f"{os.path.relpath(root / name / f'{index:02}.png', path.parent)} {label(name, number)}"
        for number, name in enumerate(classes)
        for index in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


LABELS = {
    "names": lambda name, number: name,
    "from 0": lambda name, number: number,
    "from 1": lambda name, number: number + 1,
}


@pytest.mark.parametrize("label", LABELS)
def test_a_list_names_its_classes_by_label_or_folder(tmp_path, label):
    """Numbers that go with folders one to one take their names: a list from 1 fits one from 0."""
    source = listed(tmp_path / "source.txt", tree(tmp_path / "images" / "a", 10), LABELS[label])
    for target in (tree(tmp_path / "b", 20), listed(tmp_path / "t.txt", tmp_path / "b", LABELS["from 0"])):
        task = opened(source_image_root=source, target_image_root=target, holdout=0)
        assert task.classes == CLASSES
        images, labels = task.labelled(PHOTO, 15)["source"].batch(0)
        assert (colours(images)[:, 1] == 50 * labels).all() and len({tuple(c) for c in colours(images)}) == 15
        found, labels = everything(task.test(PHOTO)["target"])
        assert (found[:, 1] == 50 * labels).all() and len(found) == 15


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_without_folders_are_named_by_a_file_or_stay_numbers(tmp_path, first):
    flat(tmp_path / "all", 10)
    lines = [f"all/{number:02}.png,{number % 3 + first}" for number in range(6)]
    (tmp_path / "source.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    plain = opened(source_image_root=tmp_path / "source.txt", holdout=0)
    assert plain.classes == tuple(str(number + first) for number in range(3))
    named = opened(source_image_root=tmp_path / "source.txt", list_classes=tmp_path / "names.txt", holdout=0)
    assert named.classes == CLASSES
    images, labels = named.labelled(PHOTO, 6)["source"].batch(0)
    assert (colours(images)[:, 1] == 50 * labels).all()
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    fails(
        lambda: opened(source_image_root=tmp_path / "source.txt", list_classes=tmp_path / "names.txt"),
        "list_classes",
        "has 2 names",
    )


def test_a_list_without_the_first_and_the_last_class_is_told_by_its_folders(tmp_path):
    """Numbers 1 and 2 of four names may count from 0 or from 1: folders that are the names say which."""
    (tmp_path / "names.txt").write_text("\n".join(("ant", *CLASSES)))
    keys = {
        "source_image_root": tmp_path / "source.txt",
        "list_classes": tmp_path / "names.txt",
        "holdout": 0,
    }
    for first, classes in ((0, ("cat", "dog")), (1, ("cat", "dog"))):
        root = tree(tmp_path / f"from {first}", 10, classes=classes)
        listed(tmp_path / "source.txt", root, lambda name, _: ("ant", *CLASSES).index(name) + first, classes)  # noqa: B023
        assert opened(**keys).classes == classes
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\nelk")
    line = fails(lambda: opened(**keys), "source_image_root", "from 2 to 3 for 4 classes", "names as labels")
    assert "source.txt" in line


@pytest.mark.parametrize(
    "line", ["my cat/a b.png,big cat", "my cat/a b.png , big cat", "my cat/a b.png,big,cat"]
)
def test_spaces_part_nothing_where_there_is_a_comma(tmp_path, line):
    draw(tmp_path / "my cat" / "a b.png")
    draw(tmp_path / "dog, one.png")
    (tmp_path / "list.txt").write_text(f"{line}\ndog, one.png dog\n")
    listing = lists.read_list(tmp_path / "list.txt", "key")
    assert listing.classes == ("big,cat" if "big,cat" in line else "big cat", "dog")
    assert [os.path.relpath(file, tmp_path) for file in listing.files] == ["my cat/a b.png", "dog, one.png"]


def test_paths_of_a_list_are_seen_from_its_folder_the_one_above_or_a_given_one(tmp_path):
    root = tree(tmp_path / "data" / "a", 10)
    lines = [f"a/{name}/{index:02}.png {name}" for name in CLASSES for index in range(5)]
    for place in ("data", "data/lists", "elsewhere"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "a.txt").write_text("\n".join(lines))
        changes = {"list_root": tmp_path / "data"} if place == "elsewhere" else {}
        task = opened(source_image_root=tmp_path / place / "a.txt", holdout=0, **changes)
        assert set(colours(task.labelled(PHOTO, 15)["source"].batch(0)[0])[:, 0]) == {10}
    absolute = [f"{root}/{name}/00.png {name}" for name in CLASSES]
    (tmp_path / "elsewhere" / "a.txt").write_text("\n".join(absolute))
    assert opened(source_image_root=tmp_path / "elsewhere" / "a.txt").classes == CLASSES


def test_a_list_without_labels_is_an_unlabelled_target(tmp_path):
    flat(tmp_path / "b")
    (tmp_path / "b.txt").write_text("\n".join(f"b/{number:02}.png" for number in range(6)))
    task = opened(source_image_root=tree(tmp_path / "a"), target_image_root=tmp_path / "b.txt")
    assert task.unlabelled(PHOTO, 6)["target"].batch(0)[1] is None and list(task.test(PHOTO)) == ["source"]


def test_missing_listed_images_are_left_out_or_refused(tmp_path):
    source = listed(tmp_path / "source.txt", tree(tmp_path / "a", 10), LABELS["names"])
    (tmp_path / "a" / "cat" / "03.png").unlink()
    task = opened(source_image_root=source, holdout=0)
    assert len(task.labelled(PHOTO, 15)["source"].batch(0)[1]) == 15
    assert task.left_out == {"No such file or directory": [str(tmp_path / "a" / "cat" / "03.png")]}
    assert task.images == {"source train": 14}
    strict = opened(source_image_root=source, holdout=0, strict=True)
    fails(lambda: strict.labelled(PHOTO, 15)["source"].batch(0), "03.png", "No such file")


@pytest.mark.parametrize(
    "content, parts",
    [
        (b"", ["lists no image"]),
        (b"\xff\xfe\0", ["no UTF-8 text"]),
        (b"a/cat/00.png cat\na/cat/01.png\n", ["line 2", "no label"]),
        (b"a/cat/00.png cat\na/cat/00.png dog\n", ["line 2", "two labels"]),
        (b"a/cat/00.png cat\nnonsense\n", ["line 2", "path label"]),
        (b"a/cat/00.png cat\na\0b cat\n", ["line 2", "path label"]),
        (b"a/cat/00.png cat\n", ["1 class (cat)", "two or more"]),
    ],
)
def test_wrong_lists_are_refused(tmp_path, content, parts):
    (tmp_path / "list.txt").write_bytes(content)
    fails(lambda: opened(source_image_root=tmp_path / "list.txt"), "source_image_root", *parts)


# Classes match by name


def test_a_class_missing_in_the_target_is_said(tmp_path, caplog):
    with caplog.at_level("INFO", logger="run"):
        task = opened(
            source_image_root=tree(tmp_path / "a", 10),
            target_image_root=tree(tmp_path / "b", 20, classes=("cat", "emu")),
        )
    assert "target target: has no class dog" in caplog.text
    found, labels = everything(task.test(PHOTO)["target"])
    assert sorted(set(labels)) == [0, 2] and (found[:, 1] == 50 * labels).all()
    (tmp_path / "b" / "dog").mkdir()
    task = opened(source_image_root=tmp_path / "a", target_image_root=tmp_path / "b")
    assert sorted(set(everything(task.test(PHOTO)["target"])[1])) == [0, 2]


@pytest.mark.parametrize("kind", ["folders", "lists"])
def test_a_class_that_only_the_target_has_is_an_error_that_names_it(tmp_path, kind):
    source, target = tree(tmp_path / "a"), tree(tmp_path / "b", classes=("dog", "emu", "fox"))
    if kind == "lists":
        source = listed(tmp_path / "a.txt", source, LABELS["names"])
        target = listed(tmp_path / "b.txt", target, LABELS["names"], ("dog", "emu", "fox"))
    fails(lambda: opened(source_image_root=source, target_image_root=target), "class fox", "in no source")


def test_domains_without_a_common_class_are_refused(tmp_path):
    roots = tree(tmp_path / "a"), tree(tmp_path / "b", classes=("fox", "gnu"))
    call = functools.partial(opened, source_image_root=roots[0], target_image_root=roots[1])
    fails(call, "no class in common", "cat, dog, emu", "fox, gnu")


def test_one_class_is_nothing_to_learn(tmp_path):
    fails(lambda: opened(source_image_root=tree(tmp_path / "a", classes=("cat",))), "1 class (cat)")


def test_the_classes_of_a_model_are_compared_by_name(tmp_path):
    folder(tmp_path)
    assert opened(CLASSES, dataset_path=tmp_path).classes == CLASSES
    assert opened(3, dataset_path=tmp_path).classes == CLASSES
    fails(lambda: opened(4, dataset_path=tmp_path), "3 classes", "the model has 4")
    fails(lambda: opened(("cat", "dog", "fox"), dataset_path=tmp_path), "only in the data: emu")
    fails(lambda: opened((*CLASSES, "fox"), dataset_path=tmp_path), "only in the model: fox")
    # The order is the model's, whatever the folders say.
    backwards = opened(CLASSES[::-1], dataset_path=tmp_path)
    found, labels = everything(backwards.test(PHOTO)["val"])
    assert (found[:, 1] == 100 - 50 * labels).all()


def test_num_classes_must_be_right_where_it_is_given(tmp_path):
    folder(tmp_path)
    assert opened(dataset_path=tmp_path, num_classes=3).classes == CLASSES
    fails(lambda: opened(dataset_path=tmp_path, num_classes=4), "num_classes: 4", "3 classes (cat, dog, emu)")


def test_a_class_without_training_images_is_named(tmp_path):
    tree(tmp_path / "a", count=1)
    task = opened(source_image_root=tmp_path / "a", holdout=0.9)
    fails(lambda: task.labelled(PHOTO, 1), "no training image of class", "lower holdout")


# How images vary


def test_the_keys_win_over_the_network_s_own_variation(tmp_path):
    folder(tmp_path)
    network = Preparation(16, crop_scale_min=0.3, flip=True)
    for changes, expected in (
        ({}, (0.3, True)),
        ({"crop_scale_min": 1.0}, (1.0, True)),
        ({"flip": "false"}, (0.3, False)),
    ):
        loader = opened(dataset_path=tmp_path, **changes).labelled(network, 4)["train"]
        assert (loader.preparation.crop_scale_min, loader.preparation.flip) == expected
    for changes in ({"flip": "true"}, {"augment": "flip"}):
        loader = opened(dataset_path=tmp_path, **changes).labelled(Preparation(16), 4)["train"]
        assert loader.preparation.flip and loader.plan.augment is None
    assert opened(dataset_path=tmp_path, augment="shift").labelled(network, 4)["train"].plan.augment


def test_keys_know_what_they_are():
    table = keys.keys(source_dataset_name="mnist", holdout=0.3)
    assert table["source_dataset_name"].default == "mnist" and table["holdout"].default == 0.3
    places = {name for name in table if name.endswith(("_root", "_path"))} | {"list_classes"}
    assert {name for name, key in table.items() if key.path} == places
    volatile = places | {"num_parallel_workers", "cache", "download"}
    assert {name for name, key in table.items() if key.volatile} == volatile
    with pytest.raises(AssertionError, match="no keys of data"):
        keys.keys(sauce="mnist")


# Roles


def batches(task, preparation):
    """Everything a method can get of a task: arrays by name; test accuracy's labels are not among it."""
    target = task.unlabelled(preparation, 6)["target"]
    given = {f"unlabelled {step}": target.batch(step) for step in range(4)}
    for name, loader in (task.held_out(preparation) or {}).items():
        if name == "target":
            given |= {f"held out {index}": batch for index, batch in enumerate(loader)}
    return given


def poisoned_arrays(monkeypatch):
    """All labels of target sets are lies: 9 - label."""
    load = data.load

    def lie(name, root, split, download=False):
        loaded = load(name, root, split, download)
        return loaded._replace(labels=9 - loaded.labels) if name != "demo_digits" else loaded

    monkeypatch.setattr(forms.data, "load", lie)
    monkeypatch.setattr("src.data.sets.data.load", lie)


TARGETS = {
    "pair": {
        "source_dataset_name": "demo_digits",
        "target_dataset_name": "usps",
        "target_augment": "intensity",
    },
    "set": {"domain_set": "digits", "target_domain": "usps", "source_domains": "mnist", "holdout": 0.2},
}


@pytest.mark.parametrize("form", TARGETS)
def test_labels_of_digits_change_nothing_a_method_is_given_of_a_target(tmp_path, monkeypatch, form):
    root = write_digits(tmp_path / "digits")
    roots = {f"{name}_image_root": root for name in ("mnist", "mnist_m", "usps", "target")}
    honest = batches(opened(**TARGETS[form], **roots), Preparation(28))
    poisoned_arrays(monkeypatch)
    lied_to = batches(opened(**TARGETS[form], **roots), Preparation(28))
    assert honest.keys() == lied_to.keys() and any(name.startswith("held out") for name in honest)
    for name, (images, labels) in honest.items():
        np.testing.assert_array_equal(images, lied_to[name][0])
        for found in (labels, lied_to[name][1]):
            assert found is None if name.startswith("unlabelled") else (found == -1).all()


@pytest.mark.parametrize("split", ["transductive", "holdout"])
@pytest.mark.parametrize("kind", ["folder", "split", "list"])
def test_labels_of_files_change_nothing_a_method_is_given_of_a_target(tmp_path, split, kind):
    """The same pictures under the same names; the folders they lie in, or their labels, are changed about."""
    given = []
    for truth in (CLASSES, ("emu", "cat", "dog")):
        home = tmp_path / truth[0] / "b"
        lines = []
        for number in range(15):
            name = truth[number % 3]
            folders = ("train", "val") if kind == "split" else ("",)
            for part in folders:
                where = home / part / (name if kind != "list" else "")
                draw(where / f"{number:02}.png", 20, 5 * number)
            lines.append(f"b/{number:02}.png {name}")
        if kind == "list":
            (home.parent / "b.txt").write_text("\n".join(lines))
        target = home if kind != "list" else home.parent / "b.txt"
        task = opened(
            source_image_root=tree(tmp_path / "a", 10),
            target_image_root=target,
            target_split=split,
            holdout=0.4,
        )
        loader = task.unlabelled(PHOTO, 3)["target"]
        shown = [loader.batch(step) for step in range(loader.steps_per_epoch)]
        assert all(labels is None for _, labels in shown) and loader.labels is None
        given.append([tuple(colour) for images, _ in shown for colour in colours(images)])
    if kind == "list":
        assert given[0] == given[1]
    elif split == "transductive" or kind == "split":  # the order goes by paths
        assert sorted(given[0]) == sorted(given[1])
    assert len(given[0]) == len(given[1]) == (15 if split == "transductive" or kind == "split" else 9)


def test_an_unlabelled_loader_holds_no_label_anywhere(tmp_path):
    """Not even where nobody would look for it."""
    task = opened(source_image_root=tree(tmp_path / "a"), target_image_root=tree(tmp_path / "b", 20))
    loader = task.unlabelled(PHOTO, 5)["target"]
    loader.batch(0)
    assert loader.labels is None and loader.reader._groups is None and loader.reader._names is None


def test_what_is_read_on_resume_is_the_same(tmp_path):
    """Moved data, another number of threads, and a cache change no batch."""
    folder(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    network = Preparation(16, crop_scale_min=0.3, flip=True)
    first = opened(dataset_path=tmp_path / "one").labelled(network, 4)["train"]
    other = opened(dataset_path=tmp_path / "two", cache="memory", num_parallel_workers=1)
    second = other.labelled(network, 4)["train"]
    for step in (0, 5, 2):
        np.testing.assert_array_equal(first.batch(step)[0], second.batch(step)[0])


def test_photographs_of_a_camera_stand_upright_in_training_and_evaluation(tmp_path):
    left, right = np.zeros((16, 20, 3), np.uint8), np.full((16, 20, 3), 200, np.uint8)
    picture = Image.fromarray(np.concatenate((left, right), 1))
    exif = Image.Exif()
    exif[0x112] = 3  # lying on its head
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            Path(tmp_path, part, name).mkdir(parents=True)
            for number in range(3):
                picture.save(tmp_path / part / name / f"{number}.jpg", exif=exif)
    task = opened(dataset_path=tmp_path)
    for images in (task.labelled(PHOTO, 4)["train"].batch(0)[0], next(iter(task.test(PHOTO)["val"]))[0]):
        assert (images[..., :4].mean((1, 2, 3)) > 0.7).all() and (
            images[..., -4:].mean((1, 2, 3)) < 0.1
        ).all()
