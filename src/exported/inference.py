"""From image files to classes: what infer.py and eval_onnx.py share, whatever the model's format."""

import dataclasses
import logging

import numpy as np
from scipy.special import softmax

from model_utils.errors import UserError
from src.data import lists

log = logging.getLogger("run")

TOP = 5


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
    return lists.shown_names(names_file, count, known)


# Images to logits


def predictions(model, reader, batch_size):
    """Yield (index, logits float32 (K,)) of each file of a reader that can be read, in order.

    `reader.bad` names the others afterwards.
    """
    prepared = model.preparation
    if not model.about:
        log.warning(
            "warning: %s does not say how its images are prepared; taken: the middle %d x %d, the short "
            "side at %d, ImageNet's mean and deviation",
            model.path,
            prepared.size,
            prepared.size,
            int(prepared.size / prepared.crop_pct),
        )
    indices, crops = [], []

    def logits():
        return zip(indices, model.logits(prepared.to_network(np.stack(crops))), strict=True)

    for index, image in reader.stream(range(len(reader.files))):
        indices.append(index)
        crops.append(prepared.view(image))
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
    return softmax(np.asarray(logits, np.float64), axis=-1)


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
    """The Score of a model on a test loader's (images, labels); UserError for another number of classes."""
    total = Score()
    for images, labels in loader:
        logits = model.logits(images)
        if logits.shape[1] != len(loader.classes):
            raise UserError(
                f"model: {model.path} has {logits.shape[1]} classes, the data {len(loader.classes)}; give "
                "data with the classes it was trained on"
            )
        total.add(logits, labels)
    return total
