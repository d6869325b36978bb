"""Self-training on unlabelled images: pseudo-labels from a teacher, and the student's loss on them.

Logits are float32 (N, K). Nothing here reads a label.
"""

import mindspore as ms
from mindspore import nn, ops

KINDS = ("hard", "soft", "squared")


def pseudo_labels(logits, thresholds):
    """The class that a teacher sees in each image, and whether it is sure of it.

    Returns (classes int32 (N,), chosen float32 (N,) of 0 and 1). `thresholds` is a scalar or a (K,) Tensor in
    (0, 1]. The class with the largest p_k / threshold_k is the label, and it is chosen if that ratio is at
    least 1. With a scalar this is FixMatch (Sohn et al. 2020, arXiv 2001.07685, eq. 4), with a threshold for
    each class it is Zou et al. 2018, arXiv 1810.07911, eq. 9.
    """
    ratios = ops.softmax(logits, 1) / thresholds
    classes = ops.cast(ops.argmax(ratios, 1), ms.int32)
    return classes, ops.cast(ops.reduce_max(ratios, 1) >= 1.0, ms.float32)


def pseudo_label_loss(logits, teacher_logits, classes, chosen, kind="hard"):
    """Loss of the student's `logits`: the mean over all N rows, in which rows that are not chosen count 0.

    kind: "hard", cross-entropy of the pseudo-label (FixMatch, eq. 4); "soft", cross-entropy of the teacher's
    distribution; "squared", squared distance of the two distributions, summed over classes (French et al.
    2018, arXiv 1706.05208, which takes the mean over classes). Returns a scalar >= 0.
    """
    log_probabilities = ops.log_softmax(logits, 1)
    if kind == "hard":
        losses = -ops.gather_elements(log_probabilities, 1, ops.expand_dims(classes, 1)).reshape(-1)
    elif kind == "soft":
        return weighted_soft_loss(logits, ops.softmax(teacher_logits, 1), chosen)
    else:
        losses = ops.sum(ops.square(ops.exp(log_probabilities) - ops.softmax(teacher_logits, 1)), 1)
    return ops.mean(losses * chosen)


def weighted_soft_loss(logits, wanted, chosen):
    """Cross-entropy of `logits` (N, K) against distributions `wanted` (N, K), each row times `chosen` (N,).

    The mean over all N rows, a scalar >= 0.
    """
    return ops.mean(-ops.sum(wanted * ops.log_softmax(logits, 1), 1) * chosen)


class ClassThresholds(nn.Cell):
    """Confidence thresholds that let the same share of every class's pseudo-labels pass.

    Zou et al. 2018 (arXiv 1810.07911) sort the confidences of the whole target set between rounds. Here the
    quantile of each class is followed from batch to batch: an image taken for class k raises threshold k by
    rate·(1 - portion) if it passes, and lowers it by rate·portion if not; it rests where the share `portion`
    passes. Part of a checkpoint.

    Args:
        portion: share of each class's images to be chosen, in (0, 1).
        start: every threshold at first.
        rate: how far one image moves it.

    Attributes:
        values: Parameter, float32 (K,), within [1 / K, 0.9999].
    """

    def __init__(self, classes, portion, start=0.9, rate=0.002):
        super().__init__(auto_prefix=False)
        self.classes, self.portion, self.rate = classes, portion, rate
        self.values = ms.Parameter(
            ms.Tensor([start] * classes, ms.float32), name="values", requires_grad=False
        )

    def construct(self, logits):
        """Move the thresholds by one batch of the teacher's logits; returns the new ones."""
        probabilities = ops.softmax(logits, 1)
        taken = ops.one_hot(
            ops.argmax(probabilities, 1), self.classes, ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32)
        )
        passed = ops.cast(probabilities >= self.values, ms.float32)
        moves = ops.sum(taken * (passed - self.portion), 0)
        moved = ops.clamp(self.values + self.rate * moves, 1.0 / self.classes, 0.9999)
        return ops.assign(self.values, moved)
