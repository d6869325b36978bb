"""Accuracy of a network on test splits: one function for every method."""

import contextlib

import mindspore as ms
import numpy as np
from mindspore import ops

from model_utils.device import jit

TOP = 5


@contextlib.contextmanager
def evaluating(*cells):
    """Within the block the cells are in evaluation mode; then they, and all cells inside them, are as before.

    Parts of a network that is trained may be in evaluation mode: see `Trainer.freeze_statistics`.
    """
    before = [(inner, inner.training) for cell in cells for _, inner in cell.cells_and_names()]
    for cell in cells:
        cell.set_train(False)
    try:
        yield
    finally:
        for cell, training in before:  # set_train reaches what is inside, so the order is from outside in
            cell.set_train(training)


class Evaluator:
    """Compiles a network's forward pass once and counts correct predictions.

    Args:
        network: a `Classifier`, images -> logits (N, K).
        config: `mode` chooses graph or PyNative.
        device: sums counts over ranks; every loader holds this rank's share.
        top5: whether to count, too, how often the label is among the five largest logits.

    Attributes:
        counts: {domain: images counted} of the last `accuracies`, of all ranks.
        top5_accuracy: {domain: share in [0, 1]} of the last `accuracies`; empty for fewer than six classes.
    """

    def __init__(self, network, config, device, top5=False):
        self.network, self.device, self.top5 = network, device, top5
        self.counts, self.top5_accuracy = {}, {}
        self._forward = jit(self._features_and_logits, config)

    def _features_and_logits(self, images):
        features = self.network.features(images)
        return ops.cast(features, ms.float32), ops.cast(self.network.classify(features), ms.float32)

    def of_inputs(self, images, batch_size):
        """(features float32 (N, D), logits float32 (N, K)) of float32 images (N, C, S, S), `batch_size` at a
        time; the network, a `Classifier`, is in evaluation mode meanwhile, then as it was.
        """
        parts = [(images[start : start + batch_size],) * 2 for start in range(0, len(images), batch_size)]
        return self._predicted(_filled(parts, batch_size))[:2]

    def predictions(self, loader):
        """(features float32 (N, D), logits float32 (N, K), labels int32 (N,)) of a TestLoader's images; see
        `of_inputs`. What the loader's other ranks see is not in it.
        """
        return self._predicted(_filled(loader, loader.batch_size))

    def _predicted(self, batches):
        columns = []
        with evaluating(self.network):
            for images, labels in batches:
                features, logits = self._of_batch(images)
                columns.append((features[: len(labels)], logits[: len(labels)], labels))
        return tuple(np.concatenate(rows) for rows in zip(*columns, strict=True))

    def _of_batch(self, images):
        features, logits = self._forward(ms.Tensor.from_numpy(np.ascontiguousarray(images)))
        return features.asnumpy(), logits.asnumpy()

    def ranking(self, images):
        """The best classes by falling logit, int (N, 5), or only the best, (N, 1), of float32 images
        (N, C, S, S), as `network` is: see `accuracies`.
        """
        logits = self._of_batch(images)[1]
        if self.top5 and logits.shape[1] > TOP:
            return np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        return logits.argmax(1)[:, None]

    def _counted(self, loader):
        """(hits of the best class, hits among the five best or None, images), over all ranks."""
        counts, width = np.zeros(3, np.int64), 1
        for images, labels in _filled(loader, loader.batch_size):
            ranking = self.ranking(images)[: len(labels)]
            hits = ranking == labels[:, None]
            counts += (hits[:, 0].sum(), hits.any(1).sum(), len(labels))
            width = ranking.shape[1]
        best, among, count = self.device.all_sum(*(int(value) for value in counts))
        return best, among if width == TOP else None, int(count)

    def accuracies(self, test_sets):
        """{domain: accuracy in [0, 1]} over all images of all ranks, each counted once.

        The network is put into evaluation mode, and back into its own mode afterwards. A domain of which no
        image could be read is left out.
        """
        with evaluating(self.network):
            counted = {domain: self._counted(loader) for domain, loader in test_sets.items()}
        counted = {domain: counts for domain, counts in counted.items() if counts[2]}
        self.counts = {domain: count for domain, (_, _, count) in counted.items()}
        self.top5_accuracy = {
            d: among / count for d, (_, among, count) in counted.items() if among is not None
        }
        return {domain: best / count for domain, (best, _, count) in counted.items()}


def held_out_accuracies(evaluator, loaders):
    """{"held_out_<domain>_accuracy": value} of {domain: loader}; {} for None."""
    accuracies = evaluator.accuracies(loaders or {})
    return {f"held_out_{domain}_accuracy": value for domain, value in accuracies.items()}


def _filled(batches, batch_size):
    """The batches. A short last batch is filled up with zero images, but its labels are not.

    Another size would compile a second graph.
    """
    count = 0
    for images, labels in batches:
        short = batch_size - len(images)
        if short and count:
            images = np.concatenate((images, np.zeros((short, *images.shape[1:]), images.dtype)))
        yield images, labels
        count += len(labels)
