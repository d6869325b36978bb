"""Photographs from files, and the BSDS500 training photographs from an archive or a folder.

Archives come from strangers: members are read into memory and never extracted to disk, links and paths that
climb out are refused, and sizes are limited.
"""

import gzip
import os
import posixpath
import stat
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from model_utils.archives import DAMAGED
from model_utils.errors import UserError
from src.data import decode as image_files
from src.data import download
from src.data.files import LeftOut, below, is_image, is_junk, shown

BSDS500_URL = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz"
BSDS500_MD5 = "0b17383ff0b21fe43d2f28e624203169"  # as another project checks it; not verified here
BSDS500_TRAINING_PHOTOS = 200
MAX_FILE_BYTES = 16 * 2**20  # a photograph of BSDS500 has 0.1 MB
MAX_ARCHIVE_BYTES = 2 * 2**30
MAX_MEMBERS = 100_000


def decode(data, name):
    """Decode an image file's bytes to uint8 RGB (H, W, 3); UserError naming it if that fails.

    JPEG values can differ by a unit or two between builds of libjpeg; OpenCV's wheels carry their own.
    """
    try:
        return image_files.decode(data)
    except image_files.Unreadable as error:
        raise UserError(
            f"{shown(name)}: not a readable photograph ({error}); replace it by a complete copy"
        ) from error


def read_file(path):
    """The bytes of an image file; UserError if it cannot be read or is implausibly large."""
    try:
        return image_files.content(path)
    except image_files.Unreadable as error:
        raise UserError(
            f"{shown(path)}: cannot be read ({error}); check the file and its permissions"
        ) from error


def fetch_bsds500(path):
    """Download BSR_bsds500.tgz to `path`; UserError if that fails or the file is another."""
    path = Path(path)
    download.fetch("BSDS500", path.parent, path.name, [BSDS500_URL], f"md5:{BSDS500_MD5}")


def read_training_photos(path):
    """Decode the training photographs of BSDS500.

    path: `BSR_bsds500.tgz`, a .zip of it, or an unpacked folder. A training photograph is a .jpg or .png in a
    folder called `train`.
    Returns (names, photos): file names in sorted order, whatever the order in the archive, and uint8 RGB
    arrays (H, W, 3).
    Raises UserError for anything that cannot be read completely, and for hostile archives.
    """
    path = Path(path)
    files = _collect(path)
    if not files:
        raise UserError(
            f"{path}: no training photographs in it (.jpg or .png in a folder called 'train'); it should be "
            f"BSR_bsds500.tgz from {BSDS500_URL}, a .zip of it, or the unpacked folder"
        )
    names = sorted(files)
    with ThreadPoolExecutor() as pool:
        photos = list(pool.map(lambda name: decode(files[name], f"{path}: {name}"), names))
    for name, photo in zip(names, photos, strict=True):
        if min(photo.shape[:2]) < 28:
            raise UserError(f"{path}: {name} is smaller than 28x28 pixels, no crop fits in it; remove it")
    return names, photos


def _collect(path):
    """{file name: bytes} of the training photographs in an archive or a folder."""
    if os.path.isdir(path):
        return _from_folder(path)
    if not os.path.exists(path):
        raise UserError(
            f"{path}: not found; --download true fetches it, or download {BSDS500_URL} to it, or give its "
            "place with --bst_path"
        )
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if start[:2] == b"\x1f\x8b":
                return _from_tgz(file, path)
            if start[:2] == b"PK":
                return _from_zip(file, path)
    except DAMAGED as error:
        raise UserError(
            f"{path}: truncated or damaged archive ({error}); download {BSDS500_URL} again"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read ({reason}); download {BSDS500_URL} again") from error
    raise UserError(f"{path}: neither a .tgz nor a .zip archive nor a folder; download {BSDS500_URL} again")


def _is_training_photo(name):
    path = PurePosixPath(name)
    return (
        path.parent.name == "train"
        and is_image(path.name)
        and not is_junk(path.name)
        and "__MACOSX" not in path.parts
    )


def _add(files, name, data, where):
    base = PurePosixPath(name).name
    if base in files:
        raise UserError(f"{where}: two training photographs are called {base}; keep one of them")
    files[base] = data


def _from_folder(folder):
    files = {}
    for path in below(os.path.realpath(folder), LeftOut()):
        if _is_training_photo(path):
            _add(files, path, read_file(path), folder)
    return files


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that refuses single reads larger than a header or a photograph can be.

    tarfile reads extended headers whole, of whatever size the archive claims.
    """

    def read(self, size=-1):
        if size < 0 or size > MAX_FILE_BYTES:
            raise tarfile.ReadError(f"a header or member of {size} bytes")
        return super().read(size)


def _from_tgz(file, path):
    files = {}
    limits = _Limits(path)
    with _BoundedGzip(fileobj=file) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for member in archive:
            wanted = _is_training_photo(member.name) and not member.isdir()
            limits.check(member.name, member.size, wanted)
            if member.issym() or member.islnk():
                # A symbolic link's target is relative to its own folder, a hard link's to the archive.
                base = posixpath.dirname(member.name) if member.issym() else ""
                _refuse_outside(posixpath.normpath(posixpath.join(base, member.linkname)), path)
            if wanted and not member.isreg():
                raise _hostile(path, f"{member.name} is a link or device, not a photograph")
            if wanted:
                _add(files, member.name, archive.extractfile(member).read(), path)
        while unpacked.read(2**20):  # to the end, where gzip checks length and CRC
            limits.drain(2**20)
    return files


def _from_zip(file, path):
    files = {}
    limits = _Limits(path)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            wanted = _is_training_photo(member.filename) and not member.is_dir()
            limits.check(member.filename, member.file_size, wanted)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _hostile(path, f"{member.filename} is a link")
            if wanted and member.flag_bits & 1:
                raise UserError(f"{path}: {member.filename} is encrypted; make a .zip without a password")
            if wanted:
                _add(files, member.filename, archive.read(member), path)
    return files


def _hostile(path, what):
    return UserError(f"{path}: hostile archive, {what}; download {BSDS500_URL} again")


def _refuse_outside(name, path):
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or name[1:2] == ":":
        raise _hostile(path, f"'{name}' lies outside of it")


class _Limits:
    """Counts what an archive unpacks to, so that a small file cannot keep the machine busy for hours."""

    def __init__(self, path):
        self.path, self.members, self.bytes = path, 0, 0

    def check(self, name, size, wanted):
        _refuse_outside(name, self.path)
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise _hostile(self.path, f"more than {MAX_MEMBERS} members")
        if wanted and size > MAX_FILE_BYTES:
            raise _hostile(self.path, f"{name} is larger than {MAX_FILE_BYTES >> 20} MB")
        self.drain(size)

    def drain(self, size):
        self.bytes += size
        if self.bytes > MAX_ARCHIVE_BYTES:
            raise _hostile(self.path, f"it unpacks to more than {MAX_ARCHIVE_BYTES >> 30} GB")
