"""Files of images: which are listed, what is decoded, and what becomes of odd and damaged ones."""

import io
import os
import struct
import time

import cv2
import numpy as np
import pytest
from helpers import fails
from PIL import Image, ImageOps

from src.data import decode, files, reading
from src.data.files import LeftOut
from src.data.reading import Ahead, Reader, Workers

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 50), "red": (230, 30, 40)}


def write(root, per_class=6, side=(40, 48)):
    """Folders of single-coloured images, one brightness per file, so that each is recognisable."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.full((*side, 3), np.clip(np.array(colour) + index, 0, 255), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    return root


def packed(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def smooth(seed=0, height=50, width=60):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def unreadable(data, reason):
    with pytest.raises(decode.Unreadable, match=reason):
        decode.decode(data)


# Listing


def test_scan_sorts_classes_and_files(tmp_path):
    folder = files.scan(write(tmp_path), LeftOut())
    assert folder.classes == ("blue", "green", "red")
    assert folder.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 and folder.labels.dtype == np.int32
    assert folder.names() == [f"{name}/{i:02d}.png" for name in COLOURS for i in range(6)]
    assert folder.take([0, 7]).names() == ["blue/00.png", "green/01.png"]


def test_stray_files_are_named_or_refused(tmp_path, caplog):
    write(tmp_path)
    (tmp_path / "red" / "notes.txt").write_text("no image")
    (tmp_path / "red" / "deeper").mkdir()
    (tmp_path / "loose.png").write_bytes(b"")
    left_out = LeftOut()
    assert len(files.scan(tmp_path, left_out).files) == 18
    assert {
        reason: [os.path.basename(path) for path in paths] for reason, paths in left_out.as_dict().items()
    } == {
        files.STRAY: ["notes.txt"],
        files.NESTED: ["deeper"],
        files.LOOSE: ["loose.png"],
    }
    assert all(name in caplog.text for name in ("notes.txt", "deeper", "loose.png"))
    fails(lambda: files.scan(tmp_path, LeftOut(strict=True)), "leave out --strict")


def test_unusable_folders_are_refused(tmp_path):
    fails(lambda: files.scan(tmp_path / "absent", LeftOut()), "absent", "cannot be listed")
    fails(lambda: files.scan(tmp_path, LeftOut()), "no class folders")
    fails(lambda: files.scan_flat(tmp_path, LeftOut()), "no image")
    write(tmp_path / "set")
    (tmp_path / "set" / "empty" / "images").mkdir(parents=True)
    fails(lambda: files.scan(tmp_path / "set", LeftOut()), "empty", "it holds folders: images")
    assert len(files.scan(tmp_path / "set", LeftOut(), empty_allowed=True).classes) == 3


def test_pictures_of_other_formats_are_named(tmp_path, caplog):
    write(tmp_path / "set")
    (tmp_path / "set" / "red" / "phone.HEIC").write_bytes(b"")
    left_out = LeftOut()
    assert len(files.scan(tmp_path / "set", left_out).files) == 18
    assert list(left_out.as_dict()) == [files.UNKNOWN]
    assert "formats that are not read (1): " in caplog.text and "phone.HEIC" in caplog.text
    (tmp_path / "phone" / "cat").mkdir(parents=True)
    (tmp_path / "phone" / "cat" / "1.heic").write_bytes(b"")
    convert = "formats that are not read: 1.heic; convert them to JPEG or PNG"
    fails(lambda: files.scan(tmp_path / "phone", LeftOut()), "cat: no image", convert)
    fails(lambda: files.scan(tmp_path / "phone", LeftOut(), empty_allowed=True), "with images", convert)
    fails(lambda: files.scan_flat(tmp_path / "phone" / "cat", LeftOut()), "no image", convert)


def test_find_takes_files_folders_and_patterns_once_each(tmp_path, monkeypatch, caplog):
    write(tmp_path / "set", per_class=2)
    monkeypatch.chdir(tmp_path)
    below = files.find(["set"])
    assert below == [f"set/{name}/0{i}.png" for name in COLOURS for i in range(2)]
    assert files.find(["set/red/01.png", "set/*/01.png"])[0] == "set/red/01.png"
    assert files.find(["set/red/01.png", "set"]) == [
        "set/red/01.png",
        *[p for p in below if "red/01" not in p],
    ]
    fails(lambda: files.find(["set/*.gif"]), "set/*.gif", "no such file")
    for name in ("phone.HEIC", "scan.tif", "notes.txt"):
        (tmp_path / "set" / name).write_bytes(b"")
    assert files.find(["set"]) == below
    assert "formats that are not read (2): set/phone.HEIC, set/scan.tif; left out" in caplog.text
    assert "notes.txt" not in caplog.text
    (tmp_path / "none").mkdir()
    fails(lambda: files.find(["none"]), "none", "no image")


def test_the_account_names_some_and_counts_the_rest():
    left_out = LeftOut()
    left_out.add("too dark", [f"{number}.png" for number in range(25)])
    left_out.add("too dark", ["3.png"])
    left_out.add("never seen", [])
    account = left_out.as_dict()
    assert list(account) == ["too dark"] and len(account["too dark"]) == 21
    assert account["too dark"][-1] == "and 5 more"


def test_names_are_shown_without_harm():
    assert files.shown(os.fsdecode(b"caf\xe9\n.jpg")) == "caf\\xe9\\x0a.jpg"
    assert files.shown("größe.jpg") == "größe.jpg"


# Decoding


def test_kinds_of_images_become_rgb():
    pixels = smooth()
    base = Image.fromarray(pixels)
    grey = np.asarray(base.convert("L"), int)[..., None].repeat(3, 2)
    palette = base.quantize(32)
    for data, wanted, far in (
        (packed(base, "PNG"), pixels, 0),
        (packed(base, "BMP"), pixels, 0),
        (packed(base, "WEBP", lossless=True), pixels, 0),
        (packed(base.convert("RGBA"), "WEBP", lossless=True), pixels, 0),
        (packed(base.convert("RGBA"), "PNG"), pixels, 0),
        (packed(base.convert("LA"), "PNG"), grey, 0),
        (packed(base, "JPEG", quality=95), pixels, 2),
        (packed(base, "JPEG", quality=95, progressive=True), pixels, 2),
        (packed(base.convert("L"), "JPEG", quality=95), grey, 2),
        (packed(base.convert("CMYK"), "JPEG", quality=95), pixels, 2),
        (packed(palette, "PNG", transparency=0), np.asarray(palette.convert("RGB")), 0),
        (packed(base.convert("1"), "PNG"), np.asarray(base.convert("1").convert("RGB")), 0),
    ):
        image = decode.decode(data)
        assert image.shape == (50, 60, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        assert np.abs(image.astype(int) - wanted).mean() <= far


def test_of_16_bits_the_upper_8_are_kept():
    for shape in ((40, 30), (40, 30, 3)):
        deep = np.random.default_rng(1).integers(0, 65536, shape).astype(np.uint16)
        image = decode.decode(cv2.imencode(".png", deep)[1].tobytes())[..., ::-1]
        np.testing.assert_array_equal(
            image, (deep >> 8).reshape(40, 30, -1).repeat(3 if deep.ndim == 2 else 1, 2)
        )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_a_camera_is_applied(form):
    """Against numpy's turns and mirrors."""
    pixels = smooth()
    exact = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[form]
    upright = decode.decode(packed(Image.fromarray(pixels), form, **exact))
    for number, act in enumerate(
        (
            lambda image: image,
            lambda image: image[:, ::-1],
            lambda image: image[::-1, ::-1],
            lambda image: image[::-1],
            lambda image: image.transpose(1, 0, 2),
            lambda image: np.rot90(image, -1),
            lambda image: image[::-1, ::-1].transpose(1, 0, 2),
            lambda image: np.rot90(image),
        ),
        1,
    ):
        exif = Image.Exif()
        exif[0x112] = number
        image = decode.decode(packed(Image.fromarray(pixels), form, exif=exif, **exact))
        np.testing.assert_array_equal(image, act(upright), err_msg=f"orientation {number}")


def test_a_damaged_note_of_a_camera_is_no_traceback():
    unreadable(packed(Image.fromarray(smooth()), "WEBP", exif=b"Exif\0\0II*\0"), "could not be decoded")


@pytest.mark.parametrize("error", [struct.error("short"), AttributeError("no tag"), TypeError("no number")])
def test_what_pillow_raises_for_an_orientation_is_damage(error, monkeypatch):
    def failing(image):
        raise error

    monkeypatch.setattr(ImageOps, "exif_transpose", failing)
    unreadable(packed(Image.fromarray(smooth()), "WEBP"), "could not be decoded")


def test_a_file_is_read_to_its_end(tmp_path, monkeypatch):
    """One read may give less than there is."""
    path = tmp_path / "long"
    path.write_bytes(bytes(range(256)) * 4)
    whole = os.read
    monkeypatch.setattr(os, "read", lambda file, count: whole(file, min(count, 100)))
    assert decode.content(path) == bytes(range(256)) * 4


FORMS = {"JPEG": {}, "PNG": {}, "BMP": {}, "WEBP": {}}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_was_cut_is_told_from_one_with_more_behind_its_end(form, capfd):
    data = packed(Image.fromarray(smooth()), form)
    whole = decode.decode(data)
    for tail in (b"\n", b"\0" * 64, b"x" * 1000, data):
        np.testing.assert_array_equal(decode.decode(data + tail), whole)
    for keep in (len(data) - 3, len(data) // 2, 30, 12):
        unreadable(data[:keep], "truncated|damaged header|neither")
    assert capfd.readouterr().err == ""


def test_the_end_of_a_preview_is_not_the_end_of_the_picture():
    preview = packed(Image.fromarray(smooth(1, 16, 16)), "JPEG")
    picture = packed(Image.fromarray(smooth()), "JPEG")
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    with_preview = picture[:2] + segment + picture[2:]
    np.testing.assert_array_equal(decode.decode(with_preview), decode.decode(picture))
    unreadable(with_preview[:-50], "truncated JPEG")
    unreadable(picture[:-50] + picture, "truncated JPEG")  # two pictures, the first of them cut


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "neither JPEG"),
        (b"GIF89a" + bytes(40), "neither JPEG"),
        (b"\xff\xd8\xff\xd9", "truncated JPEG"),
        (b"\xff\xd8\xff\xc0\x00\x02", "truncated JPEG|damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged header"),
        (b"BM", "damaged header"),
        (b"RIFF\x04\0\0\0WEBP", "damaged header"),
    ],
)
def test_what_is_no_image_is_said(data, reason):
    unreadable(data, reason)


def test_a_png_with_a_wrong_checksum_is_damaged():
    data = bytearray(packed(Image.fromarray(smooth()), "PNG"))
    data[100] ^= 1
    unreadable(bytes(data), "checksum")


def test_one_limit_of_pixels_in_all_formats(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 50 * 60 - 1)
    for form, more in (("JPEG", {}), ("PNG", {}), ("BMP", {}), ("WEBP", {}), ("WEBP", {"lossless": True})):
        unreadable(packed(Image.fromarray(smooth()), form, **more), "60x50 pixels, more than")
    unreadable(packed(Image.fromarray(smooth()).convert("RGBA"), "WEBP"), "60x50 pixels, more than")


@pytest.mark.parametrize("seed", range(200))
def test_damaged_bytes_are_decoded_or_refused(seed):
    random = np.random.RandomState(seed)
    form = list(FORMS)[seed % 4]
    data = bytearray(packed(Image.fromarray(smooth()), form))
    for place in random.randint(0, min(len(data), 200), 3):
        data[place] = random.randint(256)
    try:
        assert decode.decode(bytes(data)).ndim == 3
    except decode.Unreadable:
        pass


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, reason in (
        (tmp_path / "pipe.jpg", "not a regular file"),
        (tmp_path, "not a regular file|Is a directory"),
        (tmp_path / "none.jpg", "No such file"),
        (tmp_path / ("x" * 300), "too long"),
        ("a\0b", "impossible"),
    ):
        with pytest.raises(decode.Unreadable, match=reason):
            decode.read(path)


def test_a_file_of_impossible_size_is_not_read(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(decode.MAX_BYTES + 1)
    with pytest.raises(decode.Unreadable, match="larger than"):
        decode.read(tmp_path / "huge.jpg")


# Reading


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


@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_is_in_order_and_leaves_bad_files_out(tmp_path, caplog, count):
    bad = damaged(tmp_path)
    listing = files.scan(tmp_path, LeftOut())
    reader = Reader(listing.files, Workers(count))
    for _ in range(2):
        read = list(reader.stream(range(len(listing.files))))
        assert [index for index, _ in read] == [0, *range(2, 8), *range(9, 17)]
        for index, image in read:
            assert (
                image[0, 0] == np.array(COLOURS[listing.classes[listing.labels[index]]]) + index % 6
            ).all()
    assert [caplog.text.count(path) for path in bad] == [1, 1, 1, 1]
    assert sorted(reader.bad) == [1, 8, 17, 18] and not reader.kept
    assert reader.left_out.as_dict()["truncated PNG"] == [bad[0]]


def test_in_place_of_a_bad_file_comes_the_next_good_one(tmp_path):
    damaged(tmp_path)
    reader = Reader(files.scan(tmp_path, LeftOut()).files)
    assert [reader.next_good(index)[0] for index in (0, 1, 8, 17, 18)] == [0, 2, 9, 0, 0]


def test_strict_stops_and_rubbish_is_refused(tmp_path):
    damaged(tmp_path / "some")
    strict = Reader(files.scan(tmp_path / "some", LeftOut()).files, left_out=LeftOut(strict=True))
    fails(lambda: list(strict.stream(range(19))), "01.png", "leave out --strict")
    for path in files.scan(write(tmp_path / "all", per_class=2), LeftOut()).files:
        os.truncate(path, 20)
    reader = Reader(files.scan(tmp_path / "all", LeftOut()).files)
    for _ in range(2):  # never an endless search
        fails(lambda: reader.next_good(0), "none of the 6")


def test_a_class_of_which_nothing_can_be_read_is_an_error(tmp_path):
    listing = files.scan(write(tmp_path, per_class=2), LeftOut())
    for path in (tmp_path / "green").iterdir():
        path.write_bytes(path.read_bytes()[:-4])
    reader = Reader(listing.files)
    reader.group(listing.labels, listing.classes)
    fails(lambda: list(reader.stream(range(6))), "class green", "none of its 2 images", "truncated PNG")


def test_a_full_memory_keeps_what_fits(tmp_path, caplog, monkeypatch):
    """The rest is decoded anew, which one line says."""
    listing = files.scan(write(tmp_path), LeftOut())
    monkeypatch.setattr(reading, "CHECK", 4 * 40 * 48 * 3)
    looks = iter([(80, 100), (40, 100), (10, 100)])
    monkeypatch.setattr(reading.memory, "free", lambda: next(looks))
    reader = Reader(listing.files, keep=True)
    plain = dict(Reader(listing.files).stream(range(18)))
    for _ in range(2):
        for index, image in reader.stream(range(18)):
            np.testing.assert_array_equal(image, plain[index])
    assert len(reader.kept) == 8 and caplog.text.count("cache memory: 8 of 18 images fit") == 1


def test_nothing_is_kept_but_what_was_prepared(tmp_path):
    reader = Reader(
        files.scan(write(tmp_path), LeftOut()).files, prepare=lambda image: image[:4, :5], keep=True
    )
    assert {image.shape for _, image in reader.stream(range(18))} == {(4, 5, 3)}
    assert {image.shape for image in reader.kept.values()} == {(4, 5, 3)}
    assert all(image.base is None for image in reader.kept.values()), "the whole image would stay with it"


def test_a_stream_that_is_given_up_leaves_no_work(tmp_path):
    workers = Workers(1)
    reader = Reader(files.scan(write(tmp_path), LeftOut()).files * 50, workers)
    stream = reader.stream(range(900))
    assert next(stream)[0] == 0
    stream.close()
    assert workers.submit(lambda: "next").result(timeout=20) == "next"


# Threads


def test_tasks_run_in_order_and_hand_on_what_they_raise():
    workers, order = Workers(1), []
    futures = [workers.submit(order.append, number) for number in range(20)]
    failing = workers.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(timeout=20)
    assert all(future.done() for future in futures) and order == list(range(20))


def test_threads_end_with_their_owner():
    workers = Workers(2)
    workers.submit(int).result(timeout=20)
    threads = list(workers._threads)
    assert threads and all(thread.is_alive() for thread in threads)
    waiting = [workers.submit(time.sleep, 0.05) for _ in range(50)]
    workers.close()
    assert not any(thread.is_alive() for thread in threads)
    assert any(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError, match="stopped"):
        workers.submit(int)
    forgotten = Workers(1)
    forgotten.submit(int).result(timeout=20)
    (thread,) = forgotten._threads
    del forgotten
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_batches_ahead_are_made_once_and_dropped_when_not_wanted():
    made = []

    def make(step):
        made.append(step)
        rows = np.zeros(20, int)

        def fill(row):
            if step == 3:
                raise ValueError("three")
            rows[row] = step

        return 20, fill, lambda: rows

    ahead = Ahead(Workers(2), make, depth=2)
    for step in (0, 1, 2):
        assert (ahead.get(step) == step).all()
    with pytest.raises(ValueError, match="three"):
        ahead.get(3)
    assert (ahead.get(4) == 4).all() and made == list(range(7))
    assert (ahead.get(20) == 20).all() and (ahead.get(0) == 0).all()
    assert made == [*range(7), 20, 21, 22, 0, 1, 2]
    ahead.close()
    assert (ahead.get(0) == 0).all()
