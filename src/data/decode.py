"""One decoder for all image files: bytes to uint8 RGB, whatever the file is called.

JPEG, PNG, BMP and WebP are recognised by their content. The orientation that a camera notes (EXIF) is
applied. Grey, palette and CMYK images become RGB, transparency is dropped, and of 16 bits a channel the upper
8 are kept. Bytes behind an image's end are not an error. A file that ends too early is an error, because
decoders answer it with a picture whose lower part is grey.
"""

import io
import os
import re
import stat
import struct
import zlib

import numpy as np

MAX_PIXELS = 100_000_000  # the largest photograph of ImageNet has 61 million; decoded, this takes 300 MB
MAX_BYTES = 512 * 2**20
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# What decoding needs: libpng prints warnings about colour profiles and the like.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of a colour type
PNG_WAYS = ([0, 0, 0], [0, 0, 1])  # of compressing, filtering and interlacing
JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)  # neither a stuffed zero nor a restart
START, END, SCAN = 0xD8, 0xD9, 0xDA
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
UNCOMPRESSED_BMP = (0, 3, 6)
# What Pillow raises for damaged files; from struct.error on, for what a damaged EXIF says of the orientation.
WEBP_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    AttributeError,
    TypeError,
    LookupError,
)


class Unreadable(Exception):
    """A file that holds no whole image; the message is the reason, in words."""


def read(path):
    """The image in a file, uint8 RGB (H, W, 3); `Unreadable` if there is none."""
    return decode(content(path))


def content(path):
    """The bytes of a regular file of at most MAX_BYTES; `Unreadable` otherwise."""
    try:
        # A pipe without a writer would be waited for without O_NONBLOCK.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if status.st_size > MAX_BYTES:
                raise Unreadable(f"larger than {MAX_BYTES >> 20} MB")
            with open(file, "rb", closefd=False) as whole:  # which reads on where a single read is short
                return whole.read(status.st_size)
        finally:
            os.close(file)
    except OSError as error:
        raise Unreadable(error.strerror) from error
    except ValueError as error:  # a zero byte in the name
        raise Unreadable("impossible file name") from error


def decode(data):
    """The image in the bytes of a JPEG, PNG, BMP or WebP file, uint8 RGB (H, W, 3).

    Raises:
        Unreadable: another format, a file that is cut short or damaged, or more than MAX_PIXELS.
    """
    try:
        height, width, data = _look(data)
    except (struct.error, IndexError) as error:
        raise Unreadable("damaged header") from error
    if height * width < 1:
        raise Unreadable("no pixels")
    if height * width > MAX_PIXELS:
        raise Unreadable(
            f"{width}x{height} pixels, more than the {MAX_PIXELS // 10**6} million that are read; scale it "
            "down"
        )
    image = _webp(data) if data.startswith(b"RIFF") else _opencv(data)
    if image is None:
        raise Unreadable("could not be decoded")
    return image


def _opencv(data):
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)


def _webp(data):
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except WEBP_DAMAGE:
        return None


def _look(data):
    """(height, width, the bytes to decode) of a whole image file."""
    if data.startswith(b"\xff\xd8"):
        return _look_at_jpeg(data)
    if data.startswith(PNG_MAGIC):
        return _look_at_png(data)
    if data.startswith(b"BM"):
        return _look_at_bmp(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _look_at_webp(data)
    raise Unreadable("neither JPEG, PNG, BMP nor WebP" if data else "empty file")


def _look_at_jpeg(data):
    """Walks from marker to marker; the end marker of a preview inside the header does not count."""
    position, size, scanned = 2, None, False
    while (match := JPEG_MARKER.search(data, position)) is not None:
        marker, position = data[match.end() - 1], match.end()
        if marker == END and size and scanned:
            return *size, data
        if marker in (START, END):
            break
        if marker == 0x01:
            continue
        if marker in FRAMES:
            size = struct.unpack_from(">HH", data, position + 3)
        scanned |= marker == SCAN
        position += struct.unpack_from(">H", data, position)[0]
    raise Unreadable("truncated JPEG")


def _look_at_png(data):
    width, height, depth, colour, *ways = struct.unpack_from(">IIBBBBB", data, 16)
    position, kind, kept = len(PNG_MAGIC), None, [PNG_MAGIC]
    while kind != b"IEND":
        if position + 12 > len(data):
            raise Unreadable("truncated PNG")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise Unreadable("truncated PNG")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if checksum != zlib.crc32(memoryview(data)[position + 4 : end - 4]):
            raise Unreadable("damaged PNG: wrong checksum")
        if kind in PNG_CHUNKS:
            kept.append(data[position:end])
        position = end
    # libpng would refuse these as well, and print why.
    if data[8:16] != b"\0\0\0\rIHDR" or depth not in PNG_DEPTHS.get(colour, ()) or ways not in PNG_WAYS:
        raise Unreadable("damaged PNG: impossible header")
    return height, width, b"".join(kept)


def _look_at_bmp(data):
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, size = 0, 0
    else:
        width, height, _, bits, compression, size = struct.unpack_from("<iiHHII", data, 18)
    height = abs(height)
    if compression in UNCOMPRESSED_BMP:
        size = (width * bits + 31) // 32 * 4 * height
    if offset + size > len(data):
        raise Unreadable("truncated BMP")
    return height, width, data


def _look_at_webp(data):
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise Unreadable("truncated WebP")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (number & 0x3FFF for number in struct.unpack_from("<HH", data, 26))
    return height, width, data
