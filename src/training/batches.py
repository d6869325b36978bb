"""Batches of several domains: cut into parts, and put together.

A batch is {name of a loader: (images, labels or None)}, arrays of the same number of rows.
"""

import mindspore as ms
import numpy as np


def parts(batch, count):
    """The batch cut into `count` equal parts, domain by domain: a list of batches."""
    if count == 1:
        return [batch]
    return [{name: _rows(pair, number, count) for name, pair in batch.items()} for number in range(count)]


def _rows(pair, number, count):
    images, labels = pair
    size, rest = divmod(len(images), count)
    if rest:
        raise ValueError(f"{len(images)} images can't be cut into {count} equal parts")
    rows = slice(number * size, (number + 1) * size)
    return images[rows], None if labels is None else labels[rows]


def joined(batch):
    """(images, labels) of all domains of a batch, one after the other, as Tensors."""
    columns = zip(*batch.values(), strict=True)
    images, labels = (np.concatenate(rows) if len(rows) > 1 else rows[0] for rows in columns)
    return ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels)
