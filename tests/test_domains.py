"""Sets of domains: who trains on what, and what is said about folders, lists and names that are wrong."""

import functools
import gzip
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import fails, quick
from hypothesis import given
from hypothesis import strategies as st

from model_utils.config import Config
from model_utils.device import Device
from model_utils.key import Key
from model_utils.keys import COMMON
from src.data import idx, mnist, rotated, sets, tasks
from src.data.domains import divide, held_out_mask, stratified, thin_out
from src.data.files import LeftOut
from src.data.keys import keys
from src.data.preparation import Preparation
from src.data.split import Split
from src.sweeps import leave_one_out

DATA_ROOT = os.environ.get("DATA_ROOT")
CPU = Device("CPU")
KEYS = {**COMMON, **keys(domain_set="pacs"), "num_classes": Key(0, "")}
PER_CLASS = 10
CLASSES = ("cat", "dog", "emu")
DOMAINS = ("ink", "oil", "pencil")


def configure(**changes):
    return Config({name: key.default for name, key in KEYS.items()}, KEYS).replace(**changes)


def opened(settings, place=CPU, **more):
    """The task of a run that generalises over two or more sources."""
    return tasks.open_task(settings, place, **{"least_sources": 2, **more})


def trained(settings, size=4, place=CPU, prepared=None, **more):
    return opened(settings, place).labelled(prepared or Preparation(16), size, joined=False, **more)


def evaluated(settings, place=CPU):
    return opened(settings, place).test(Preparation(16))


def kept_out(settings):
    return opened(settings).held_out(Preparation(16), target=False)


# Small data


def picture(domain, label, number, size=16):
    """Its mean colour says what it is: red 10·domain, green 50·label, blue 5·number."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:] = (10 * domain, 50 * label, 5 * number)
    return image


@pytest.fixture(scope="module")
def tree_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("domains") / "set"
    for d, domain in enumerate(DOMAINS):
        for label, name in enumerate(CLASSES):
            (root / domain / name).mkdir(parents=True)
            for number in range(PER_CLASS):
                path = str(root / domain / name / f"pic_{number:03}.png")
                assert cv2.imwrite(path, picture(d, label, number)[:, :, ::-1])
    return root


@pytest.fixture
def tree(tree_once, tmp_path):
    return Path(shutil.copytree(tree_once, tmp_path / "set"))


def folders(tree, **changes):
    given = {"domain_set": "folders", "domains_image_root": tree, "target_domain": "oil"}
    return configure(**{**given, **changes})


def all_of(loader):
    """Everything a test loader hands out: colours uint8 (N, 3) of the first pixel, labels (N,)."""
    images, labels = zip(*loader, strict=True)
    return np.rint(np.concatenate(images)[:, :, 0, 0] * 255).astype(int), np.concatenate(labels)


def colours(listing):
    """The colours of a listing's pictures, which say what they are."""
    return {tuple(cv2.imread(path)[0, 0, ::-1].tolist()) for path in listing.files}


def domain(settings, name):
    """One source domain of a set of folders."""
    return sets.SETS[settings.domain_set](settings, LeftOut()).domain(name, target=False)


@pytest.fixture
def small_mnist(tmp_path):
    """60 training and 12 test images, each of one grey value of its own."""
    root = tmp_path / "mnist"
    root.mkdir()
    for split, count in (("train", 60), ("test", 12)):
        images = np.repeat(np.arange(1, count + 1, dtype=np.uint8), 28 * 28).reshape(count, 28, 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for stem, array in zip(mnist.FILES[split], (images, labels), strict=True):
            (root / f"{stem}.gz").write_bytes(gzip.compress(idx.header(array.shape) + array.tobytes()))
    return root


# Dividing


@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 99))
def test_a_share_is_taken_from_each_class_in_proportion(labels, share, seed):
    labels = np.array(labels)
    order = np.random.RandomState(seed).permutation(len(labels))
    count = round(share * len(labels))
    chosen = stratified(labels, count, order)
    assert len(chosen) == len(set(chosen)) == count
    for label in np.unique(labels):
        members = (labels == label).sum()
        assert abs((labels[chosen] == label).sum() - share * members) <= 1.5


def test_within_a_class_the_first_of_the_order_are_taken():
    labels, order = np.array([0, 1] * 4), np.array([6, 7, 4, 5, 2, 3, 0, 1])
    np.testing.assert_array_equal(stratified(labels, 4, order), [4, 5, 6, 7])
    np.testing.assert_array_equal(held_out_mask(labels, 0.5, order), [0, 0, 0, 0, 1, 1, 1, 1])


def test_held_out_and_training_parts_share_nothing_and_leave_nothing():
    split = Split(np.arange(50, dtype=np.uint8).reshape(50, 1, 1), np.arange(50, dtype=np.int32) % 5)
    kept, held = divide(split, 0.2)
    assert len(kept.labels) == 40 and np.bincount(held.labels).tolist() == [2] * 5
    assert sorted([*kept.images.flat, *held.images.flat]) == list(range(50))
    assert (kept.images.ravel() % 5 == kept.labels).all()


def test_thinning_out_goes_by_seed_and_keeps_all_classes():
    split = Split(np.arange(50, dtype=np.uint8).reshape(50, 1, 1), np.arange(50, dtype=np.int32) % 5)
    one, other = (thin_out(split, 10, seed, "a") for seed in (0, 1))
    assert np.bincount(one.labels).tolist() == np.bincount(other.labels).tolist() == [2] * 5
    assert set(one.images.flat) != set(other.images.flat)
    assert thin_out(split, 0, 0, "a") is split
    fails(lambda: thin_out(split, 51, 0, "ink"), "train_size_per_domain", 51, 50, "ink")


# Rotated digits


def test_rotation_by_90_degrees_is_exact_and_counter_clockwise():
    images = np.random.RandomState(0).randint(0, 256, (3, 28, 28)).astype(np.uint8)
    np.testing.assert_array_equal(rotated.rotate(images, 90), np.rot90(images, axes=(1, 2)))
    assert rotated.rotate(images, 0) is images


@pytest.mark.parametrize("degrees", [15.0, 75.0])
def test_rotation_is_bilinear_about_the_centre(degrees):
    """Against bilinear interpolation written out; cv2 rounds positions to 1/32 of a pixel."""
    y, x = np.mgrid[:28, :28]
    image = np.rint(127 + 60 * np.sin(x / 5) + 60 * np.cos(y / 7)).astype(np.uint8)
    angle, centre = np.deg2rad(degrees), 13.5
    # Counter-clockwise on the screen, where y points down: output (x, y) comes from the turned-back place.
    u = np.cos(angle) * (x - centre) - np.sin(angle) * (y - centre) + centre
    v = np.sin(angle) * (x - centre) + np.cos(angle) * (y - centre) + centre
    padded = np.pad(image.astype(float), 16)
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    right, below = u - left, v - top
    expected = sum(
        weight * padded[top + dy + 16, left + dx + 16]
        for dy, dx, weight in (
            (0, 0, (1 - below) * (1 - right)),
            (0, 1, (1 - below) * right),
            (1, 0, below * (1 - right)),
            (1, 1, below * right),
        )
    )
    difference = np.abs(rotated.rotate(image[None], degrees)[0] - expected)
    inside = (x - centre) ** 2 + (y - centre) ** 2 < 11**2
    assert (
        difference[inside].max() <= 2
    )  # the edge against 0 is steep: there 1/32 of a pixel is 8 grey values
    assert difference.max() <= 10


def test_rotated_mnist_gives_each_domain_a_sixth_of_its_own(small_mnist):
    made = rotated.RotatedMnist(configure(mnist_image_root=small_mnist))

    def middles(split):  # the middle of an image of one grey value stays that value
        return split.images[:, 14, 14].astype(int)

    for split, count in (("train", 60), ("test", 12)):
        parts = [middles(made.load(name, split)) for name in made.names]
        assert [len(set(part)) for part in parts] == [count // 6] * 6
        assert set(np.concatenate(parts)) == set(range(1, count + 1))
    assert set(middles(made.target_test("75"))) == set(range(1, 13))
    for name in made.names:
        part = made.load(name, "train")
        assert ((middles(part) - 1) % 10 == part.labels).all()


def test_rotated_mnist_turns_each_domain_by_its_angle(small_mnist):
    made = rotated.RotatedMnist(configure(mnist_image_root=small_mnist))
    upright, oblique = made.load("0", "test").images[0], made.load("45", "test").images[0]
    assert (upright > 0).all()
    assert oblique[0, 0] == oblique[-1, -1] == 0  # the corners came from outside
    assert oblique[0, 14] > 0 and oblique[14, 14] > 0


def test_the_demo_needs_no_files_and_its_domains_share_no_training_digit(monkeypatch):
    monkeypatch.setattr(rotated, "rotate", lambda images, degrees: images)
    demo = rotated.Demo(configure())
    assert len(demo.names) >= 4
    trained = [{image.tobytes() for image in demo.load(name, "train").images} for name in demo.names]
    tested = {image.tobytes() for image in demo.load("0", "test").images}
    assert all(len(part) > 200 for part in trained)
    for i, part in enumerate(trained):
        assert not part & tested
        assert not any(part & other for other in trained[i + 1 :])


def test_digits_are_read_from_their_roots_and_hold_out_the_same_digits(small_mnist):
    roots = {"mnist_image_root": small_mnist, "mnist_m_image_root": small_mnist}
    settings = configure(domain_set="digits", target_domain="usps", **roots)
    first = domain(settings, "mnist")
    kept, held = first.part("train"), first.part("held_out")
    assert (len(kept.labels), len(held.labels), len(first.part("test").labels)) == (54, 6, 12)
    fails(lambda: domain(settings, "mnist_m").part("train"), "MNIST-M", small_mnist)
    same, _ = divide(Split(kept.images, kept.labels), 0.5)
    again, _ = divide(Split(255 - kept.images, kept.labels), 0.5)
    np.testing.assert_array_equal(same.images, 255 - again.images)


# What reaches training, and what tests


@pytest.mark.parametrize("target", ["0", "50"])
def test_loaders_are_those_of_the_sources_in_a_fixed_order(target):
    settings = configure(domain_set="demo", target_domain=target)
    loaders = trained(settings, 8, prepared=Preparation(28))
    expected = [name for name in rotated.Demo.names if name != target]
    assert list(loaders) == list(kept_out(settings)) == expected
    assert list(evaluated(settings)) == [*expected, target]
    for loader in loaders.values():
        images, labels = loader.batch(3)
        assert images.shape == (8, 3, 28, 28) and images.dtype == np.float32
        assert 0 <= images.min() and 0.5 < images.max() <= 1
        assert labels.dtype == np.int32 and labels.shape == (8,)
        np.testing.assert_array_equal(images, loader.batch(3)[0])
    assert opened(settings).classes == tuple("0123456789")


def test_folders_hand_out_the_right_pictures_with_the_right_labels(tree):
    settings = folders(tree, holdout=0.2)
    loaders, held, tests = trained(settings, 24), kept_out(settings), evaluated(settings)
    assert list(loaders) == list(held) == ["ink", "pencil"] and list(tests) == ["ink", "pencil", "oil"]
    for name in ("ink", "pencil"):
        images, labels = loaders[name].batch(0)
        colour = np.rint(images[:, :, 0, 0] * 255).astype(int)
        assert (colour[:, 0] == 10 * DOMAINS.index(name)).all() and (colour[:, 1] == 50 * labels).all()
        kept, held_labels = all_of(held[name])
        assert np.bincount(held_labels).tolist() == [2, 2, 2] and (kept[:, 1] == 50 * held_labels).all()
        assert not {tuple(c) for c in colour} & {tuple(c) for c in kept}
        assert len({tuple(c) for c in colour}) == 24
        np.testing.assert_array_equal(all_of(tests[name])[0], kept)
    target, labels = all_of(tests["oil"])
    assert len(target) == 3 * PER_CLASS and (target[:, 0] == 10).all() and (target[:, 1] == 50 * labels).all()
    assert opened(settings).classes == CLASSES == tests["oil"].classes


def test_several_sources_can_be_joined_beside_an_unlabelled_target(tree):
    task = opened(folders(tree, holdout=0.2, seed=3), least_sources=1)
    source = task.labelled(Preparation(16), 48)["source"]
    target = task.unlabelled(Preparation(16), 30)["target"]
    images, labels = source.batch(0)
    colour = np.rint(images[:, :, 0, 0] * 255).astype(int)
    assert len({tuple(c) for c in colour}) == 48 and set(colour[:, 0]) == {0, 20}
    assert (colour[:, 1] == 50 * labels).all()
    images, labels = target.batch(0)
    assert labels is None and set(np.rint(images[:, 0, 0, 0] * 255)) == {10}
    assert task.images == {"source train": 48, "oil train": 30}


def test_which_files_are_held_out_depends_on_their_names_only(tree):
    first = colours(domain(folders(tree, holdout=0.3), "ink").part("held_out"))
    assert first == colours(domain(folders(tree, holdout=0.3, seed=5), "ink").part("held_out"))
    assert first < colours(domain(folders(tree, holdout=0.4), "ink").part("held_out"))
    pair = configure(
        domain_set="", source_image_root=tree / "ink", target_image_root=tree / "oil", holdout=0.3
    )
    (source,) = opened(pair).form.sources
    assert colours(source.part("held_out")) == first


def test_the_training_part_of_a_target_is_not_even_read(tree):
    for path in (tree / "oil").rglob("*.png"):
        path.write_bytes(b"no picture")
    settings = folders(tree)
    assert list(trained(settings)) == ["ink", "pencil"]
    kept_out(settings)
    fails(lambda: all_of(evaluated(settings)["oil"]), "oil", "neither JPEG")


def test_a_target_may_be_divided_too_without_a_look_at_its_classes(tree):
    def target(root):
        return opened(folders(root, target_split="holdout", holdout=0.2)).form.target

    def names(listing):
        return {os.path.basename(path) for path in listing.files}

    parts = target(tree)
    train, test = (set(part.names()) for part in (parts.part("target_train"), parts.part("target_test")))
    assert len(train) == 24 and len(test) == 6 and not train & test
    flat = tree.parent / "flat"
    shutil.copytree(tree, flat)
    for path in sorted((flat / "oil").rglob("*.png")):
        path.rename(flat / "oil" / f"{path.parent.name}_{path.name}")
    for name in CLASSES:
        (flat / "oil" / name).rmdir()
    task = opened(folders(flat))
    assert len(task.form.target.part("target_train").files) == 30 and list(task.test(Preparation(16))) == [
        "ink",
        "pencil",
    ]


def test_a_target_without_images_for_training_is_still_tested_on(tree):
    for path in (tree / "oil").rglob("*.png"):
        if not path.name.endswith("0.png"):
            path.unlink()
    assert evaluated(folders(tree))["oil"].total == 3


def test_pictures_are_scaled_to_the_size_asked_for(tree):
    for size in (8, 40):
        loaders = trained(folders(tree), prepared=Preparation(size, flip=True))
        assert loaders["ink"].batch(0)[0].shape == (4, 3, size, size)


def test_without_a_held_out_part_sources_have_no_test_images(tree):
    settings = folders(tree, holdout=0)
    assert kept_out(settings) is None
    assert list(evaluated(settings)) == ["oil"]
    assert trained(settings, 30)["ink"].steps_per_epoch == 1


def test_ranks_share_a_domain_without_overlap(tree):
    settings = folders(tree, holdout=0)
    seen = []
    for rank in range(2):
        images, _ = trained(settings, 15, Device("CPU", rank, 2))["ink"].batch(0)
        seen += [tuple(colour) for colour in np.rint(images[:, :, 0, 0] * 255).astype(int)]
    assert len(set(seen)) == 30
    totals = [evaluated(settings, Device("CPU", rank, 2))["oil"] for rank in range(2)]
    assert sum(len(all_of(loader)[1]) for loader in totals) == totals[0].total == 30


def test_other_files_are_named_and_left_out(tree, caplog):
    (tree / "ink" / "cat" / "readme.txt").write_text("hello")
    (tree / "ink" / "cat" / ".hidden.png").write_text("hello")
    (tree / "lists").mkdir()
    task = opened(folders(tree, holdout=0))
    with caplog.at_level("INFO", logger="run"):
        task.labelled(Preparation(16), 4, joined=False)
    assert task.images["ink train"] == 30 and "cat/readme.txt" in caplog.text
    assert set(task.left_out) == {"hidden and system files", "files that are no images by their names"}


# Official lists


def write_lists(tree, first=1, cut=3, change=None):
    """Lists as published: the first `cut` images of a class are crossval, the others train; test: all."""
    root = tree / "splits"
    root.mkdir()
    for domain in DOMAINS:
        lines = {"train": [], "crossval": [], "test": []}
        for label, name in enumerate(CLASSES):
            for number in range(PER_CLASS):
                line = f"{domain}/{name}/pic_{number:03}.png {label + first}"
                lines["crossval" if number < cut else "train"].append(line)
                lines["test"].append(line)
        for part, content in lines.items():
            if change and (domain, part) in change:
                content = change[domain, part](content)
            (root / f"{domain}_{part}_kfold.txt").write_text("\n".join(content) + "\n")
    return root


def test_official_lists_say_what_trains_and_labels_are_counted_from_1(tree):
    write_lists(tree)
    settings = folders(tree, kfold_root="splits", holdout=0.5)
    ink = domain(settings, "ink")
    train, held = ink.part("train"), ink.part("held_out")
    assert colours(train) == {(0, 50 * label, 5 * n) for label in range(3) for n in range(3, PER_CLASS)}
    assert colours(held) == {(0, 50 * label, 5 * n) for label in range(3) for n in range(3)}
    assert [os.path.basename(os.path.dirname(path)) for path in train.files] == [
        CLASSES[label] for label in train.labels
    ]
    assert {name: one.total for name, one in evaluated(settings).items()} == {
        "ink": 9,
        "pencil": 9,
        "oil": 30,
    }
    absolute = domain(folders(tree, kfold_root=tree / "splits"), "ink")
    assert colours(absolute.part("train")) == colours(train)
    oil = opened(settings).form.target, opened(settings.replace(target_split="holdout")).form.target
    assert [(len(one.part("target_train").files), len(one.part("target_test").files)) for one in oil] == [
        (30, 30),
        (21, 9),
    ]


def test_lists_with_labels_from_0_are_refused(tree):
    write_lists(tree, first=0)
    settings = folders(tree, kfold_root="splits")
    fails(lambda: trained(settings), "ink_train_kfold.txt, line 1", "seem to count from 0")


def replaced(old, new):
    return lambda lines: [line.replace(old, new) for line in lines]


@pytest.mark.parametrize(
    "change, parts",
    [
        (
            replaced("dog/pic_005.png 2", "dog/pic_005.png 3"),
            ["label 3", "class dog is number 2 of 3", "line 10"],
        ),
        (replaced("ink/cat", "../ink/cat"), ["is not `ink/<class>/<file> label`"]),
        (replaced("ink/cat", "oil/cat"), ["is not `ink/<class>/<file> label`"]),
        (replaced("ink/cat", "ink/cow"), ["is not `ink/<class>/<file> label`"]),
        (replaced(" 1", " one"), ["is not `ink/<class>/<file> label`"]),
        (replaced("pic_003.png 1", "pic_002.png 1"), ["cat/pic_002.png", "ink_crossval_kfold.txt", "too"]),
        (replaced("pic_003.png 1", "pic_004.png 1"), ["line 2", "listed twice"]),
        (lambda lines: [], ["lists no image"]),
        (lambda lines: ["\0\0\0"], ["is not `ink/<class>/<file> label`"]),
        (lambda lines: [line for line in lines if "/emu/" not in line], ["ink", "no training image", "emu"]),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tree, change, parts):
    write_lists(tree, change={("ink", "train"): change})
    fails(lambda: trained(folders(tree, kfold_root="splits")), "ink", *parts)


def test_a_listed_image_that_is_missing_is_left_out_or_refused(tree, caplog):
    write_lists(tree, change={("ink", "train"): replaced("pic_007", "pic_700")})
    settings = folders(tree, kfold_root="splits")
    task = opened(settings)
    task.labelled(Preparation(16), 4, joined=False)
    assert task.images == {"ink train": 18, "pencil train": 21}
    assert task.left_out["listed images that are missing"] == [f"ink/{name}/pic_700.png" for name in CLASSES]
    assert "ink_train_kfold.txt" in caplog.text
    fails(lambda: trained(settings.replace(strict=True)), "pic_700.png", "strict")


def test_missing_and_binary_lists(tree):
    settings = folders(tree, kfold_root="splits")
    fails(lambda: trained(settings), "kfold_root", "splits", "no folder")
    root = write_lists(tree)
    (root / "ink_train_kfold.txt").write_bytes(b"\xff\xfe\x00")
    fails(lambda: trained(settings), "ink_train_kfold.txt", "no UTF-8 text")
    (root / "ink_train_kfold.txt").unlink()
    fails(lambda: trained(settings), "ink_train_kfold.txt", "No such file")


# Bad input


def test_an_unknown_target_names_the_nearest_domain():
    fails(
        lambda: opened(configure(domain_set="digits", target_domain="MNISTM")),
        "target_domain",
        "'MNISTM'",
        "did you mean mnist_m?",
        "mnist, mnist_m, usps",
    )
    message = fails(lambda: opened(configure(domain_set="demo", target_domain="")), "0, 25")
    assert "did you mean" not in message


def test_fewer_sources_than_a_method_needs_are_refused(tree):
    shutil.rmtree(tree / "ink")
    fails(lambda: opened(folders(tree)), "fewer than two source domains", "oil, pencil")
    assert list(opened(folders(tree), least_sources=1).test(Preparation(16))) == ["pencil", "oil"]
    shutil.rmtree(tree / "pencil")
    fails(lambda: opened(folders(tree), least_sources=1), "no source domain is left")


def test_domains_that_have_the_name_of_the_other_role_are_refused(tree):
    (tree / "ink").rename(tree / "target")
    (tree / "oil").rename(tree / "source")
    fails(lambda: opened(folders(tree, target_domain="pencil")), "target would be a source", "rename")
    fails(lambda: opened(folders(tree, target_domain="source"), least_sources=0), "rename that folder")
    task = opened(folders(tree, target_domain="target"))
    assert [source.name for source in task.form.sources] == ["pencil", "source"]
    (tree / "target").rename(tree / "ink")
    fails(lambda: opened(folders(tree, target_domain="source")), "source would be a target", "rename")
    leaving = folders(tree, target_domain="pencil").replace(method="supervised")
    fails(lambda: leave_one_out.words(leaving), "source would be a target")


def test_source_domains_choose_some_of_the_others(tree):
    def names(settings):
        return [source.name for source in opened(settings).form.sources]

    assert names(folders(tree, source_domains="ink, pencil")) == ["ink", "pencil"]
    demo = configure(domain_set="demo", target_domain="25", source_domains="75,0")
    assert names(demo) == ["0", "75"]  # in the set's order
    assert list(evaluated(demo)) == ["0", "75", "25"]
    for wrong in ("oil", "chalk"):
        refused = folders(tree, source_domains=f"ink,{wrong}")
        fails(functools.partial(opened, refused), "source_domains", wrong, "ink, pencil")
    alone = folders(tree, source_domains="ink")
    fails(lambda: opened(alone), "fewer than two source domains", "source_domains is 'ink'")


def test_a_class_that_only_some_sources_have_is_refused_by_their_names(tree):
    shutil.rmtree(tree / "pencil" / "dog")
    fails(lambda: opened(folders(tree)), "class dog", "is in domain ink but not in pencil")


def test_a_source_without_an_image_of_some_class_is_refused(tree):
    for path in (tree / "pencil" / "dog").iterdir():
        path.unlink()
    fails(lambda: trained(folders(tree)), "pencil/dog", "no image")


def test_num_classes_says_that_a_source_may_lack_a_class(tree):
    shutil.rmtree(tree / "pencil" / "dog")
    settings = folders(tree, num_classes=3, holdout=0)
    assert set(trained(settings)["pencil"].labels) == {0, 2} and opened(settings).classes == CLASSES
    fails(lambda: opened(folders(tree, num_classes=4)), "num_classes: 4", "cat, dog, emu")
    shutil.rmtree(tree / "ink" / "dog")
    fails(lambda: opened(settings), "num_classes: 3", "cat, emu")
    fails(lambda: opened(folders(tree)), "target oil", "class dog", "in no source")


def test_a_batch_larger_than_a_domain_names_its_key_and_the_domain(tree):
    call = functools.partial(trained, folders(tree, holdout=0), 31, key="meta_batch_size")
    fails(call, "meta_batch_size: 31", "30 training images", "ink")


def test_a_damaged_picture_is_left_out_or_refused(tree):
    path = tree / "pencil" / "emu" / "pic_004.png"
    path.write_bytes(path.read_bytes()[:-20])
    settings = folders(tree, holdout=0)
    assert len(trained(settings, 30)["pencil"].batch(0)[1]) == 30
    fails(lambda: trained(settings.replace(strict=True), 30)["pencil"].batch(0), path, "truncated PNG")


def test_pacs_has_its_seven_classes(tree):
    settings = folders(tree, domain_set="pacs")
    fails(lambda: opened(settings), "ink", "elephant")
    for name in DOMAINS:
        for label in sets.PACS_CLASSES:
            (tree / name / label).mkdir(exist_ok=True)
    fails(lambda: opened(settings), "unknown class", "cat")
    for path in (*tree.glob("*/cat"), *tree.glob("*/emu"), tree / "oil" / "horse"):
        shutil.rmtree(path)
    assert opened(settings).classes == sets.PACS_CLASSES  # a target may lack a class


@pytest.mark.parametrize("root", ["nowhere", "file"])
def test_a_root_that_is_no_folder(tmp_path, root):
    (tmp_path / "file").write_text("")
    fails(lambda: opened(folders(tmp_path / root)), "domains_image_root", root, "<domain>/<class>")


def test_pacs_is_looked_for_in_data_and_below_dataset_path(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = configure(domain_set="pacs", target_domain="oil")
    fails(lambda: opened(settings), "'data/pacs' is no folder")
    tree.rename(tmp_path / "pacs")
    fails(lambda: opened(settings.replace(dataset_path=str(tmp_path))), "pacs/ink", "class folder")


@pytest.mark.parametrize("changes", [{"domain_set": "pcas"}, {"holdout": 1.0}, {"augment": "mirror"}])
def test_values_out_of_range_are_refused(changes):
    fails(lambda: configure(**changes), next(iter(changes)), "allowed")


def test_the_real_pacs():
    root = Path(DATA_ROOT or "", "pacs")
    if not DATA_ROOT or not root.is_dir():
        pytest.skip("DATA_ROOT has no pacs")
    settings = configure(domains_image_root=root, target_domain="sketch")
    loaders, tests = trained(settings, 16), evaluated(settings)
    assert list(loaders) == ["art_painting", "cartoon", "photo"] and list(tests)[-1] == "sketch"
    for loader in loaders.values():
        assert set(loader.labels) == set(range(7))
    images, _ = next(iter(tests["sketch"]))
    assert np.mean(images[:, 0] == images[:, 2]) > 0.9  # sketches are grey
