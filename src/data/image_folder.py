"""Labelled images in folders, `train/<class>/*` and `val/<class>/*`: ImageNet, Imagenette, and one's own.

A training batch is a pure function of (seed, step, rank): files are decoded in a given order by MindSpore's
C++ workers, and all that is random (order, crop, flip, jitter) is drawn from model_utils/noise.py. MindSpore
itself could do neither: continue in the middle of an epoch, nor give the same with more workers.
"""

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.key import Key
from model_utils.noise import generator
from src.data._image_reader import ImageReader
from src.data._prefetch import Prefetcher

log = logging.getLogger("run")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB values in [0, 1]
MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3
CROP_TRIES = 10


def keys():
    """The configuration keys of image folders; the folder itself is `dataset_path`."""
    return {
        "image_size": Key(224, "side of the square that training crops and evaluation cuts, pixels", low=32),
        "crop_pct": Key(
            0.875, "evaluation: image_size as a share of the side the image is resized to", above=0, high=1
        ),
        "crop_scale_min": Key(
            0.08, "training: smallest share of an image's area that is cut out", above=0, high=1
        ),
        "color_jitter": Key(
            0.0, "training: brightness, contrast and saturation times 1 - j to 1 + j", low=0, below=1
        ),
        "num_parallel_workers": Key(0, "threads that decode, at most one per processor; 0: as many", low=0),
        "cache": Key(
            "none", "memory: keep decoded training images, as many as fit", choices=("none", "memory")
        ),
        "strict": Key(False, "stop at an unreadable image or a stray file, instead of naming it"),
    }


@dataclasses.dataclass(frozen=True)
class Folder:
    """An image folder: `classes` sorted, `files` sorted by class and name, `labels` int32 (N,)."""

    root: Path
    classes: tuple
    files: tuple
    labels: np.ndarray


def find_split(dataset_path, split):
    """The folder of class folders of `split` ("train" or "val") below dataset_path.

    Raises:
        UserError: no such folder, or there is no train/ or val/ in it.
    """
    root = Path(dataset_path or ".")
    if not dataset_path or not root.is_dir():
        raise UserError(
            f"dataset_path: {str(dataset_path)!r} is no folder; give the one that holds train/<class>/* and "
            "val/<class>/*"
        )
    if not (root / split).is_dir():
        found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        raise UserError(
            f"dataset_path: {root} has no folder {split}/ (there are: {shortened(found, 5) or 'none'}); give "
            "the one that holds train/<class>/* and val/<class>/*"
        )
    return root / split


def scan(root, strict=False):
    """List the images of `<root>/<class>/*`.

    Files that are no .jpg, .jpeg, .png or .bmp are named in a warning, or refused if `strict`.

    Raises:
        UserError: no class folder, or one without an image.
    """
    root = Path(root)
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise UserError(f"{root}: no class folders in it; images belong into {root}/<class>/")
    files, labels, stray = [], [], []
    for label, name in enumerate(classes):
        found = sorted(entry.path for entry in os.scandir(root / name) if entry.is_file())
        images = [path for path in found if path.lower().endswith(EXTENSIONS)]
        stray += [path for path in found if not path.lower().endswith(EXTENSIONS)]
        if not images:
            raise UserError(
                f"{root / name}: no image ({', '.join(EXTENSIONS)}); remove the folder or fill it"
            )
        files += images
        labels += [label] * len(images)
    if stray:
        line = f"{root}: {len(stray)} files are no images by their names: {shortened(stray, 3)}"
        if strict:
            raise UserError(f"{line}; remove them, or leave out --strict")
        log.warning("warning: %s; left out", line)
    return Folder(root, tuple(classes), tuple(files), np.array(labels, np.int32))


def same_classes(folder, dataset_path):
    """UserError unless train/ beside the scanned val/ folder, if there is one, has the same class folders."""
    training = Path(dataset_path) / "train"
    if not training.is_dir():
        return
    names = {entry.name for entry in os.scandir(training) if entry.is_dir() and entry.name[0] != "."}
    different = sorted(names ^ set(folder.classes))
    if different:
        raise UserError(
            f"{folder.root}: train/ and val/ must have the same class folders; only in one of them: "
            f"{shortened(different, 3)}"
        )


def normalise(images):
    """uint8 (N, H, W, 3) RGB -> float32 (N, 3, H, W): (value / 255 - MEAN) / STD."""
    scale = np.float32(1) / (255 * np.array(STD, np.float32))
    shift = np.array(MEAN, np.float32) / np.array(STD, np.float32)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    planes *= scale[:, None, None]
    planes -= shift[:, None, None]
    return planes


def resize(image, height, width):
    """uint8 (H, W, 3) to another size: areas are averaged when shrinking, else linear between pixels."""
    import cv2

    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def centre_crop(image, size, crop_pct=0.875):
    """uint8 (H, W, 3) -> (size, size, 3): short side to size / crop_pct, then the middle."""
    side = max(size, int(size / crop_pct))
    height, width = image.shape[:2]
    if height <= width:
        height, width = side, max(side, int(side * width / height))
    else:
        height, width = max(side, int(side * height / width)), side
    image = resize(image, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def crop_box(height, width, scale, draws):
    """(top, left, height, width) of a random resized crop (Szegedy et al. 2015, arXiv 1409.4842).

    draws: CROP_TRIES x 4 numbers in [0, 1): area, ratio of the sides, position. The first try that fits is
    taken, else the middle of the image.
    """
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        ratio = MIN_RATIO * (MAX_RATIO / MIN_RATIO) ** ratio_draw
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            return int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w
    w = min(width, round(height * MAX_RATIO))
    h = min(height, round(width / MIN_RATIO))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter(images, factors):
    """Brightness, contrast and saturation of uint8 (N, H, W, 3), times `factors` (N, 3), in that order."""
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    brightness, contrast, saturation = (column[:, None, None, None] for column in factors.T)
    values = np.clip(images * brightness, 0, 255)
    mean = (values @ luma).mean((1, 2))[:, None, None, None]
    values = np.clip(mean + (values - mean) * contrast, 0, 255)
    grey = (values @ luma)[..., None]
    return np.clip(grey + (values - grey) * saturation + 0.5, 0, 255).astype(np.uint8)


class FolderTrainLoader:
    """Shuffled, augmented batches: see `batch`. Batches of the steps that follow are made ahead of time.

    Each epoch is a new permutation of all images, shared out over the ranks without overlap; what does not
    fill a batch is left out.

    Args:
        folder: a `Folder`.
        batch_size: images per step and rank.
        seed: chooses order and augmentation together with step and rank.
        image_size: side of the crops.
        scale: smallest and largest share of an image's area that a crop takes.
        color_jitter: j, factors lie in [1 - j, 1 + j]; 0: none.
        workers: threads that decode, 0 for one per processor.
        cache: "memory" keeps decoded images, H·W·3 bytes each, as many as fit; "none" decodes anew.
        strict: whether a file that can't be read stops the run; else another image is used, and said.

    Raises:
        UserError: fewer images than one step of all ranks needs.
    """

    def __init__(
        self,
        folder,
        batch_size,
        seed,
        image_size,
        rank=0,
        world=1,
        scale=(0.08, 1.0),
        color_jitter=0.0,
        workers=0,
        cache="none",
        strict=False,
    ):
        self.folder, self.batch_size, self.seed, self.image_size = folder, batch_size, seed, image_size
        self.scale, self.color_jitter, self.rank, self.world = scale, color_jitter, rank, world
        self.reader = ImageReader(folder.files, workers, cache == "memory", strict)
        self.steps_per_epoch = len(folder.files) // (batch_size * world)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size: {batch_size} x {world} processes is more than the {len(folder.files)} images "
                f"of {folder.root}; choose a smaller batch_size"
            )
        self._ahead = Prefetcher(self._batches)

    def batch(self, step):
        """(images float32 (B, 3, S, S) normalised, labels int32 (B,)) of training step `step`, from 0."""
        return self._ahead.get(step)

    def _batches(self, step):
        """Yield the batches from `step` on, for ever."""
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            order = generator(self.seed, "order train", epoch).permutation(len(self.folder.files))
            share = order[self.rank :: self.world][position * self.batch_size :]
            images = self.reader.images(share[: (self.steps_per_epoch - position) * self.batch_size])
            for _ in range(self.steps_per_epoch - position):
                yield self._one(step, [next(images) for _ in range(self.batch_size)])
                step += 1

    def _one(self, step, pairs):
        rng = generator(self.seed, "augment train", step, self.rank)
        draws = rng.random((len(pairs), CROP_TRIES, 4))
        flips = rng.random(len(pairs)) < 0.5
        batch = np.empty((len(pairs), self.image_size, self.image_size, 3), np.uint8)
        for row, (_, image) in enumerate(pairs):
            top, left, height, width = crop_box(*image.shape[:2], self.scale, draws[row])
            crop = resize(image[top : top + height, left : left + width], self.image_size, self.image_size)
            batch[row] = crop[:, ::-1] if flips[row] else crop
        if self.color_jitter:
            batch = jitter(batch, 1 + self.color_jitter * (2 * rng.random((len(pairs), 3)) - 1))
        return normalise(batch), self.folder.labels[[index for index, _ in pairs]]


class FolderTestLoader:
    """Every image once, in order, resized and cut from the middle; each rank sees its own share.

    Iterating gives (images float32 (B, 3, S, S) normalised, labels int32 (B,)); the last batch may be short.
    A file that can't be read is named in the log and not counted.
    """

    __test__ = False  # a loader, not a test case

    def __init__(
        self, folder, batch_size, image_size, crop_pct=0.875, rank=0, world=1, workers=0, strict=False
    ):
        self.folder, self.batch_size, self.image_size = folder, batch_size, image_size
        self.reader, self.crop_pct = ImageReader(folder.files, workers, False, strict), crop_pct
        self.indices = np.arange(len(folder.files))[rank::world]
        self.total = len(folder.files)

    def __len__(self):
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self):
        images, labels = [], []
        for index, image in self.reader.images(self.indices, replace=False):
            images.append(centre_crop(image, self.image_size, self.crop_pct))
            labels.append(self.folder.labels[index])
            if len(images) == self.batch_size:
                yield normalise(np.stack(images)), np.array(labels, np.int32)
                images, labels = [], []
        if images:
            yield normalise(np.stack(images)), np.array(labels, np.int32)
