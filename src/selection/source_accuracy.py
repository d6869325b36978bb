"""Accuracy on held-out source images: what can be known for sure, and says little of the target."""

import numpy as np


def score(evidence):
    """In [0, 1]; None if nothing is held out."""
    if evidence.source_logits is None:
        return None
    return float(np.mean(evidence.source_logits.argmax(1) == evidence.source_labels))
