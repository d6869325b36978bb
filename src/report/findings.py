"""What a report says in numbers, from predictions alone; labels serve accuracy and confusion."""

import dataclasses

import numpy as np
from scipy.special import softmax


@dataclasses.dataclass
class Findings:
    """Predictions of one domain.

    Attributes:
        indices: int (N,), the images' places in their loader.
        predicted: int (N,), classes.
        confidence: float (N,) in [0, 1], the probability of the predicted class.
        margin: float (N,), by how much the largest logit exceeds the second; unlike the confidence it has
            no upper bound.
        labels: int (N,), or None where the domain has none.
        classes: K.
    """

    indices: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    labels: np.ndarray | None
    classes: int

    def shares(self):
        """Share of the images predicted to be of each class: (K,), sums to 1."""
        return np.bincount(self.predicted, minlength=self.classes) / max(1, len(self.predicted))

    def confusion(self):
        """int (K, K): images of class i (row) predicted as class j; None without labels."""
        if self.labels is None:
            return None
        matrix = np.zeros((self.classes, self.classes), int)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    def accuracy(self):
        """In [0, 1]; None without labels."""
        return None if self.labels is None else float((self.labels == self.predicted).mean())

    def most_certain(self, count):
        """Positions of `count` predictions: the surest of each class, then the second surest of each, …"""
        order = np.argsort(-self.margin, kind="stable")
        rank = np.empty(len(order), int)  # among the predictions of the same class
        for label in range(self.classes):
            own = order[self.predicted[order] == label]
            rank[own] = np.arange(len(own))
        return np.lexsort((self.predicted, rank))[:count]

    def least_certain(self, count):
        """Positions of the `count` predictions with the smallest margin, the smallest first."""
        return np.argsort(self.margin, kind="stable")[:count]


def find(evaluator, loader):
    """The Findings of a TestLoader's images, labels of -1 being none."""
    _, logits, labels = evaluator.predictions(loader)
    probabilities, largest = softmax(logits, axis=1), np.sort(logits, 1)[:, -2:]
    return Findings(
        loader.seen(),
        probabilities.argmax(1),
        probabilities.max(1),
        largest[:, 1] - largest[:, 0],
        None if (labels < 0).any() else labels,
        logits.shape[1],
    )
