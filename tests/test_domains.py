"""Sets of domains: who trains on what, and what is said about folders, lists and names that are wrong."""

import gzip
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_utils.config import Config
from model_utils.device import Device
from model_utils.errors import UserError
from model_utils.keys import COMMON
from src.data import domain_folders, domains, idx, mnist, rotated
from src.data.domain_set import divide, held_out_mask, stratified, thin_out
from src.data.split import Split

DATA_ROOT = os.environ.get("DATA_ROOT")
CPU = Device("CPU")
KEYS = {**COMMON, **domains.keys()}
PER_CLASS = 10
CLASSES = ("cat", "dog", "emu")
DOMAINS = ("ink", "oil", "pencil")


def configure(**changes):
    return Config({name: key.default for name, key in KEYS.items()}, KEYS).replace(**changes)


def fails(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message


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
    given = {"domain_set": "folders", "domains_image_root": tree, "target_domain": "oil", "image_size": 16}
    return configure(**{**given, **changes})


def all_of(loader):
    """Everything a test loader hands out: colours uint8 (N, 3) of the first pixel, labels (N,)."""
    images, labels = zip(*loader, strict=True)
    return np.rint(np.concatenate(images)[:, :, 0, 0] * 255).astype(int), np.concatenate(labels)


def colours(split):
    return {tuple(colour) for colour in split.images[:, 0, 0].tolist()}


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


@settings(max_examples=60, deadline=None)
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
    settings = configure(
        domain_set="rotated_mnist", target_domain="0", mnist_image_root=small_mnist, holdout=0
    )
    domain_set = rotated.RotatedMnist(settings)
    # The middle of an image of one grey value stays that value.
    middles = [set(domain_set.train(name).images[:, 14, 14].tolist()) for name in domain_set.names]
    assert [len(middle) for middle in middles] == [10] * 6
    assert set().union(*middles) == set(range(1, 61))
    tests = [set(domain_set.test(name).images[:, 14, 14].tolist()) for name in domain_set.names]
    assert [len(middle) for middle in tests] == [2] * 6 and set().union(*tests) == set(range(1, 13))
    assert set(domain_set.target_test("75").images[:, 14, 14].tolist()) == set(range(1, 13))
    for name in domain_set.names:
        split = domain_set.train(name)
        assert ((split.images[:, 14, 14].astype(int) - 1) % 10 == split.labels).all()


def test_rotated_mnist_turns_each_domain_by_its_angle(small_mnist):
    settings = configure(domain_set="rotated_mnist", target_domain="0", mnist_image_root=small_mnist)
    domain_set = rotated.RotatedMnist(settings)
    upright, oblique = domain_set.test("0").images[0], domain_set.test("45").images[0]
    assert (upright > 0).all()
    assert oblique[0, 0] == oblique[-1, -1] == 0  # the corners came from outside
    assert oblique[0, 14] > 0 and oblique[14, 14] > 0


def test_the_demo_needs_no_files_and_its_domains_share_no_training_digit(monkeypatch):
    monkeypatch.setattr(rotated, "rotate", lambda images, degrees: images)
    demo = rotated.Demo(configure(domain_set="demo", holdout=0))
    assert len(demo.names) >= 4
    trained = [{image.tobytes() for image in demo.train(name).images} for name in demo.names]
    tested = {image.tobytes() for image in demo.test("0").images}
    assert all(len(part) > 200 for part in trained)
    for i, part in enumerate(trained):
        assert not part & tested
        assert not any(part & other for other in trained[i + 1 :])


def test_digits_are_read_from_their_roots_and_hold_out_the_same_digits(small_mnist):
    settings = configure(
        domain_set="digits",
        target_domain="usps",
        mnist_image_root=small_mnist,
        mnist_m_image_root=small_mnist,
    )
    domain_set = rotated.Digits(settings)
    kept, held = domain_set.train("mnist"), domain_set.held_out("mnist")
    assert (len(kept.labels), len(held.labels), len(domain_set.test("mnist").labels)) == (54, 6, 12)
    fails(lambda: domain_set.train("mnist_m"), "MNIST-M", small_mnist)
    same, _ = divide(Split(kept.images, kept.labels), 0.5)
    again, _ = divide(Split(255 - kept.images, kept.labels), 0.5)
    np.testing.assert_array_equal(same.images, 255 - again.images)


# What reaches training, and what tests


@pytest.mark.parametrize("target", ["0", "50"])
def test_loaders_are_those_of_the_sources_in_a_fixed_order(target):
    settings = configure(domain_set="demo", target_domain=target)
    loaders = domains.build_loaders(settings, CPU, 8)
    expected = [name for name in rotated.Demo.names if name != target]
    assert list(loaders) == expected == domains.source_domains(settings)
    assert list(domains.held_out(settings, CPU)) == expected
    assert list(domains.test_sets(settings, CPU)) == [*expected, target]
    for loader in loaders.values():
        images, labels = loader.batch(3)
        assert images.shape == (8, 3, 28, 28) and images.dtype == np.float32
        assert 0 <= images.min() and 0.5 < images.max() <= 1
        assert labels.dtype == np.int32 and labels.shape == (8,)
        np.testing.assert_array_equal(images, loader.batch(3)[0])
    assert domains.class_count(settings) == 10 and domains.image_size(settings) == 28


def test_folders_hand_out_the_right_pictures_with_the_right_labels(tree):
    settings = folders(tree, holdout=0.2)
    loaders = domains.build_loaders(settings, CPU, 24)
    held, tests = domains.held_out(settings, CPU), domains.test_sets(settings, CPU)
    assert list(loaders) == list(held) == ["ink", "pencil"] and list(tests) == ["ink", "pencil", "oil"]
    for name in ("ink", "pencil"):
        images, labels = loaders[name].batch(0)
        trained = np.rint(images[:, :, 0, 0] * 255).astype(int)
        assert (trained[:, 0] == 10 * DOMAINS.index(name)).all() and (trained[:, 1] == 50 * labels).all()
        kept_out, held_labels = all_of(held[name])
        assert np.bincount(held_labels).tolist() == [2, 2, 2] and (kept_out[:, 1] == 50 * held_labels).all()
        assert not {tuple(c) for c in trained} & {tuple(c) for c in kept_out}
        assert len({tuple(c) for c in trained}) == 24
        np.testing.assert_array_equal(all_of(tests[name])[0], kept_out)
    target, labels = all_of(tests["oil"])
    assert len(target) == 3 * PER_CLASS and (target[:, 0] == 10).all() and (target[:, 1] == 50 * labels).all()
    assert domains.class_count(settings) == 3


def test_which_files_are_held_out_depends_on_their_names_only(tree):
    first = domain_folders.Folders(folders(tree, holdout=0.3))
    other_seed = domain_folders.Folders(folders(tree, holdout=0.3, seed=5, target_domain="ink"))
    assert colours(first.held_out("ink")) == colours(other_seed.held_out("ink"))
    more = domain_folders.Folders(folders(tree, holdout=0.4))
    assert colours(first.held_out("ink")) < colours(more.held_out("ink"))


def test_the_training_part_of_a_target_is_not_even_read(tree, monkeypatch):
    for path in (tree / "oil").rglob("*.png"):
        path.write_bytes(b"no picture")
    settings = folders(tree)
    assert list(domains.build_loaders(settings, CPU, 4)) == ["ink", "pencil"]
    domains.held_out(settings, CPU)
    fails(lambda: domains.test_sets(settings, CPU), "oil", "not a readable photograph")


def test_a_target_without_images_for_training_is_still_tested_on(tree):
    for path in (tree / "oil").rglob("*.png"):
        if not path.name.endswith("0.png"):
            path.unlink()
    assert domains.test_sets(folders(tree), CPU)["oil"].total == 3


def test_pictures_are_scaled_to_the_size_asked_for(tree):
    for size in (8, 40):
        images, _ = domains.build_loaders(folders(tree, image_size=size), CPU, 4)["ink"].batch(0)
        assert images.shape == (4, 3, size, size)
    assert domains.image_size(folders(tree, image_size=0)) == 227


def test_without_a_held_out_part_sources_have_no_test_images(tree):
    settings = folders(tree, holdout=0)
    assert domains.held_out(settings, CPU) is None
    assert list(domains.test_sets(settings, CPU)) == ["oil"]
    assert len(domains.build_loaders(settings, CPU, 30)["ink"].images) == 30


def test_ranks_share_a_domain_without_overlap(tree):
    settings = folders(tree, holdout=0)
    seen = []
    for rank in range(2):
        images, _ = domains.build_loaders(settings, Device("CPU", rank, 2), 15)["ink"].batch(0)
        seen += [tuple(colour) for colour in np.rint(images[:, :, 0, 0] * 255).astype(int)]
    assert len(set(seen)) == 30
    totals = [domains.test_sets(settings, Device("CPU", rank, 2))["oil"] for rank in range(2)]
    assert sum(len(loader.labels) for loader in totals) == totals[0].total == 30


def test_flip_mirrors_about_half_of_the_pictures():
    images = np.arange(200 * 3 * 2 * 4, dtype=np.float32).reshape(200, 3, 2, 4)
    flipped = domains.flip(images.copy(), np.random.default_rng(0))
    mirrored = (flipped == images[:, :, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flipped == images).all(axis=(1, 2, 3))).all() and 70 < mirrored.sum() < 130


def test_other_files_are_named_and_left_out(tree, caplog):
    (tree / "ink" / "cat" / "readme.txt").write_text("hello")
    (tree / "ink" / "cat" / ".hidden.png").write_text("hello")
    (tree / "lists").mkdir()
    with caplog.at_level("WARNING", logger="run"):
        loaders = domains.build_loaders(folders(tree, holdout=0), CPU, 4)
    assert len(loaders["ink"].images) == 30 and "cat/readme.txt" in caplog.text and "lists" in caplog.text


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
    domain_set = domain_folders.Folders(settings)
    train, held = domain_set.train("ink"), domain_set.held_out("ink")
    assert colours(train) == {(0, 50 * label, 5 * n) for label in range(3) for n in range(3, PER_CLASS)}
    assert colours(held) == {(0, 50 * label, 5 * n) for label in range(3) for n in range(3)}
    assert (train.images[:, 0, 0, 1] == 50 * train.labels).all() and set(train.labels) == {0, 1, 2}
    tests = domains.test_sets(settings, CPU)
    assert {name: loader.total for name, loader in tests.items()} == {"ink": 9, "pencil": 9, "oil": 30}
    assert colours(domain_folders.Folders(folders(tree, kfold_root=tree / "splits")).train("ink")) == (
        colours(train)
    )


def test_lists_with_labels_from_0_are_refused(tree):
    write_lists(tree, first=0)
    settings = folders(tree, kfold_root="splits")
    fails(
        lambda: domains.build_loaders(settings, CPU, 4), "ink_train_kfold.txt, line 1", "seem to count from 0"
    )


def replaced(old, new):
    return lambda lines: [line.replace(old, new) for line in lines]


@pytest.mark.parametrize(
    "change, parts",
    [
        (
            replaced("dog/pic_005.png 2", "dog/pic_005.png 3"),
            ["label 3", "class dog is number 2 of 3", "line 10"],
        ),
        (replaced("pic_007", "pic_700"), ["pic_700.png is not in"]),
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
    settings = folders(tree, kfold_root="splits")
    fails(lambda: domains.build_loaders(settings, CPU, 4), "ink", *parts)


def test_missing_and_binary_lists(tree):
    settings = folders(tree, kfold_root="splits")
    fails(lambda: domains.build_loaders(settings, CPU, 4), "kfold_root", "splits", "no folder")
    root = write_lists(tree)
    (root / "ink_train_kfold.txt").write_bytes(b"\xff\xfe\x00")
    fails(lambda: domains.build_loaders(settings, CPU, 4), "ink_train_kfold.txt", "no text")
    (root / "ink_train_kfold.txt").unlink()
    fails(lambda: domains.build_loaders(settings, CPU, 4), "ink_train_kfold.txt", "No such file")


# Bad input


def test_an_unknown_target_names_the_nearest_domain():
    fails(
        lambda: domains.source_domains(configure(domain_set="digits", target_domain="MNISTM")),
        "target_domain",
        "'MNISTM'",
        "did you mean mnist_m?",
        "mnist, mnist_m, usps",
    )
    message = fails(lambda: domains.source_domains(configure(domain_set="demo", target_domain="")), "0, 25")
    assert "did you mean" not in message


def test_fewer_than_two_sources_are_refused(tree):
    shutil.rmtree(tree / "ink")
    fails(
        lambda: domains.build_loaders(folders(tree), CPU, 4), "fewer than two source domains", "oil, pencil"
    )


def test_source_domains_choose_some_of_the_others(tree):
    chosen = folders(tree, source_domains="ink, pencil", target_domain="oil")
    assert domains.source_domains(chosen) == ["ink", "pencil"]
    demo = configure(domain_set="demo", target_domain="25", source_domains="75,0")
    assert domains.source_domains(demo) == ["0", "75"]  # in the set's order
    assert list(domains.test_sets(demo, CPU)) == ["0", "75", "25"]
    for wrong in ("ink,oil", "ink,chalk"):
        refused = folders(tree, source_domains=wrong, target_domain="oil")
        fails(lambda: domains.source_domains(refused), "source_domains", wrong[4:], "ink, pencil")  # noqa: B023
    alone = folders(tree, source_domains="ink", target_domain="oil")
    fails(lambda: domains.source_domains(alone), "fewer than two source domains", "source_domains is 'ink'")


def test_a_class_that_only_some_domains_have_is_refused_by_both_their_names(tree):
    shutil.rmtree(tree / "pencil" / "dog")
    fails(lambda: domains.build_loaders(folders(tree), CPU, 4), "class dog", "ink, oil", "not in pencil")


def test_a_domain_without_an_image_of_some_class_is_refused(tree):
    for path in (tree / "pencil" / "dog").iterdir():
        path.unlink()
    fails(lambda: domains.build_loaders(folders(tree), CPU, 4), "domain pencil", "no image of class dog")


def test_num_classes_says_that_a_domain_may_lack_a_class(tree):
    shutil.rmtree(tree / "pencil" / "dog")
    settings = folders(tree, num_classes=3, holdout=0)
    loaders = domains.build_loaders(settings, CPU, 4)
    assert set(loaders["pencil"].labels) == {0, 2} and domains.class_count(settings) == 3
    fails(
        lambda: domains.build_loaders(folders(tree, num_classes=4), CPU, 4), "num_classes: 4", "cat, dog, emu"
    )
    shutil.rmtree(tree / "ink" / "dog")
    fails(lambda: domains.build_loaders(settings, CPU, 4), "no source domain", "dog")


def test_num_classes_is_known_without_the_folders(tmp_path):
    assert domains.class_count(folders(tmp_path / "none", num_classes=5)) == 5
    assert domains.class_count(folders(tmp_path / "none", domain_set="pacs")) == 7


def test_a_batch_larger_than_a_domain_names_its_key_and_the_domain(tree):
    settings = folders(tree, holdout=0)
    call = lambda: domains.build_loaders(settings, CPU, 31, "meta_batch_size")  # noqa: E731
    fails(call, "meta_batch_size: 31", "30 training images", "domain ink")


def test_a_damaged_picture_is_named(tree):
    path = tree / "pencil" / "emu" / "pic_004.png"
    path.write_bytes(path.read_bytes()[:-20])
    fails(lambda: domains.build_loaders(folders(tree, holdout=0), CPU, 4), path, "replace it")


def test_pacs_has_its_seven_classes(tree):
    fails(lambda: domains.build_loaders(folders(tree, domain_set="pacs"), CPU, 4), "ink", "elephant")
    for domain in DOMAINS:
        for name in domain_folders.PACS_CLASSES:
            (tree / domain / name).mkdir(exist_ok=True)
    fails(lambda: domains.build_loaders(folders(tree, domain_set="pacs"), CPU, 4), "unknown class", "cat")


@pytest.mark.parametrize("root", ["", "nowhere", "file"])
def test_a_root_that_is_no_folder(tmp_path, root):
    (tmp_path / "file").write_text("")
    given = tmp_path / root if root else ""
    fails(
        lambda: domains.build_loaders(folders(given), CPU, 4), "domains_image_root", root, "<domain>/<class>"
    )


def test_more_memory_than_there_is_is_refused_before_decoding():
    fails(lambda: domain_folders._check_memory(10**16), "MB of memory", "image_size")


@pytest.mark.parametrize("changes", [{"domain_set": "pcas"}, {"holdout": 1.0}, {"augment": "mirror"}])
def test_values_out_of_range_are_refused(changes):
    fails(lambda: configure(**changes), next(iter(changes)), "allowed")


def test_the_real_pacs():
    root = Path(DATA_ROOT or "", "pacs")
    if not DATA_ROOT or not root.is_dir():
        pytest.skip("DATA_ROOT has no pacs")
    settings = configure(domains_image_root=root, target_domain="sketch", image_size=32)
    loaders, tests = domains.build_loaders(settings, CPU, 16), domains.test_sets(settings, CPU)
    assert list(loaders) == ["art_painting", "cartoon", "photo"] and list(tests)[-1] == "sketch"
    for loader in loaders.values():
        assert set(loader.labels) == set(range(7))
    images, _ = next(iter(tests["sketch"]))
    assert np.mean(images[:, 0] == images[:, 2]) > 0.9  # sketches are grey
