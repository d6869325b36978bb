"""Reading files that may be anything: no more than a limit, or only what has the form it should have.

What a library does with a file that is not what it seems is its own affair; some read gigabytes of it first.
"""

import os

VARINT_BYTES = 10  # a number of 64 bits
MOST_FIELDS = 1_000_000  # at the top of one message; a network has a few thousand


def content(path, most):
    """The bytes of a file of at most `most` bytes.

    Raises:
        OSError: it can't be read.
        ValueError: it is larger.
    """
    with open(path, "rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"it is larger than {most >> 10:,} KiB")
    return found


def is_message(path, fields=None, ending=0):
    """Whether a file is one protobuf message: its fields follow each other to the end, and none is cut short.

    Only the outermost fields are looked at, and of them no more than number and length.

    Args:
        fields: the numbers that may occur; None: any.
        ending: how many bytes at the end do not belong to the message.

    Raises:
        OSError: it can't be read.
    """
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END) - ending
        file.seek(0)
        for _ in range(MOST_FIELDS):
            if file.tell() >= end:
                return file.tell() == end
            tag = _varint(file)
            if tag is None or tag >> 3 == 0 or (fields and tag >> 3 not in fields):
                return False
            length = _length(file, tag & 7)
            if length is None or length > end - file.tell():
                return False
            file.seek(length, os.SEEK_CUR)
    return False


def _varint(file):
    """The number that begins here; None if none does."""
    number = 0
    for position in range(VARINT_BYTES):
        byte = file.read(1)
        if not byte:
            return None
        number |= (byte[0] & 0x7F) << 7 * position
        if byte[0] < 0x80:
            return number
    return None


def _length(file, kind):
    """How many bytes a field's value of this wire type takes from here; None for one that does not exist."""
    if kind == 0:
        return 0 if _varint(file) is not None else None
    if kind == 2:
        return _varint(file)
    return {1: 8, 5: 4}.get(kind)
