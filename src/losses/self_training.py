"""Self-training: a student learns labelled source images and a teacher's pseudo-labels of target images."""

import mindspore as ms
from mindspore import nn, ops

from src.losses.adversarial import first_rows, other_rows
from src.losses.classification import accuracy, cross_entropy
from src.losses.consistency import pseudo_label_loss, pseudo_labels


class StudentLoss(nn.Cell):
    """Cross-entropy of N labelled source images plus `weight` times the loss of N pseudo-labels.

    Inputs: source images (N, C, S, S) and labels (N,); target images as the student sees them and as the
        teacher does (N, C, S, S); dropout masks of 2N rows, source first. The teacher gets no gradient; it
        normalises by the target batch it sees, and its running statistics become those of the target
        (adaptive batch normalisation, Li et al. 2016, arXiv 1603.04779).

    Args:
        student, teacher: networks of the same kind.
        weight: of the pseudo-labels.
        kind: of their loss, see `consistency.pseudo_label_loss`.
        threshold: least probability of a pseudo-label.
        class_thresholds: None, or the `ClassThresholds` that take its place.

    Returns the total and (class loss, pseudo-label loss, share of pseudo-labels used, class accuracy).
    """

    def __init__(self, student, teacher, weight, kind, threshold, class_thresholds=None):
        super().__init__(auto_prefix=False)
        self.student, self.teacher, self.split = student, teacher, student.split
        self.weight, self.kind, self.threshold = weight, kind, threshold
        self.class_thresholds = class_thresholds

    def _logits(self, images, masks):
        return ops.cast(self.student(images, *masks), ms.float32)

    def construct(self, source, labels, target, seen, *masks):
        half = labels.shape[0]
        guesses = ops.stop_gradient(self.teacher(seen))
        thresholds = self.threshold
        if self.class_thresholds is not None:
            thresholds = ops.stop_gradient(self.class_thresholds(guesses))
        classes, chosen = pseudo_labels(guesses, thresholds)
        source_logits = self._logits(source, first_rows(masks, half))
        target_logits = self._logits(target, other_rows(masks, half))
        class_loss = cross_entropy(source_logits, labels)
        cost = pseudo_label_loss(target_logits, guesses, classes, chosen, self.kind)
        scalars = class_loss, cost, ops.mean(chosen), accuracy(source_logits, labels)
        return class_loss + self.weight * cost, scalars
