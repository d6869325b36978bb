"""How near the predicted shares of classes come to those of the source."""

import numpy as np


def score(evidence):
    """Minus half the sum of absolute differences (the total variation distance): in [-1, 0].

    It assumes that the target has the source's proportions, which need not be so. None without a source.
    """
    if evidence.source_shares is None:
        return None
    classes = evidence.target_logits.shape[1]
    predicted = np.bincount(evidence.target_logits.argmax(1), minlength=classes)
    return float(-0.5 * np.abs(predicted / predicted.sum() - evidence.source_shares).sum())
