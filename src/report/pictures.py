"""Images as small JPEG pictures inside a page."""

import base64

import numpy as np

from src.data import decode
from src.data.files import shown
from src.data.preparation import resize

SIDE = 120  # pixels of the longer side
QUALITY = 82


def picture(loader, index):
    """One image of a TestLoader as it is stored, small: uint8 RGB (H, W, 3)."""
    try:
        image = loader.stored(index)
    except decode.Unreadable as error:
        raise OSError(f"{shown(loader.files[index])}: {error}") from error
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    scale = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return resize(np.ascontiguousarray(image), height, width)


def embedded(image):
    """uint8 RGB (H, W, 3) -> the address of a JPEG picture inside a page."""
    import cv2

    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise OSError("a picture could not be written as JPEG")
    return _address("jpeg", data.tobytes())


def embedded_png(path):
    """A PNG file -> the address of a picture inside a page; None where there is no such file."""
    return _address("png", path.read_bytes()) if path.is_file() else None


def _address(kind, content):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
