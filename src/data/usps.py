"""USPS (Hull 1994): 7,291 + 2,007 digits from envelopes, 16x16 grey, in the forms in which it is distributed.

Whatever the form, images come out as MNIST's do, uint8 with ink 255 on 0. If USPS's own range of -1..1 (or
0..1) were kept, source and target would differ in scale, and adaptation would collapse. They keep their 16x16
pixels; src/data/transforms.py brings them to a network's size.
"""

import bz2
import gzip
import io
import os
import zlib
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from src.data.download import fetch
from src.data.split import Missing, Split, check_digits, check_split

LIBSVM = {"train": ("usps", "usps.bz2"), "test": ("usps.t", "usps.t.bz2")}
ZIP_CODE = {"train": ("zip.train", "zip.train.gz"), "test": ("zip.test", "zip.test.gz")}
HDF5 = "usps.h5"
URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps"
FILES = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
MD5 = {  # of the libsvm files, as torchvision checks them
    "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
    "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
}
PIXELS = 256
MAX_TEXT_BYTES = 2**28  # the training text has 14 MB
TOLERANCE = 1e-3
LARGEST_BACKGROUND = 0.25  # of the darkest pixel of a whole file; text in 0..1 would read as 0.5..1


def load(root, split, download=False):
    """Load USPS from `root`, which holds one of
    - `usps`, `usps.t` (plain or .bz2): libsvm text, label = digit + 1, pixels `index:value` in -1..1;
    - `zip.train`, `zip.test` (plain or .gz): a digit and 256 pixels in -1..1 per line;
    - `usps.h5`: groups train and test with `data` in 0..1 and `target`; needs the package h5py.

    download: fetch the libsvm file into `root` if none of these is there.
    Returns a Split: images uint8 (N, 16, 16), ink 255 on 0.
    Raises UserError, with file and line, if the files are missing or malformed, or cannot be fetched.
    """
    check_split(split)
    for names, read in ((LIBSVM, _read_libsvm), (ZIP_CODE, _read_zip_code)):
        for path in (Path(root, name) for name in names[split]):
            if os.path.isfile(path):
                labels, values = read(path)
                return _finish(labels, (values + 1) / 2, path)
    if os.path.isfile(path := Path(root, HDF5)):
        return _finish(*_read_hdf5(path, split), path)
    if download:
        name = LIBSVM[split][1]
        fetch("USPS", root, name, [FILES + name], f"md5:{MD5[name]}")
        return load(root, split)
    looked_for = ", ".join((*LIBSVM[split], *ZIP_CODE[split], HDF5))
    raise Missing(
        f"USPS: none of {looked_for} found in {root}; fetch it with --download true, or get "
        f"{LIBSVM[split][1]} from {URL}"
    )


def _finish(labels, ink, path):
    """Check, then turn ink in 0..1 into uint8 (N, 16, 16)."""
    if not len(labels):
        raise UserError(f"{path}: holds no samples; replace it by a complete copy")
    if not (np.all(ink >= -TOLERANCE) and np.all(ink <= 1 + TOLERANCE)):  # NaN fails too
        row = np.flatnonzero(~np.all((ink >= -TOLERANCE) & (ink <= 1 + TOLERANCE), axis=1))[0]
        raise UserError(
            f"{path}: pixel value out of range in sample {row + 1}; replace it by a complete copy"
        )
    if ink.min() > LARGEST_BACKGROUND:
        raise UserError(
            f"{path}: no background in any sample: the pixel values are in another range than the format's "
            "(0..1 in place of -1..1?); replace it by the published file"
        )
    labels = check_digits(labels, path)
    return Split(np.rint(np.clip(ink, 0, 1) * 255).astype(np.uint8).reshape(-1, 16, 16), labels)


def _read_text(path):
    """The unpacked bytes of a text file; compression is recognised by content."""
    try:
        with open(path, "rb") as file:
            start = file.read(3)
            file.seek(0)
            opener = bz2.open if start == b"BZh" else gzip.open if start[:2] == b"\x1f\x8b" else None
            unpacked = opener(file) if opener else file
            text = unpacked.read(MAX_TEXT_BYTES + 1)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{path}: truncated, damaged or unreadable ({error}); replace it by a complete copy"
        ) from error
    if len(text) > MAX_TEXT_BYTES:
        raise UserError(f"{path}: unpacks to over {MAX_TEXT_BYTES >> 20} MB, which is not USPS; replace it")
    return text


def _table(text, columns):
    """Parse whitespace-separated numbers with NumPy's fast reader; None if it is not a table of `columns`."""
    if not text.strip():
        return np.empty((0, columns))
    try:
        table = np.loadtxt(io.BytesIO(text), ndmin=2, comments=None)
    except ValueError:
        return None
    return table if table.shape[1] == columns else None


def _parse_lines(text, path, parse):
    """The slow way, line by line: reads sparse rows, and finds the line to blame."""
    labels, rows = [], []
    for number, line in enumerate(text.decode("latin-1").splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, row = parse(line.split())
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; replace the file by a complete copy") from error
        labels.append(label)
        rows.append(row)
    return np.array(labels, np.int64), np.array(rows).reshape(-1, PIXELS)


def _whole(text):
    number = float(text)
    if number != int(number):
        raise ValueError(f"label '{text}' is not a whole number")
    return int(number)


def _read_libsvm(path):
    """Digits (N,) and pixels (N, 256) in -1..1."""
    text = _read_text(path)
    indices = np.arange(1, PIXELS + 1)
    table = _table(text.replace(b":", b" "), 1 + 2 * PIXELS)
    # Without its colons a malformed line could still be a row of numbers: count them.
    if table is not None and text.count(b":") == PIXELS * len(table) and np.all(table[:, 1::2] == indices):
        labels, values = table[:, 0], table[:, 2::2]
        if np.all(labels == np.rint(labels)):
            return labels.astype(np.int64) - 1, values
    labels, values = _parse_lines(text, path, _parse_libsvm)
    return labels - 1, values


def _parse_libsvm(fields):
    row = np.zeros(PIXELS)  # the format leaves out zeros
    last = 0
    for field in fields[1:]:
        index, colon, value = field.partition(":")
        if not colon or not index.isdigit() or not last < int(index) <= PIXELS:
            raise ValueError(f"'{field[:40]}' is not index:value with rising indices from 1 to {PIXELS}")
        last = int(index)
        row[last - 1] = float(value)
    return _whole(fields[0]), row


def _read_zip_code(path):
    """Digits (N,) and pixels (N, 256) in -1..1."""
    text = _read_text(path)
    table = _table(text, 1 + PIXELS)
    if table is not None and np.all(table[:, 0] == np.rint(table[:, 0])):
        return table[:, 0].astype(np.int64), table[:, 1:]
    return _parse_lines(text, path, _parse_zip_code)


def _parse_zip_code(fields):
    if len(fields) != 1 + PIXELS:
        raise ValueError(f"{len(fields)} numbers, expected a digit and {PIXELS} pixels")
    return _whole(fields[0]), [float(field) for field in fields[1:]]


def _read_hdf5(path, split):
    """Digits (N,) and ink (N, 256) in 0..1."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path}: reading HDF5 needs h5py: pip install h5py, or use {LIBSVM[split][1]}"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            data, target = file[split]["data"], file[split]["target"]
            if data.ndim != 2 or data.shape[1] != PIXELS or target.shape != data.shape[:1]:
                raise UserError(
                    f"{path}: {split}/data {data.shape} and {split}/target {target.shape}, "
                    f"expected (N, {PIXELS}) and (N,); replace it by a complete copy"
                )
            return np.asarray(target[:], np.int64), np.asarray(data[:], np.float64)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not USPS in HDF5 ({error}); replace it by a complete copy") from error
