"""Batches: who sees which sample, how often, and in what form."""

import numpy as np
import pytest
from helpers import fails, quick
from hypothesis import given
from hypothesis import strategies as st
from test_files import COLOURS, damaged, write

from src.data import augment, files, preparation, transforms
from src.data.domains import split_validation
from src.data.files import LeftOut
from src.data.loaders import Arrays, ArrayTestLoader, ArrayTrainLoader, FileTestLoader, FileTrainLoader, Plan
from src.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from src.data.reading import Reader, Workers
from src.data.split import Split

SMALL = Preparation(2, 1)


def numbered(count, size=2):
    """A split whose images say which sample they are: pixels 0 and 1 hold the number."""
    images = np.zeros((count, size, size), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return Split(images, np.arange(count, dtype=np.int32) % 10)


def numbers(images):
    pixels = np.rint(images[:, 0] * 255).astype(int)
    return (pixels[:, 0, 0] + 256 * pixels[:, 0, 1]).tolist()


def loader(count, batch_size, rank=0, world=1, name="source", seed=5):
    split = numbered(count)
    return ArrayTrainLoader(Arrays([split], SMALL), split.labels, Plan(name, batch_size, seed, rank, world))


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# Whole arrays


@quick
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_sees_each_sample_at_most_once_over_all_ranks(count, batch_size, world, epoch):
    if count < batch_size * world:
        fails(lambda: loader(count, batch_size, 0, world), f"batch_size: {batch_size} x {world}", "source")
        return
    loaders = [loader(count, batch_size, rank, world) for rank in range(world)]
    steps = loaders[0].steps_per_epoch
    assert {one.steps_per_epoch for one in loaders} == {count // (batch_size * world)}
    seen = []
    for one in loaders:
        for step in range(epoch * steps, (epoch + 1) * steps):
            images, labels = one.batch(step)
            assert images.shape == (batch_size, 1, 2, 2)
            assert [n % 10 for n in numbers(images)] == labels.tolist()
            seen += numbers(images)
    assert len(seen) == len(set(seen)) == steps * batch_size * world
    assert set(seen) <= set(range(count))


def test_epochs_differ_in_order_and_so_do_seeds_and_domains():
    one = loader(64, 32)
    orders = [numbers(one.batch(step)[0]) for step in range(0, 8, 2)]
    assert len({tuple(order) for order in orders}) == 4
    assert numbers(loader(64, 32, name="target").batch(0)[0]) != orders[0]
    assert numbers(loader(64, 32, seed=6).batch(0)[0]) != orders[0]


@quick
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.sampled_from(augment.CHOICES))
def test_a_batch_is_a_function_of_the_step_alone(steps, name):
    split = Split(np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3)).astype(np.uint8), np.arange(40))

    def new():
        plan = Plan("source", 8, 1, augment=augment.build(name))
        return ArrayTrainLoader(Arrays([split], Preparation(28)), split.labels, plan)

    used = new()
    for step in steps:
        assert same(used.batch(step), new().batch(step))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augment.CHOICES)
def test_augmentations_keep_range_shape_and_type(name, channels):
    shape = (16, channels, 28, 28)
    images = np.random.default_rng(1).random(shape, dtype=np.float32)
    images[0], images[1] = 0, 1
    before = images.copy()
    function = augment.build(name)
    result = images if function is None else function(images, np.random.default_rng(2))
    assert result.shape == shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_array_equal(images, before)
    assert (name == "none") == np.array_equal(result, before)


def test_intensity_maps_background_and_stroke_to_two_tones_of_each_channel():
    mask = np.zeros((50, 3, 4, 4), np.float32)
    mask[:, :, 1:3, 1:3] = 1
    result = augment.intensity(mask, np.random.default_rng(0))
    for image in result.reshape(150, 16):
        assert len(np.unique(image)) == 2
    assert 0 < (result[:, 0, 0, 0] > result[:, 0, 1, 1]).mean() < 1  # some are inverted


def test_texture_blends_two_random_textures_by_the_stroke():
    masks = [np.full((200, 3, 28, 28), share, np.float32) for share in (0.0, 0.25, 1.0)]
    ground, quarter, stroke = (augment.texture(mask, np.random.default_rng(0)) for mask in masks)
    np.testing.assert_allclose(quarter, ground + 0.25 * (stroke - ground), atol=1e-6)
    negative = np.abs(stroke - (1 - ground)).max((1, 2, 3)) < 1e-6
    assert 0.35 < negative.mean() < 0.65
    np.testing.assert_allclose(stroke[~negative], np.roll(ground, 1, 0)[~negative], atol=1e-6)
    assert len(np.unique(ground.mean((1, 2, 3)).round(2))) > 40  # dark, grey and light ones


def test_the_spectrum_of_a_texture_falls_as_that_of_photographs():
    images = augment.texture(np.zeros((400, 3, 64, 64), np.float32), np.random.default_rng(0))
    power = (np.abs(np.fft.rfft2(images)) ** 2).mean((0, 1))
    low, high = power[0, 2:5].mean(), power[0, 16:32].mean()
    # Amplitudes 1/f to 1/f^2: powers between those of 1/f^2 and 1/f^4 over a factor of about 7 in frequency.
    assert 7**1.6 < low / high < 7**4


@quick
@given(st.integers(1, 200), st.integers(0, 220), st.integers(0, 5))
def test_validation_and_training_parts_are_disjoint_and_complete(count, size, seed):
    if size >= count:
        fails(lambda: split_validation(numbered(count), size, seed), "validation_size")
        return
    kept, held = split_validation(numbered(count), size, seed)
    parts = [kept] if held is None else [kept, held]
    assert (held is None) == (size == 0) and (held is None or len(held.labels) == size)
    seen = [numbers(transforms.to_float(part.images, 1)) for part in parts]
    assert sorted(sum(seen, [])) == list(range(count))
    for part, own in zip(parts, seen, strict=True):
        assert [n % 10 for n in own] == part.labels.tolist()
    assert same(kept, split_validation(numbered(count), size, seed)[0])


@quick
@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 5))
def test_the_shares_of_an_evaluation_hold_every_image_once(count, batch_size, world):
    split, seen = numbered(count), []
    for rank in range(min(world, count)):
        part = ArrayTestLoader(Arrays([split], SMALL), split.labels, batch_size, rank, world)
        assert part.total == count
        for images, labels in part:
            assert [n % 10 for n in numbers(images)] == labels.tolist()
            seen += numbers(images)
    assert sorted(seen) == list(range(count))


@quick
@given(st.integers(1, 400), st.integers(1, 80), st.integers(0, 3))
def test_a_sample_is_spread_over_all_of_a_test_set(count, wanted, seed):
    split = numbered(count)
    one = ArrayTestLoader(Arrays([split], SMALL), split.labels, 16)
    images, labels = one.sample(wanted, seed)
    found = numbers(images)
    assert len(found) == len(set(found)) == len(labels) == min(count, wanted)
    assert [n % 10 for n in found] == labels.tolist()
    gaps = np.diff([-1, *found, count])
    assert gaps.max() <= 2 * max(1, count / wanted) + 1
    assert same(one.sample(wanted, seed), (images, labels))


def test_the_union_of_several_sets_brings_them_to_one_form():
    grey = numbered(10, 28)
    colour = Split(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8), np.arange(6))
    union = Arrays([grey, colour], Preparation(28))
    assert len(union) == 16
    images = union.batch(np.array([12, 3, 15, 0]))
    for place, (split, index) in enumerate(((colour, 2), (grey, 3), (colour, 5), (grey, 0))):
        alone = Arrays([split], Preparation(28)).batch(np.array([index]))
        np.testing.assert_array_equal(images[place], alone[0])


def test_arrays_that_would_grow_too_large_are_resized_batch_by_batch(monkeypatch):
    split, preparation = numbered(9, 8), Preparation(20)
    eager = Arrays([split], preparation)
    monkeypatch.setattr("src.data.loaders.FITTED_BYTES", 100)
    lazy = Arrays([split], preparation)
    assert (eager.parts[0].shape, lazy.parts[0].shape) == ((9, 20, 20), (9, 8, 8))
    np.testing.assert_array_equal(lazy.batch(np.arange(4)), eager.batch(np.arange(4)))


# Shapes


def test_uint8_becomes_float_in_0_to_1_channels_first():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    three = transforms.to_float(grey, 3)
    assert three.shape == (1, 3, 16, 16) and three.dtype == np.float32
    assert three.min() == 0 and three.max() == 1
    np.testing.assert_array_equal(three[:, 0], three[:, 2])
    colour = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    np.testing.assert_allclose(
        transforms.to_float(colour, 3)[1, 2, 3, 4], colour[1, 3, 4, 2] / 255, rtol=1e-6
    )


def test_fit_resizes_and_turns_colour_to_luma():
    colour = np.zeros((1, 28, 28, 3), np.uint8)
    colour[..., 1] = 200
    grey = transforms.fit(colour, 1, 28)
    assert grey.shape == (1, 28, 28) and (grey == round(200 * 0.587)).all()
    assert transforms.fit(colour, 3, 32).shape == (1, 32, 32, 3)
    assert transforms.fit(colour, 3, 28) is colour


def test_enlarging_is_bilinear_with_half_pixel_centres():
    """Written as two matrices; edges are repeated."""
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16)).astype(np.uint8)
    centres = np.clip((np.arange(28) + 0.5) * 16 / 28 - 0.5, 0, 15)
    low = np.minimum(centres.astype(int), 14)
    weights = np.zeros((28, 16))
    weights[np.arange(28), low] = 1 - (centres - low)
    weights[np.arange(28), low + 1] += centres - low
    expected = np.einsum("ih,nhw,jw->nij", weights, images, weights)
    assert np.abs(transforms.fit(images, 1, 28) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 32, 32, 3)])
def test_corner_aligned_resizing_is_linear_between_fixed_corners(shape):
    """One pixel at a time, by the definition; 1,100 images cross a border of the blocks it works in."""
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    resized = transforms.fit(images, 3, 28, "corners")
    assert resized.shape == (3, 28, 28, *shape[3:])
    for row, column in ((0, 0), (0, 27), (27, 27), (5, 11), (20, 3)):
        y, x = (place * (shape[1] - 1) / 27 for place in (row, column))
        top, left = min(int(y), shape[1] - 2), min(int(x), shape[1] - 2)
        down, right = y - top, x - left
        expected = (
            (1 - down) * ((1 - right) * images[:, top, left] + right * images[:, top, left + 1].astype(float))
        ) + down * (
            (1 - right) * images[:, top + 1, left] + right * images[:, top + 1, left + 1].astype(float)
        )
        assert np.abs(resized[:, row, column] - expected).max() <= 0.51
    many = np.repeat(images, 400, 0)
    np.testing.assert_array_equal(transforms.fit(many, 3, 28, "corners"), np.repeat(resized, 400, 0))


def test_resizing_as_tensorflow_1_does_it_keeps_the_first_pixel():
    """Pixel i of the result is read at i·16/28 of the image, at the last pixel where that is beyond it."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16)).astype(np.uint8)
    resized = transforms.fit(images, 1, 28, "origin")
    for row, column in ((0, 0), (0, 27), (27, 27), (5, 11), (20, 3)):
        y, x = row * 16 / 28, column * 16 / 28
        top, left = int(y), int(x)
        under, beside = min(top + 1, 15), min(left + 1, 15)
        down, right = y - top, x - left
        above = (1 - right) * images[:, top, left] + right * images[:, top, beside]
        below = (1 - right) * images[:, under, left] + right * images[:, under, beside]
        assert np.abs(resized[:, row, column] - ((1 - down) * above + down * below)).max() <= 0.51


def test_crop_boxes_lie_inside_and_cover_the_asked_share():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        height, width = rng.integers(20, 300, 2)
        top, left, h, w = transforms.crop_box(height, width, (0.35, 1.0), rng.random((10, 4)))
        assert top >= 0 and left >= 0 and top + h <= height and left + w <= width and h > 0 and w > 0
        if 0.5 < height / width < 2:
            shares.append(h * w / (height * width))
    assert 0.33 < min(shares) < 0.45 and 0.9 < max(shares) <= 1.0
    # Nothing fits into a strip: the middle of it.
    top, left, h, w = transforms.crop_box(10, 400, (0.9, 1.0), rng.random((10, 4)))
    assert (top, h, w) == (0, 10, 13) and left == (400 - 13) // 2


def test_colour_jitter_of_ones_changes_nothing_and_brightness_scales():
    images = np.random.default_rng(0).integers(0, 120, (3, 4, 4, 3), np.uint8)
    assert np.array_equal(transforms.jitter(images, np.ones((3, 3))), images)
    brighter = transforms.jitter(images, np.array([[2.0, 1, 1]] * 3))
    assert np.abs(brighter.astype(int) - 2 * images.astype(int)).max() <= 1
    grey = transforms.jitter(images, np.array([[1.0, 1, 0]] * 3))
    assert (grey.max(-1) - grey.min(-1)).max() == 0


def test_flip_mirrors_about_half_of_the_pictures():
    images = np.arange(200 * 3 * 2 * 4, dtype=np.float32).reshape(200, 3, 2, 4)
    flipped = transforms.flip(images.copy(), np.random.default_rng(0))
    mirrored = (flipped == images[:, :, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flipped == images).all(axis=(1, 2, 3))).all() and 70 < mirrored.sum() < 130


# Preparation


def prepared(**changes):
    return Preparation(
        **{"size": 32, "crop_pct": 0.875, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, **changes}
    )


def test_evaluation_resizes_the_short_side_then_cuts_the_middle():
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 80:120] = 255  # the middle fifth
    crop = prepared(size=56).view(image)  # short side to 64: columns 51 to 77 are white
    assert crop.shape == (56, 56, 3)
    # The crop begins at column (128 - 56) / 2 = 36, so white runs from 51.2 - 36 to 76.8 - 36.
    assert crop[28, 17:40].min() == 255 and crop[28, :14].max() == 0 and crop[28, 43:].max() == 0
    assert prepared().view(np.zeros((10, 30, 3), np.uint8)).shape == (32, 32, 3)
    assert prepared(crop_pct=1.0).view(np.zeros((300, 31, 3), np.uint8)).shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(1, 60000, 3), (60000, 1, 3), (2, 5000)])
def test_the_middle_of_a_strip_is_cut_out_before_it_is_enlarged(shape, monkeypatch):
    seen, whole = [], preparation.resize
    monkeypatch.setattr(
        preparation, "resize", lambda *given: seen.append(given[1] * given[2]) or whole(*given)
    )
    strip = np.zeros(shape, np.uint8)
    long = int(np.argmax(shape[:2]))
    np.moveaxis(strip, long, 0)[shape[long] // 2 - 1 : shape[long] // 2 + 1] = 200
    crop = prepared().view(strip)
    assert crop.shape == (32, 32, *shape[2:]) and crop.max() == 200
    assert seen == [36 * 36 * preparation.STRIP]


def test_up_to_the_limit_a_strip_is_seen_as_before():
    image = np.random.default_rng(0).integers(0, 256, (3, 3 * preparation.STRIP, 3), np.uint8)
    np.testing.assert_array_equal(
        prepared().view(image), preparation.resize(image, 36, 36 * preparation.STRIP)[2:34, 344:376]
    )


def test_to_network_is_the_definition():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    expected = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(prepared().to_network(images), expected.transpose(0, 3, 1, 2), atol=2e-6)
    grey = prepared(channels=1, mean=(0.5,), std=(0.25,)).to_network(images)
    luma = np.round(images @ np.array([0.299, 0.587, 0.114]))
    np.testing.assert_allclose(grey[:, 0], (luma / 255 - 0.5) / 0.25, atol=2e-2)


def test_original_undoes_normalise():
    images = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    there = prepared().original(prepared().normalise(images))
    np.testing.assert_allclose(there, images, atol=1e-6)
    assert there.dtype == np.float32
    plain = Preparation(4)
    assert plain.original(images) is images and plain.normalise(images) is images


# Files


VARIED = {"crop_scale_min": 0.08, "flip": True}


def of_files(root, seed=0, rank=0, world=1, workers=0, cache=False, jitter=0.0, change=None, **preparation):
    listing = files.scan(root, LeftOut())
    reader = Reader(listing.files, Workers(workers), keep=cache)
    plan = Plan("train", 4, seed, rank, world, change)
    ready = prepared(**{**VARIED, **preparation})
    return FileTrainLoader(reader, listing.labels, plan, ready, jitter)


def test_a_batch_of_files_is_a_pure_function_of_seed_step_and_rank(tmp_path):
    write(tmp_path)
    whole = of_files(tmp_path)
    batches = [whole.batch(step) for step in range(9)]
    assert all(same(of_files(tmp_path, workers=1).batch(step), batches[step]) for step in (8, 3, 5))
    assert same(whole.batch(2), batches[2]) and same(whole.batch(3), batches[3])
    whole.close()
    assert same(whole.batch(0), batches[0])
    assert not same(of_files(tmp_path, seed=1).batch(0), batches[0])
    images, labels = batches[0]
    assert images.shape == (4, 3, 32, 32) and images.dtype == np.float32 and labels.dtype == np.int32


@pytest.mark.parametrize("jitter, scale", [(0.0, 0.08), (0.4, 0.08), (0.0, 1.0)])
def test_memory_gives_the_same_batches_as_decoding(tmp_path, jitter, scale):
    write(tmp_path)
    plain, kept = (
        of_files(tmp_path, cache=cache, jitter=jitter, crop_scale_min=scale) for cache in (False, True)
    )
    for step in range(10):
        assert same(plain.batch(step), kept.batch(step))
    assert len(kept.reader.kept) == 18


def test_an_epoch_of_files_holds_every_image_once_over_all_ranks(tmp_path):
    write(tmp_path, per_class=8)
    ranks = [of_files(tmp_path, rank=rank, world=2, crop_scale_min=1.0) for rank in range(2)]
    assert [part.steps_per_epoch for part in ranks] == [3, 3]
    means = [part.batch(step)[0].mean((2, 3)).round(4) for part in ranks for step in range(3)]
    assert len({tuple(row) for rows in means for row in rows}) == 24


def test_images_and_labels_belong_together(tmp_path):
    write(tmp_path)
    images, labels = of_files(tmp_path).batch(1)
    pixels = (images.transpose(0, 2, 3, 1) * IMAGENET_STD + IMAGENET_MEAN) * 255
    for picture, label in zip(pixels, labels, strict=True):
        colour = np.array(list(COLOURS.values())[label])
        assert np.abs(picture.mean((0, 1)) - colour).max() < 6.5


@pytest.mark.parametrize("flip", [False, True])
def test_without_crops_training_sees_the_view_of_the_evaluation_or_its_mirror_image(tmp_path, flip):
    (tmp_path / "a").mkdir()
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (48, 64, 3))
    import cv2

    for index in range(40):
        assert cv2.imwrite(str(tmp_path / "a" / f"{index:02d}.png"), ramp)
    batches = of_files(tmp_path, crop_scale_min=1.0, flip=flip)
    images = np.concatenate([batches.batch(step)[0] for step in range(10)])
    expected = prepared().to_network(prepared().view(np.ascontiguousarray(ramp))[None])[0]
    upright = (images == expected).all((1, 2, 3))
    assert (upright | (images == expected[:, :, ::-1]).all((1, 2, 3))).all()
    assert 8 <= (~upright).sum() <= 32 if flip else upright.all()


def test_augmentations_of_digits_work_on_files_before_normalisation(tmp_path):
    write(tmp_path)
    plain = of_files(tmp_path, crop_scale_min=1.0, flip=False)
    inverted = of_files(tmp_path, crop_scale_min=1.0, flip=False, change=lambda images, rng: 1 - images)
    scale = np.array(IMAGENET_STD)[:, None, None], np.array(IMAGENET_MEAN)[:, None, None]
    before, after = (one.batch(0)[0] * scale[0] + scale[1] for one in (plain, inverted))
    np.testing.assert_allclose(after, 1 - before, atol=1e-5)


@pytest.mark.parametrize("cache", [False, True])
def test_training_replaces_bad_files_and_evaluation_leaves_them_out(tmp_path, caplog, cache):
    bad = damaged(tmp_path)
    batches = of_files(tmp_path, cache=cache)
    assert sum(len(batches.batch(step)[1]) for step in range(8)) == 32
    listing = files.scan(tmp_path, LeftOut())
    one = FileTestLoader(Reader(listing.files), listing.labels, 5, prepared())
    assert one.total == 19
    labels = np.concatenate([labels for _, labels in one])
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5 and one.total == 15
    assert all(path in caplog.text for path in bad)


def test_a_rank_that_finds_a_class_unreadable_looks_at_the_shares_of_others(tmp_path):
    """One green image is good, and belongs to rank 0; only when that goes, too, it is an error."""
    listing = files.scan(write(tmp_path, per_class=2), LeftOut())
    (tmp_path / "green" / "01.png").write_bytes(b"")

    def second():
        reader = Reader(listing.files)
        reader.group(listing.labels, listing.classes)
        return list(FileTestLoader(reader, listing.labels, 4, prepared(), 1, 2))

    assert np.concatenate([labels for _, labels in second()]).tolist() == [0, 2]
    (tmp_path / "green" / "00.png").write_bytes(b"")
    fails(second, "class green", "none of its 2 images")
