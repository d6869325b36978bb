"""Image folders: what is read, in which order, and what becomes of files that are no images."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from model_utils.errors import UserError
from src.data import _image_reader, image_folder
from src.data._image_reader import ImageReader
from src.data._prefetch import Prefetcher

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 50), "red": (230, 30, 40)}


def write(root, per_class=6, side=(40, 48)):
    """Folders of single-coloured images, one brightness per file, so that each is recognisable."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.full((*side, 3), np.clip(np.array(colour) + index, 0, 255), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    return root


def loader(root, seed=0, **more):
    return image_folder.FolderTrainLoader(image_folder.scan(root), 4, seed, 32, **more)


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_scan_sorts_classes_and_files(tmp_path):
    folder = image_folder.scan(write(tmp_path))
    assert folder.classes == ("blue", "green", "red")
    assert folder.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 and folder.labels.dtype == np.int32
    assert [os.path.basename(path) for path in folder.files] == [f"{i:02d}.png" for i in range(6)] * 3


def test_stray_files_are_named_or_refused(tmp_path, caplog):
    write(tmp_path)
    (tmp_path / "red" / "notes.txt").write_text("no image")
    assert len(image_folder.scan(tmp_path).files) == 18
    assert "notes.txt" in caplog.text and "1 files" in caplog.text
    with pytest.raises(UserError, match="notes.txt"):
        image_folder.scan(tmp_path, strict=True)


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        image_folder.find_split(tmp_path / "absent", "train")
    with pytest.raises(UserError, match="no folder val"):
        image_folder.find_split(tmp_path, "val")
    with pytest.raises(UserError, match="no class folders"):
        image_folder.scan(tmp_path)
    write(tmp_path / "train")
    assert image_folder.find_split(tmp_path, "train") == tmp_path / "train"
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        image_folder.scan(tmp_path / "train")
    with pytest.raises(UserError, match="batch_size: 4 x 9"):
        write(tmp_path / "few", per_class=2)
        loader(tmp_path / "few", world=9)


def test_classes_of_both_splits_must_agree(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "val")
    image_folder.same_classes(image_folder.scan(tmp_path / "val"), tmp_path)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "rot")
    with pytest.raises(UserError, match="red, rot"):
        image_folder.same_classes(image_folder.scan(tmp_path / "val"), tmp_path)


def test_a_batch_is_a_pure_function_of_seed_step_and_rank(tmp_path):
    write(tmp_path)
    straight = [loader(tmp_path).batch(step) for step in range(1)]
    whole = loader(tmp_path)
    batches = [whole.batch(step) for step in range(9)]
    assert same(straight[0], batches[0])
    assert all(same(loader(tmp_path, workers=1).batch(step), batches[step]) for step in (8, 3, 5))
    assert same(whole.batch(2), batches[2]) and same(whole.batch(3), batches[3])
    assert not same(loader(tmp_path, seed=1).batch(0), batches[0])
    images, labels = batches[0]
    assert images.shape == (4, 3, 32, 32) and images.dtype == np.float32 and labels.dtype == np.int32


@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_memory_gives_the_same_batches_as_decoding(tmp_path, jitter):
    write(tmp_path)
    plain, kept = (loader(tmp_path, cache=cache, color_jitter=jitter) for cache in ("none", "memory"))
    for step in range(10):
        assert same(plain.batch(step), kept.batch(step))
    assert len(kept.reader.kept) == 18


def test_a_full_memory_keeps_what_fits(tmp_path, caplog, monkeypatch):
    """The rest is decoded anew, which one line says; batches stay the same."""
    write(tmp_path)
    monkeypatch.setattr(_image_reader, "CHECK", 4)
    looks = iter([(80, 100), (40, 100), (10, 100)])
    monkeypatch.setattr(_image_reader.memory, "free", lambda: next(looks))
    plain, kept = (loader(tmp_path, cache=cache) for cache in ("none", "memory"))
    for step in range(10):
        assert same(plain.batch(step), kept.batch(step))
    assert len(kept.reader.kept) == 8
    assert caplog.text.count("cache memory: 8 of 18 images fit") == 1


def test_an_epoch_holds_every_image_once_over_all_ranks(tmp_path):
    write(tmp_path, per_class=8)
    ranks = [loader(tmp_path, rank=rank, world=2, scale=(1.0, 1.0)) for rank in range(2)]
    assert [part.steps_per_epoch for part in ranks] == [3, 3]
    means = [part.batch(step)[0].mean((2, 3)).round(4) for part in ranks for step in range(3)]
    assert len({tuple(row) for rows in means for row in rows}) == 24
    first, second = ([part.batch(step)[1].tolist() for step in range(3)] for part in ranks)
    assert first != second


def test_images_and_labels_belong_together(tmp_path):
    write(tmp_path)
    images, labels = loader(tmp_path).batch(1)
    pixels = (images.transpose(0, 2, 3, 1) * image_folder.STD + image_folder.MEAN) * 255
    for picture, label in zip(pixels, labels, strict=True):
        colour = np.array(list(COLOURS.values())[label])
        assert np.abs(picture.mean((0, 1)) - colour).max() < 6.5


def test_normalise_is_the_definition():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    expected = (images / 255 - np.array(image_folder.MEAN)) / np.array(image_folder.STD)
    np.testing.assert_allclose(image_folder.normalise(images), expected.transpose(0, 3, 1, 2), atol=2e-6)


def test_crop_boxes_lie_inside_and_cover_the_asked_share():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        height, width = rng.integers(20, 300, 2)
        top, left, h, w = image_folder.crop_box(height, width, (0.35, 1.0), rng.random((10, 4)))
        assert top >= 0 and left >= 0 and top + h <= height and left + w <= width and h > 0 and w > 0
        if 0.5 < height / width < 2:
            shares.append(h * w / (height * width))
    assert 0.33 < min(shares) < 0.45 and 0.9 < max(shares) <= 1.0
    # Nothing fits into a strip: the middle of it.
    top, left, h, w = image_folder.crop_box(10, 400, (0.9, 1.0), rng.random((10, 4)))
    assert (top, h, w) == (0, 10, 13) and left == (400 - 13) // 2


def test_flips_are_half(tmp_path):
    (tmp_path / "a").mkdir()
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    for index in range(40):
        Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a" / f"{index:02d}.png")
    images = loader(tmp_path, scale=(1.0, 1.0))
    flipped = [images.batch(step)[0][:, 0, 0, 0] > images.batch(step)[0][:, 0, 0, -1] for step in range(10)]
    assert 8 <= np.concatenate(flipped).sum() <= 32


def test_evaluation_resizes_the_short_side_then_cuts_the_middle():
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 80:120] = 255  # the middle fifth
    crop = image_folder.centre_crop(image, 56, 0.875)  # short side to 64: columns 51 to 77 are white
    assert crop.shape == (56, 56, 3)
    # The crop begins at column (128 - 56) / 2 = 36, so white runs from 51.2 - 36 to 76.8 - 36.
    assert crop[28, 17:40].min() == 255 and crop[28, :14].max() == 0 and crop[28, 43:].max() == 0
    assert image_folder.centre_crop(np.zeros((10, 30, 3), np.uint8), 32).shape == (32, 32, 3)
    assert image_folder.centre_crop(np.zeros((300, 31, 3), np.uint8), 32, 1.0).shape == (32, 32, 3)


def test_colour_jitter_of_ones_changes_nothing_and_brightness_scales():
    images = np.random.default_rng(0).integers(0, 120, (3, 4, 4, 3), np.uint8)
    assert np.array_equal(image_folder.jitter(images, np.ones((3, 3))), images)
    brighter = image_folder.jitter(images, np.array([[2.0, 1, 1]] * 3))
    assert np.abs(brighter.astype(int) - 2 * images.astype(int)).max() <= 1
    grey = image_folder.jitter(images, np.array([[1.0, 1, 0]] * 3))
    assert (grey.max(-1) - grey.min(-1)).max() == 0


def test_grey_palette_transparent_and_cmyk_images_become_rgb(tmp_path):
    smooth = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8),
        (60, 50),
        interpolation=cv2.INTER_CUBIC,
    )
    base = Image.fromarray(smooth)
    base.save(tmp_path / "rgb.png")
    base.convert("L").save(tmp_path / "grey.jpg", quality=95)
    base.convert("LA").save(tmp_path / "grey_alpha.png")
    base.convert("RGBA").save(tmp_path / "rgba.png")
    base.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    base.convert("P").save(tmp_path / "palette.png")
    base.save(tmp_path / "plain.bmp")
    files = sorted(tmp_path.iterdir())
    read = {files[index].name: image for index, image in ImageReader(files).images(range(len(files)))}
    assert all(image.shape == (50, 60, 3) and image.dtype == np.uint8 for image in read.values())
    grey = np.asarray(base.convert("L"), int)[..., None]
    for name, wanted, far in (
        ("rgb.png", smooth, 0),
        ("rgba.png", smooth, 0),
        ("plain.bmp", smooth, 0),
        ("cmyk.jpg", smooth, 3),
        ("palette.png", np.asarray(base.convert("P").convert("RGB")), 0),
        ("grey.jpg", grey, 3),
        ("grey_alpha.png", grey, 0),
    ):
        assert np.abs(read[name].astype(int) - wanted).mean() <= far, name


def damaged(root):
    """A folder with four files that can't be used, in three ways of being so."""
    write(root)
    whole = (root / "blue" / "00.png").read_bytes()
    (root / "blue" / "01.png").write_bytes(whole[: len(whole) // 2])
    (root / "green" / "02.png").write_bytes(b"")
    (root / "red" / "05.png").write_bytes(b"<html>not found</html>")
    jpeg = root / "red" / "06.jpg"
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-30])
    return [str(root / name) for name in ("blue/01.png", "green/02.png", "red/05.png", "red/06.jpg")]


def test_bad_files_are_named_once_and_replaced_by_the_next_good_one(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = damaged(tmp_path / "images")
    folder = image_folder.scan(tmp_path / "images")
    reader = ImageReader(folder.files)
    for _ in range(2):
        indices = [index for index, _ in reader.images(range(len(folder.files)))]
        # The two at the end are followed by the first file; 01.png by 02.png.
        assert indices == [0, 2, 2, 3, 4, 5, 6, 7, 9, 9, *range(10, 17), 0, 0]
    assert [caplog.text.count(path) for path in bad] == [1, 1, 1, 1]
    assert "(4 so far)" in caplog.text
    for cache in ("none", "memory"):
        batches = loader(tmp_path / "images", cache=cache)
        assert sum(len(batches.batch(step)[1]) for step in range(8)) == 32
    assert os.listdir(tmp_path) == ["images"]  # nothing is left behind


def test_evaluation_leaves_bad_files_out(tmp_path, caplog):
    bad = damaged(tmp_path)
    folder = image_folder.scan(tmp_path)
    labels = np.concatenate([labels for _, labels in image_folder.FolderTestLoader(folder, 5, 32)])
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert all(path in caplog.text for path in bad)


def test_strict_stops_and_a_folder_of_rubbish_is_refused(tmp_path):
    bad = damaged(tmp_path / "some")
    with pytest.raises(UserError, match="--strict"):
        batches = loader(tmp_path / "some", strict=True)
        for step in range(4):
            batches.batch(step)
    for path in image_folder.scan(write(tmp_path / "all", per_class=2)).files:
        os.truncate(path, 20)
    with pytest.raises(UserError, match="none of the 6"):
        loader(tmp_path / "all").batch(0)
    assert all(os.path.exists(path) for path in bad)


def test_shares_of_an_evaluation_hold_every_image_once(tmp_path):
    folder = image_folder.scan(write(tmp_path))
    parts = [image_folder.FolderTestLoader(folder, 4, 32, rank=rank, world=2) for rank in range(2)]
    means = [images.mean((2, 3)).round(4) for part in parts for images, _ in part]
    assert len({tuple(row) for rows in means for row in rows}) == 18 == parts[0].total
    assert [len(list(part)) for part in parts] == [len(part) for part in parts] == [3, 3]


def test_prefetcher_hands_on_what_goes_wrong_and_starts_again():
    begun = []

    def make(step):
        begun.append(step)
        while True:
            if step == 3:
                raise ValueError("three")
            yield step
            step += 1

    ahead = Prefetcher(make)
    assert [ahead.get(0), ahead.get(1), ahead.get(2)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        ahead.get(3)
    assert ahead.get(5) == 5 and ahead.get(6) == 6
    assert begun == [0, 5]
    ahead.close()
