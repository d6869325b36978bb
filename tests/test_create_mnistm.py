"""create_mnistm.py, run as the command it is: same seed same bytes; damaged and hostile archives refused."""

import gzip
import hashlib
import io
import os
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from model_utils.errors import UserError
from src.data import idx, load, mnist, mnist_m, photos

ROOT = Path(__file__).resolve().parents[1]
DATA_ROOT = os.environ.get("DATA_ROOT")
COUNTS = {"train": 40, "test": 30}
INSIDE = "BSR/BSDS500/data/images/train/"


def png(seed, size=(40, 50, 3)):
    image = np.random.RandomState(seed).randint(0, 256, size).astype(np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


PHOTOS = {f"{seed}.png": png(seed) for seed in (100, 20, 3)}


def make_mnist(root):
    root.mkdir()
    rng = np.random.RandomState(0)
    for split, (images, labels) in mnist.FILES.items():
        count = COUNTS[split]
        pixels = (rng.randint(0, 256, (count, 28, 28)) * (rng.rand(count, 28, 28) > 0.7)).astype(np.uint8)
        for name, array in ((images, pixels), (labels, (np.arange(count) % 10).astype(np.uint8))):
            (root / f"{name}.gz").write_bytes(gzip.compress(idx.header(array.shape) + array.tobytes()))


def add(archive, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def make_tgz(path, files, extra=()):
    """A tgz of photographs {name: bytes} and of extra members (name, bytes, TarInfo fields)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            add(archive, INSIDE + name, data)
        for name, data, fields in extra:
            add(archive, name, data, **fields)
    return path


def make_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(INSIDE + name, data)
    return path


def make_folder(path, files):
    (path / INSIDE).mkdir(parents=True)
    for name, data in files.items():
        (path / INSIDE / name).write_bytes(data)
    return path


def command(bst, mnist_dir, out, *options):
    paths = ["--bst_path", bst, "--mnist_dir", mnist_dir, "--mnistm_dir", out, *options]
    return [sys.executable, str(ROOT / "create_mnistm.py"), *map(str, paths)]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(done, *parts):
    """One line on standard error, exit status 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert str(part) in done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """MNIST, an archive, and what the command made of them: (folder, finished process)."""
    folder = tmp_path_factory.mktemp("shared")
    make_mnist(folder / "mnist")
    make_tgz(folder / "photos.tgz", PHOTOS)
    return folder, run(folder / "photos.tgz", folder / "mnist", folder / "out")


def test_writes_what_the_slow_oracle_says(shared):
    """Python's own Mersenne Twister, |crop - 255 * mask| pixel by pixel, photographs by name."""
    folder, done = shared
    assert done.returncode == 0, done.stderr
    names = sorted(PHOTOS)
    pictures = [cv2.imdecode(np.frombuffer(PHOTOS[n], np.uint8), 1)[..., ::-1].astype(int) for n in names]
    for stream, split in enumerate(("train", "test"), 1):
        digits = load("mnist", folder / "mnist", split)
        made = load("mnist_m", folder / "out", split)
        np.testing.assert_array_equal(made.labels, digits.labels)
        assert made.images.shape == (COUNTS[split], 28, 28, 3)
        twister = random.Random(42 + (stream << 32))
        for image, digit in zip(made.images, digits.images, strict=True):
            picture = pictures[int(twister.random() * 3)]
            top, left = int(twister.random() * 13), int(twister.random() * 23)
            for row in range(28):
                for column in range(28):
                    pixel = picture[top + row, left + column]
                    expected = abs(pixel - 255 * (digit[row, column] > 0))
                    assert image[row, column].tolist() == expected.tolist()


def test_reports_where_how_many_and_sha256(shared):
    folder, done = shared
    for names, count in zip(mnist_m.FILES.values(), COUNTS.values(), strict=True):
        for name in names:
            path = folder / "out" / name
            assert f"{path}: {count}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}\n" in done.stdout
    assert f"70 images in {folder / 'out'}, " in done.stdout.splitlines()[-1]
    assert "3: the images and their SHA-256 will be others" in done.stderr


def test_contact_sheet_shows_the_images(shared):
    folder, _ = shared
    sheet = cv2.imread(str(folder / "out" / "mnist_m_contact_sheet.png"))[..., ::-1]
    test = load("mnist_m", folder / "out", "test")
    assert sheet.shape == (280, 280, 3)
    for digit in range(10):
        for column, index in enumerate(np.flatnonzero(test.labels == digit)):
            cell = sheet[digit * 28 : digit * 28 + 28, column * 28 : column * 28 + 28]
            np.testing.assert_array_equal(cell, test.images[index])


def test_nothing_but_the_files_is_left(shared):
    names = {name for names in mnist_m.FILES.values() for name in names}
    assert set(content(shared[0] / "out")) == names | {"mnist_m_contact_sheet.png"}


@pytest.mark.parametrize("form", ["zip", "folder", "folder of photographs", "tgz in another order"])
def test_same_seed_same_bytes_whatever_the_form(shared, tmp_path, form):
    folder, _ = shared
    turned = dict(reversed(PHOTOS.items()))
    bst = {
        "zip": lambda: make_zip(tmp_path / "x.zip", turned),
        "folder": lambda: make_folder(tmp_path / "x", PHOTOS),
        "folder of photographs": lambda: make_folder(tmp_path / "x", PHOTOS) / INSIDE,
        "tgz in another order": lambda: make_tgz(tmp_path / "x.tgz", turned),
    }[form]()
    assert run(bst, folder / "mnist", tmp_path / "out").returncode == 0
    assert content(tmp_path / "out") == content(folder / "out")


def test_another_seed_other_bytes(shared, tmp_path):
    folder, _ = shared
    assert run(folder / "photos.tgz", folder / "mnist", tmp_path, "--seed", "7").returncode == 0
    name = mnist_m.FILES["train"][0]
    assert (tmp_path / name).read_bytes() != (folder / "out" / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", "-1"),
        ("--seed", "abc"),
        ("--seed", str(2**32)),
        ("--sead", "1"),
        ("--download", "maybe"),
        ("--bst_path", ""),
        ("--mnist_dir", ""),
        ("--mnistm_dir", ""),
    ],
)
def test_bad_options(shared, tmp_path, options):
    done = run(shared[0] / "photos.tgz", shared[0] / "mnist", tmp_path / "out", *options)
    refused(done, options[0])
    assert not (tmp_path / "out").exists()


def test_help_shows_options_and_defaults():
    done = subprocess.run(
        [sys.executable, str(ROOT / "create_mnistm.py"), "--help"], capture_output=True, text=True
    )
    for text in ("--bst_path", "--mnist_dir", "--mnistm_dir", "--seed", "data/mnist_m", "42", "--download"):
        assert text in done.stdout


def test_missing_inputs(shared, tmp_path):
    folder, _ = shared
    refused(run(tmp_path / "no.tgz", folder / "mnist", tmp_path / "out"), "no.tgz", "--bst_path")
    refused(run(folder / "photos.tgz", tmp_path / "none", tmp_path / "out"), tmp_path / "none", "--download")
    assert not (tmp_path / "out").exists()


def test_failure_keeps_the_old_files(shared, tmp_path):
    """A limit on file size stands for the full disk: the write of the images fails half way."""
    folder, _ = shared
    out = tmp_path / "out"
    run(folder / "photos.tgz", folder / "mnist", out)
    before = content(out)
    done = run(
        folder / "photos.tgz",
        folder / "mnist",
        out,
        "--seed",
        "5",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    refused(done, out, "unchanged")
    assert content(out) == before


def test_a_full_disk_in_staging_is_told_and_cleaned_up(tmp_path):
    with pytest.raises(UserError, match="No space left"), idx.StagedFiles(tmp_path) as files:
        files.open("first")[0].write(b"half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_interrupted_staging_leaves_the_old_file(tmp_path, error):
    (tmp_path / "first").write_bytes(b"old")
    with pytest.raises(error), idx.StagedFiles(tmp_path) as files:
        files.open("first")[0].write(b"half")
        raise error
    assert content(tmp_path) == {"first": b"old"}


KILLED_HALF_WAY = """
import os, signal, sys
sys.path.insert(0, {root!r})
import create_mnistm
from src.data import blend

def invert(crops, masks, calls=[]):
    calls.append(1)
    if len(calls) == 2:  # the training images are written, those of the test split under way
        print(sum(name.endswith(".partial") for name in os.listdir({out!r})), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    return crops

blend.invert = invert
create_mnistm.main()
"""


def test_a_killed_run_leaves_nothing_half_written(shared, tmp_path):
    folder, _ = shared
    script = KILLED_HALF_WAY.format(root=str(ROOT), out=str(tmp_path))
    arguments = command(folder / "photos.tgz", folder / "mnist", tmp_path)[2:]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 143, done.stderr
    assert done.stdout.splitlines()[-1] == "3"  # temporary files there when the signal came
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output(shared, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    done = run(shared[0] / "photos.tgz", shared[0] / "mnist", tmp_path / "file" / "out")
    refused(done, "cannot write")


def test_output_name_taken_by_a_folder(shared, tmp_path):
    (tmp_path / "mnist_m_contact_sheet.png").mkdir()
    done = run(shared[0] / "photos.tgz", shared[0] / "mnist", tmp_path)
    refused(done, "is a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mnist_m_contact_sheet.png"]


# Archives and photographs: through the function the command calls, to keep the suite fast


def read_refused(path, *parts):
    with pytest.raises(UserError) as caught:
        photos.read_training_photos(path)
    for part in (path, *parts):
        assert str(part) in str(caught.value)


def test_the_command_refuses_in_one_line(shared, tmp_path):
    bst = make_tgz(tmp_path / "x.tgz", {**PHOTOS, "bad.jpg": b"\xff\xd8 nothing"})
    refused(run(bst, shared[0] / "mnist", tmp_path / "out"), "bad.jpg", "truncated JPEG")
    assert not (tmp_path / "out").exists()


def jpeg(seed=0):
    return cv2.imencode(".jpg", np.random.RandomState(seed).randint(0, 256, (40, 40, 3)).astype(np.uint8))[
        1
    ].tobytes()


BAD_PHOTOS = {
    "truncated.jpg": jpeg()[:-40],
    "header.jpg": b"\xff\xd8\xff\xd9",
    "text.jpg": b"not a photograph",
    "empty.png": b"",
    "truncated.png": png(0)[:-10],
    "damaged.png": png(0)[:200] + b"?" + png(0)[201:],
    "small.png": png(0, (27, 40, 3)),
}


@pytest.mark.parametrize("name", BAD_PHOTOS)
@pytest.mark.parametrize("make", [make_tgz, make_zip, make_folder])
def test_unreadable_photograph_is_named(tmp_path, make, name):
    read_refused(make(tmp_path / "x", {**PHOTOS, name: BAD_PHOTOS[name]}), name)


def test_photograph_of_enormous_dimensions(tmp_path):
    data = bytearray(png(0))
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    read_refused(make_folder(tmp_path / "x", {"huge.png": bytes(data)}), "60000x60000")


HOSTILE = {
    "climbing": ("../../evil.jpg", b"x", {}),
    "climbing inside": ("BSR/../../evil.jpg", b"x", {}),
    "absolute": ("/tmp/evil.jpg", b"x", {}),
    "photograph is a link": (INSIDE + "evil.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "3.png"}),
    "photograph is a hard link": (
        INSIDE + "evil.jpg",
        b"",
        {"type": tarfile.LNKTYPE, "linkname": INSIDE + "3.png"},
    ),
    "link to outside": ("BSR/passwd", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    "link that climbs": ("BSR/x", b"", {"type": tarfile.SYMTYPE, "linkname": "../../x"}),
    "device": (INSIDE + "evil.jpg", b"", {"type": tarfile.CHRTYPE}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tgz_is_refused(tmp_path, case):
    read_refused(make_tgz(tmp_path / "x.tgz", PHOTOS, [HOSTILE[case]]), "hostile archive")


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../b.jpg", "C:/evil.jpg", "..\\evil.jpg"])
def test_hostile_zip_is_refused(tmp_path, name):
    path = make_zip(tmp_path / "x.zip", PHOTOS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    read_refused(path, "hostile archive")


def test_zip_with_a_link_is_refused(tmp_path):
    path = make_zip(tmp_path / "x.zip", PHOTOS)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo(INSIDE + "evil.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    read_refused(path, "is a link")


@pytest.mark.parametrize("suffix", ["tgz", "zip"])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(photos, "MAX_FILE_BYTES", 2**20)
    make = {"tgz": make_tgz, "zip": make_zip}[suffix]
    read_refused(make(tmp_path / "x", {**PHOTOS, "big.jpg": bytes(2**21)}), "big.jpg", "larger than 1 MB")


def test_a_damaged_lzma_zip_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(INSIDE + "a.jpg", bytes(range(256)) * 64)
        begin = archive.infolist()[0].header_offset + 30 + len(INSIDE + "a.jpg") + 9
    data = bytearray(path.read_bytes())
    data[begin : begin + 60] = b"\xff" * 60
    path.write_bytes(data)
    read_refused(path, "truncated or damaged archive")


def test_tar_header_that_claims_gigabytes_is_refused(tmp_path, monkeypatch):
    """tarfile reads an extended header whole; ours stops it at the limit."""
    monkeypatch.setattr(photos, "MAX_FILE_BYTES", 2**20)
    path = tmp_path / "x.tgz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        add(archive, INSIDE + "a.png", PHOTOS["3.png"], pax_headers={"comment": "x" * 2**21})
    read_refused(path, "header or member")


@pytest.mark.parametrize("limit", ["MAX_MEMBERS", "MAX_ARCHIVE_BYTES"])
def test_archives_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(photos, limit, 2)
    read_refused(make_tgz(tmp_path / "x.tgz", PHOTOS), "hostile archive, ")


def test_data_after_the_tar_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MAX_ARCHIVE_BYTES", 2**22)
    path = make_tgz(tmp_path / "x.tgz", PHOTOS)
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(2**23)))
    read_refused(path, "unpacks to more")


@pytest.mark.parametrize("make", [make_tgz, make_zip])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_truncated_archive_is_refused(tmp_path, make, keep):
    path = make(tmp_path / "x", PHOTOS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    read_refused(path, "damaged archive")


def test_gzip_checksum_of_the_archive_is_checked(tmp_path):
    path = make_tgz(tmp_path / "x.tgz", PHOTOS)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(bytes(data))
    read_refused(path, "CRC")


def test_archives_without_photographs(tmp_path):
    for path in (
        make_tgz(tmp_path / "x.tgz", {}),
        make_zip(tmp_path / "x.zip", {}),
        make_folder(tmp_path / "x", {}),
    ):
        read_refused(path, "no training photographs")
    only_test = make_tgz(
        tmp_path / "y.tgz", {}, [("BSR/BSDS500/data/images/test/1.png", PHOTOS["3.png"], {})]
    )
    read_refused(only_test, "no training photographs")


@pytest.mark.parametrize(
    "data", [b"", b"plain text", b"\x1f\x8b", b"\x1f\x8bgarbage after the magic", b"PKgarbage"]
)
def test_not_an_archive(tmp_path, data):
    (tmp_path / "x.tgz").write_bytes(data)
    read_refused(tmp_path / "x.tgz", photos.BSDS500_URL)


def test_two_photographs_of_one_name(tmp_path):
    again = [("other/train/3.png", PHOTOS["3.png"], {})]
    read_refused(make_tgz(tmp_path / "x.tgz", PHOTOS, again), "two training photographs are called 3.png")


def test_hidden_files_and_other_splits_are_not_photographs(tmp_path):
    extra = [
        ("BSR/BSDS500/data/images/val/9.png", b"x", {}),
        (INSIDE + "._3.png", b"x", {}),
        (INSIDE + "a.mat", b"", {}),
    ]
    names, pictures = photos.read_training_photos(make_tgz(tmp_path / "x.tgz", PHOTOS, extra))
    assert names == sorted(PHOTOS) and pictures[0].shape == (40, 50, 3)


def test_links_inside_the_archive_that_nobody_reads_are_harmless(tmp_path):
    extra = [("BSR/bench/lib", b"", {"type": tarfile.SYMTYPE, "linkname": "../grouping/lib"})]
    assert len(photos.read_training_photos(make_tgz(tmp_path / "x.tgz", PHOTOS, extra))[0]) == 3


def test_real_bsds500():
    path = Path(DATA_ROOT or "", "bsds500", "BSR_bsds500.tgz")
    if not DATA_ROOT or not path.is_file():
        pytest.skip("DATA_ROOT has no bsds500")
    names, pictures = photos.read_training_photos(path)
    assert len(names) == 200 and names == sorted(names)
    assert {picture.shape for picture in pictures} == {(321, 481, 3), (481, 321, 3)}
