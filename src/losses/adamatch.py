"""AdaMatch's loss (Berthelot et al. 2022, arXiv 2106.04732). Logits are float32 (N, K), losses in nats."""

import mindspore as ms
from mindspore import nn, ops

from src.losses.adversarial import first_rows
from src.losses.classification import accuracy, cross_entropy
from src.losses.consistency import weighted_soft_loss

TINY = 1e-6


def aligned_predictions(source_logits, target_logits):
    """Target predictions after distribution alignment (section 3.2): (N, K), each row sums to 1.

    Softmax predictions of the target are multiplied by the ratio of the mean predictions of source and
    target, so that on average they have the classes in the source's proportions.
    """
    target = ops.softmax(target_logits, 1)
    ratio = (ops.mean(ops.softmax(source_logits, 1), 0) + TINY) / (ops.mean(target, 0) + TINY)
    aligned = target * ratio
    return aligned / ops.sum(aligned, 1).reshape(-1, 1)


def relative_threshold(source_logits, share):
    """`share` of the mean confidence on weakly augmented source images (section 3.3): a scalar in (0, 1)."""
    return share * ops.mean(ops.reduce_max(ops.softmax(source_logits, 1), 1))


class AdaMatchLoss(nn.Cell):
    """Class loss of both views of N source images, and pseudo-label loss of M target images.

    Inputs: images (2N + 2M, C, S, S): source weak and strong, target weak and strong; labels (N,);
        `mixing` (2N, K) in [0, 1], the share of the joint pass in the source logits; `weight`, scalar, of the
        target loss; dropout masks of all rows.

    All images go through the network as one batch, and the source images once more alone: batch
    normalisation gives other logits there, and the class loss reads a random interpolation of both (section
    3.1). Pseudo-labels are the aligned predictions of weak target views; those above the relative threshold
    count, and get no gradient.

    Args:
        network: images and masks -> logits.
        share: of the relative threshold.

    Returns the total and (class loss, pseudo-label loss, share of pseudo-labels used, class accuracy).
    """

    def __init__(self, network, share):
        super().__init__(auto_prefix=False)
        self.network, self.share = network, share

    def construct(self, images, labels, mixing, weight, *masks):
        half = labels.shape[0]
        joint = ops.cast(self.network(images, *masks), ms.float32)
        alone = ops.cast(self.network(images[: 2 * half], *first_rows(masks, 2 * half)), ms.float32)
        source = mixing * joint[: 2 * half] + (1.0 - mixing) * alone
        weak, strong = source[:half], source[half:]
        class_loss = cross_entropy(weak, labels) + cross_entropy(strong, labels)
        count = (images.shape[0] - 2 * half) // 2
        seen, unseen = joint[2 * half : 2 * half + count], joint[2 * half + count :]
        guesses = ops.stop_gradient(aligned_predictions(weak, seen))
        threshold = ops.stop_gradient(relative_threshold(weak, self.share))
        chosen = ops.cast(ops.reduce_max(guesses, 1) >= threshold, ms.float32)
        cost = weighted_soft_loss(unseen, guesses, chosen)
        scalars = class_loss, cost, ops.mean(chosen), accuracy(weak, labels)
        return class_loss + weight * cost, scalars
