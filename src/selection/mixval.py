"""MixVal (Hu et al. 2023, NeurIPS, "Mixed Samples as Probes for Unsupervised Model Selection").

The paper ranks candidates by either kind of mixture and adds the ranks. Here the mean of both shares is a
score of one run.
"""

import numpy as np

from model_utils.noise import generator

SHARE = 0.55  # of the first image of a mixture, whose class the mixture should have


def pairs(labels, seed=0):
    """(first, second) int (N,): every image with a partner, drawn by seed among all of them."""
    second = generator(seed, "mixed pairs").permutation(len(labels))
    return np.arange(len(labels)), second


def score(evidence):
    """How often a mixture is taken for its larger part: in [0, 1].

    Mean of two shares: among mixtures of two images that are predicted to be of one class (are classes
    dense?), and among those of two classes (are boundaries where images are few?). A kind without a pair does
    not count.
    """
    labels = evidence.target_logits.argmax(1)
    first, second = pairs(labels)
    hits = evidence.mixed_logits(first, second, SHARE).argmax(1) == labels[first]
    same, kept = labels[first] == labels[second], first != second
    shares = [hits[kind & kept].mean() for kind in (same, ~same) if (kind & kept).any()]
    return float(np.mean(shares)) if shares else None
