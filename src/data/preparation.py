"""How images are prepared for a network: a record that travels with the network, its checkpoint and exports.

There is one resizing rule for training, evaluation and inference: areas are averaged where an image shrinks,
and values are interpolated linearly where it grows; the aspect ratio is kept and the middle is cut out.
"""

import dataclasses

import numpy as np

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB values in [0, 1]
STRIP = 20  # times its short side, an image counts as a strip
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What a network expects of its images.

    Attributes:
        size: height and width in pixels.
        channels: 3 for RGB, 1 for grey.
        crop_pct: evaluation resizes the short side to size / crop_pct and cuts the middle; 1: whole images.
        mean, std: per channel, of values in [0, 1]; the network gets (value - mean) / std.
        crop_scale_min: training cuts out a random share of the area, at least this; 1: as in evaluation.
        flip: whether training mirrors images, each with probability 1/2.
    """

    size: int
    channels: int = 3
    crop_pct: float = 1.0
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    crop_scale_min: float = 1.0
    flip: bool = False

    def normalise(self, images):
        """float32 (N, C, H, W) in [0, 1] -> (value - mean) / std; the same array if that changes nothing."""
        if self._keeps_values():
            return images
        mean, std = self._columns()
        return (images - mean) / std

    def original(self, images):
        """What `normalise` was given, up to rounding; the same array if that changes nothing."""
        if self._keeps_values():
            return images
        mean, std = self._columns()
        return images * std + mean

    def _keeps_values(self):
        return not any(self.mean[: self.channels]) and set(self.std[: self.channels]) == {1.0}

    def _columns(self):
        """Mean and deviation, float32 (channels, 1, 1) each."""
        return [np.array(part[: self.channels], np.float32)[:, None, None] for part in (self.mean, self.std)]

    def to_network(self, images):
        """uint8 (N, S, S, 3) RGB, or (N, S, S) grey -> what the network gets, float32 (N, channels, S, S)."""
        import cv2

        std = np.array(self.std[: self.channels], np.float32)
        scale, shift = np.float32(1) / (255 * std), np.array(self.mean[: self.channels], np.float32) / std
        tables = (np.arange(256, dtype=np.float32)[:, None] * scale - shift).T.copy()
        result = np.empty((len(images), self.channels, *images.shape[1:3]), np.float32)
        for image, planes in zip(images, result, strict=True):
            if self.channels == 1 and image.ndim == 3:
                image = np.round(image @ LUMA).astype(np.uint8)
            channels = cv2.split(image) if image.ndim == 3 else [image] * self.channels
            for channel, table, plane in zip(channels, tables, planes, strict=True):
                cv2.LUT(channel, table, plane)
        return result

    def view(self, image):
        """The evaluation's view of one image: uint8 (H, W[, 3]) -> (size, size[, 3])."""
        side = max(self.size, int(self.size / self.crop_pct))
        image = _middle(image)
        height, width = image.shape[:2]
        if height <= width:
            height, width = side, max(side, int(side * width / height))
        else:
            height, width = max(side, int(side * height / width)), side
        image = resize(image, height, width)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return image[top : top + self.size, left : left + self.size]

    def as_dict(self):
        """What JSON can hold; `read` takes it back."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}


def _middle(image):
    """An image without the ends of a strip: enlarged as a whole, a line of pixels would take gigabytes."""
    most = STRIP * min(image.shape[:2])
    top, left = (max(0, length - most) // 2 for length in image.shape[:2])
    return image[top : top + most, left : left + most]


def resize(image, height, width):
    """uint8 (H, W[, 3]) to another size: areas are averaged when shrinking, else linear between pixels."""
    if image.shape[:2] == (height, width):
        return image
    import cv2

    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read(content):
    """The Preparation that `as_dict` described; None for anything else, as it may come from a stranger."""
    fields = {field.name for field in dataclasses.fields(Preparation)}
    if not isinstance(content, dict) or set(content) != fields:
        return None
    numbers = [content[name] for name in ("size", "channels", "crop_pct", "crop_scale_min")]
    lists = [content["mean"], content["std"]]
    if not all(isinstance(part, list) and len(part) in (1, 3) for part in lists):
        return None
    if not all(
        isinstance(n, int | float) and not isinstance(n, bool) for n in [*numbers, *lists[0], *lists[1]]
    ):
        return None
    sane = (
        isinstance(content["size"], int)
        and 1 <= content["size"] <= 4096
        and content["channels"] in (1, 3)
        and 0 < content["crop_pct"] <= 1
        and 0 < content["crop_scale_min"] <= 1
        and isinstance(content["flip"], bool)
        and all(value > 0 for value in content["std"])
        and min(map(len, lists)) >= content["channels"]
    )
    if not sane:
        return None
    return Preparation(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})
