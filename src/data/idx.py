"""IDX files, the format MNIST is published in, and a writer that leaves all of its files or none.

Layout: two zero bytes, the type (0x08: uint8), the number of dimensions, each dimension as a big-endian
32-bit integer, then the values, last dimension fastest (http://yann.lecun.com/exdb/mnist/).
"""

import contextlib
import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from src.data.split import Split, check_digits

# A gzip of a few MB can claim, and hold, terabytes. MNIST-M needs 141 MB.
MAX_BYTES = 2**31
GZIP_MAGIC = b"\x1f\x8b"


def header(shape):
    """The IDX header, as bytes, of a uint8 array of this shape."""
    return struct.pack(f">HBB{len(shape)}I", 0, 0x08, len(shape), *shape)


def read(path, ndim):
    """Read a uint8 IDX file of `ndim` dimensions, gzipped or not (recognised by content, not by name).

    Returns a read-only array: a memory map of a plain file, the unpacked values of a gzipped one.
    Raises UserError for a file that is not such an IDX file, cut short, too long, or damaged.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP_MAGIC
        return _read_gzip(path, ndim) if packed else _map_plain(path, ndim)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: truncated or damaged gzip file ({error}); {_replace(path)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file's permissions") from error


def read_pair(images_path, labels_path, sample_shape):
    """Read a file of images and the file of their labels, and check one against the other.

    sample_shape: the shape each image must have, (H, W) or (H, W, 3).
    Returns a Split; raises UserError for wrong sizes, counts or labels.
    """
    images = read(images_path, 1 + len(sample_shape))
    if images.shape[1:] != sample_shape:
        raise UserError(
            f"{images_path}: images of {_by(images.shape[1:])}, expected {_by(sample_shape)}; "
            "is it the file of another data set?"
        )
    labels = read(labels_path, 1)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels; "
            "the two files do not belong together: replace both"
        )
    if not len(images):
        raise UserError(f"{images_path}: holds no images; {_replace(images_path)}")
    return Split(images, check_digits(labels, labels_path))


def _by(shape):
    return "x".join(map(str, shape))


def _replace(path):
    return f"replace {Path(path).name} by a complete copy"


def _parse_header(start, path, ndim):
    """Shape and header length from the first bytes of a file; UserError if they are not as expected."""
    length = 4 + 4 * ndim
    expected = header((0,) * ndim)[:4]
    if not start:
        raise UserError(f"{path}: the file is empty; {_replace(path)}")
    if start[:4] != expected:
        raise UserError(
            f"{path}: magic number 0x{start[:4].hex()}, expected 0x{expected.hex()}; "
            f"not an idx{ndim}-ubyte file, {_replace(path)}"
        )
    if len(start) < length:
        raise UserError(f"{path}: the file ends inside its header; {_replace(path)}")
    shape = struct.unpack(f">{ndim}I", start[4:length])
    size = int(np.prod([int(n) for n in shape], dtype=object))
    if size > MAX_BYTES:
        raise UserError(
            f"{path}: header announces {_by(shape)} values, more than this program reads; {_replace(path)}"
        )
    return shape, size, length


def _wrong_size(path, shape, found):
    return UserError(
        f"{path}: header announces {_by(shape)} values but the file holds {found}; "
        f"the file is truncated or damaged, {_replace(path)}"
    )


def _map_plain(path, ndim):
    with open(path, "rb") as file:
        shape, size, offset = _parse_header(file.read(4 + 4 * ndim), path, ndim)
    found = path.stat().st_size - offset
    if found != size:
        raise _wrong_size(path, shape, found)
    if not size:  # an empty range cannot be mapped
        return np.empty(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", offset, shape)


def _read_gzip(path, ndim):
    with gzip.open(path, "rb") as file:
        shape, size, _ = _parse_header(file.read(4 + 4 * ndim), path, ndim)
        content = file.read(size)
        if len(content) != size:
            raise _wrong_size(path, shape, len(content))
        if file.read(1):  # reading to the end also checks the CRC
            raise _wrong_size(path, shape, f"more than {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)


class StagedFiles:
    """Several files that appear together or not at all.

    Each is written under a temporary name in the same folder. Leaving the `with` block normally flushes
    them to the disk and renames them over the old ones; an exception (a full disk, Ctrl-C) removes them
    and leaves the old files as they were. A failing write raises UserError naming the folder.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._staged = []

    def __enter__(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from error
        return self

    def open(self, name):
        """Open a new binary file that will be called `name`; returns (file, final path)."""
        final = self.folder / name
        if final.is_dir():
            raise UserError(f"{final}: is a folder where a file is to be written; move it away")
        temporary = self.folder / f".{name}.{os.getpid()}.partial"
        file = open(temporary, "wb")
        self._staged.append((file, temporary, final))
        return file, final

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                for file, _, _ in self._staged:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
                for _, temporary, final in self._staged:
                    os.replace(temporary, final)
        except OSError as late:
            error = late
        finally:
            self._discard()
        if isinstance(error, OSError):
            raise self._failure(error) from error

    def _discard(self):
        for file, temporary, _ in self._staged:
            # close() flushes first, which fails again on a full disk; it closes the file all the same.
            with contextlib.suppress(OSError):
                file.close()
            temporary.unlink(missing_ok=True)

    def _failure(self, error):
        return UserError(
            f"{self.folder}: cannot write ({error.strerror or error}); free space or choose another folder, "
            "files that were there before are unchanged"
        )
