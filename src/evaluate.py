"""Accuracy of a network on test splits: one function for every method."""

import contextlib

import mindspore as ms
import numpy as np
from mindspore import ops

from model_utils.device import jit


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
        for images, labels in loader:
            short = loader.batch_size - len(images)
            if short and count:
                # A short last batch would compile a second graph; zero images fill it and are not counted.
                images = np.concatenate((images, np.zeros((short, *images.shape[1:]), images.dtype)))
            hits += int((self.predict(images)[: len(labels)] == labels).sum())
            count += len(labels)
        hits, count = self.device.all_sum(hits, count)
        return hits / count

    def accuracies(self, test_sets):
        """{domain: accuracy}; the network is in evaluation mode meanwhile, then as it was."""
        with evaluating(self.network):
            return {domain: self.accuracy(loader) for domain, loader in test_sets.items()}
