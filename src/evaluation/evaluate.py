"""Accuracy of a network on test splits: one function for every method."""

import contextlib

import mindspore as ms
import numpy as np
from mindspore import ops

from model_utils.device import jit

TOP = 5


@contextlib.contextmanager
def evaluating(*cells):
    """Within the block the cells are in evaluation mode; then each is as it was."""
    before = [cell.training for cell in cells]
    for cell in cells:
        cell.set_train(False)
    try:
        yield
    finally:
        for cell, training in zip(cells, before, strict=True):
            cell.set_train(training)


class Evaluator:
    """Compiles a network's forward pass once and counts correct predictions.

    Args:
        network: nn.Cell, images -> logits (N, K).
        config: `mode` chooses graph or PyNative.
        device: sums counts over ranks; every loader holds this rank's share.
    """

    top5_accuracy = {}  # see TopFiveEvaluator

    def __init__(self, network, config, device):
        self.network, self.device = network, device
        self._forward = jit(self._predict, config)

    def _predict(self, images):
        return ops.argmax(self.network(images), 1)

    def predict(self, images):
        """Predicted classes, int (N,), of float32 images (N, C, H, W)."""
        return self._forward(ms.Tensor.from_numpy(np.ascontiguousarray(images))).asnumpy()

    def accuracy(self, loader):
        """Top-1 accuracy in [0, 1] over all samples of all ranks, each counted once."""
        hits = count = 0
        for images, labels in _filled(loader):
            hits += int((self.predict(images)[: len(labels)] == labels).sum())
            count += len(labels)
        hits, count = self.device.all_sum(hits, count)
        return hits / count

    def accuracies(self, test_sets):
        """{domain: accuracy}; the network is in evaluation mode meanwhile, then as it was."""
        with evaluating(self.network):
            return {domain: self.accuracy(loader) for domain, loader in test_sets.items()}


class TopFiveEvaluator(Evaluator):
    """Counts besides how often the label is among the five largest logits, where there are six classes.

    Attributes:
        top5_accuracy: {domain: share in [0, 1]} of the last `accuracies`; empty for fewer classes.
    """

    def _predict(self, images):
        """The five best classes by falling logit, int (N, 5); of up to five classes only the best, (N, 1)."""
        logits = self.network(images)
        return ops.topk(logits, TOP if logits.shape[1] > TOP else 1)[1]

    def _both(self, loader):
        """(top-1, top-5 accuracy or None)."""
        counts, width = np.zeros(3, np.int64), 1
        for images, labels in _filled(loader):
            ranking = self.predict(images)[: len(labels)]
            hits = ranking == labels[:, None]
            counts += (hits[:, 0].sum(), hits.any(1).sum(), len(labels))
            width = ranking.shape[1]
        best, among, count = self.device.all_sum(*(int(value) for value in counts))
        return best / count, among / count if width == TOP else None

    def accuracies(self, test_sets):
        """{domain: top-1 accuracy}, and `top5_accuracy` is set; the network's mode stays what it was."""
        with evaluating(self.network):
            both = {domain: self._both(loader) for domain, loader in test_sets.items()}
        self.top5_accuracy = {domain: among for domain, (_, among) in both.items() if among is not None}
        return {domain: best for domain, (best, _) in both.items()}


def evaluator(network, config, device, top5):
    """The Evaluator of a method that counts hits among the five largest logits, or not."""
    return (TopFiveEvaluator if top5 else Evaluator)(network, config, device)


def held_out_accuracies(evaluator, loaders):
    """{"held_out_<domain>_accuracy": value} of {domain: loader}; {} for None."""
    accuracies = evaluator.accuracies(loaders or {})
    return {f"held_out_{domain}_accuracy": value for domain, value in accuracies.items()}


def _filled(loader):
    """The loader's batches, the last one filled up with zero images; its labels stay as few as there are.

    A short batch would compile a second graph.
    """
    count = 0
    for images, labels in loader:
        short = loader.batch_size - len(images)
        if short and count:
            images = np.concatenate((images, np.zeros((short, *images.shape[1:]), images.dtype)))
        yield images, labels
        count += len(labels)
