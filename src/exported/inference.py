"""From image files to classes: what infer.py and eval_onnx.py share, whatever the model's format."""

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np

from model_utils import paths
from model_utils.errors import UserError, shortened
from src.data import image_folder

log = logging.getLogger("run")

TOP = 5
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the marks that Windows' editors begin such a text with
USUAL_SIZE, USUAL_CROP = 224, 0.875  # of ImageNet classifiers from elsewhere


# Class names


def class_names(model, count, names_file=None):
    """The names of a model's `count` classes in the order of its logits, or None if nobody knows them.

    Args:
        names_file: UTF-8 text: either one name per line, or, where the model knows its class folders, lines
            `folder name` (ImageNet's `n01440764 tench, Tinca tinca`), in any order, more than needed or not.

    Raises:
        UserError: the file can't be read or has another number of names.
    """
    known = model.about.get("class_names")
    if known is not None and len(known) != count:
        raise UserError(
            f"model: {model.path} has {count} logits, but names {len(known)} classes; export it again"
        )
    if not names_file:
        return known
    try:
        content = Path(paths.expanded(names_file, "class_names")).read_bytes()
        text = content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"class_names: {names_file}: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"class_names: {names_file} is no UTF-8 text; give one name per line") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    keyed = [tuple(line.split(maxsplit=1)) for line in lines if len(line.split(maxsplit=1)) == 2]
    if known and set(known) & {key for key, _ in keyed}:
        return _by_folder(known, keyed, names_file)
    if known and len(lines) == count and sorted(known, key=_natural) != list(known):
        at = next(i for i, name in enumerate(sorted(known, key=_natural)) if name != known[i])
        raise UserError(
            f"class_names: {names_file} has no folder names, and the class folders are in the order "
            f"{shortened(known[: at + 2], at + 2)}, … of text, not of numbers: line {at + 1} would name "
            f"folder {known[at]}; write lines `folder name`"
        )
    if len(lines) != count:
        raise UserError(
            f"class_names: {names_file} has {len(lines)} names, but the model has {count} classes; give one "
            "name per line in the order of the classes"
        )
    return lines


def _by_folder(known, keyed, names_file):
    """The names of the folders `known` out of (folder, name) pairs; UserError unless each has just one."""
    names = {}
    for folder, name in keyed:
        if names.setdefault(folder, name) != name and folder in known:
            raise UserError(f"class_names: {names_file} names {folder} twice, {names[folder]} and {name}")
    missing = [folder for folder in known if folder not in names]
    if missing:
        raise UserError(
            f"class_names: {names_file} has no name for {shortened(missing, 3)}; give a line "
            "`folder name` for every class"
        )
    log.info("class names: %s", shortened([f"{folder} = {names[folder]}" for folder in known], 3))
    return [names[folder] for folder in known]


def _natural(name):
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


# Images to logits


def cropper(model):
    """A function that prepares one image for `model`, uint8 (H, W, 3) -> (S, S, 3), as eval.py does.

    Raises:
        UserError: the model was made by a method whose images come from no folder.
    """
    about = model.about
    if about and "image_size" not in about:
        raise UserError(
            f"model: {model.path} was trained by method {about.get('method')}, which reads no image folders; "
            "infer.py takes models of methods that do, such as hardnet"
        )
    if not about:
        log.warning(
            "warning: %s does not say how its images are prepared; taken: the middle %d x %d, the short "
            "side at %d, ImageNet's mean and deviation",
            model.path,
            *([model.size or USUAL_SIZE] * 2),
            int((model.size or USUAL_SIZE) / USUAL_CROP),
        )
    size, share = about.get("image_size", model.size or USUAL_SIZE), about.get("crop_pct", USUAL_CROP)
    return lambda image: image_folder.centre_crop(image, size, share)


def predictions(model, reader, batch_size):
    """Yield (index, logits float32 (K,)) of each file of an ImageReader that can be read, in order.

    `reader.bad` names the others afterwards.
    """
    crop = cropper(model)
    indices, crops = [], []

    def logits():
        return zip(indices, model.logits(image_folder.normalise(np.stack(crops))), strict=True)

    for index, image in reader.images(range(len(reader.files)), replace=False):
        indices.append(index)
        crops.append(crop(image))
        if len(crops) == batch_size:
            yield from logits()
            indices, crops = [], []
    if crops:
        yield from logits()


def ranking(logits, top=TOP):
    """The `top` classes by falling logit, int (..., top); equal ones by number."""
    return np.argsort(-logits, axis=-1, kind="stable")[..., :top]


def probabilities(logits):
    """Softmax over the last axis."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@dataclasses.dataclass
class Score:
    """Hits among `count` labelled images. `top5` counts only where there are more than five classes."""

    count: int = 0
    top1: int = 0
    top5: int = 0
    classes: int = 0

    def add(self, logits, labels):
        """Count logits (N, K) with their labels (N,)."""
        hits = ranking(logits) == np.asarray(labels)[:, None]
        self.classes = logits.shape[1]
        self.count += len(hits)
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.any(1).sum())

    def accuracies(self):
        """{"top-1": share in [0, 1], "top-5": likewise}; without top-5 for up to five classes."""
        shares = {"top-1": self.top1 / self.count}
        return shares | ({"top-5": self.top5 / self.count} if self.classes > TOP else {})


def score(model, loader):
    """The Score of a model on a test loader's (images, labels)."""
    total = Score()
    for images, labels in loader:
        total.add(model.logits(images), labels)
    return total
