"""Batch nuclear norm of target predictions (Cui et al. 2020, arXiv 2003.12237)."""

import numpy as np


def score(evidence):
    """Sum of the singular values of the (N, K) probabilities, as a share of the largest there can be.

    In (0, 1]. The largest is √(N·min(N, K)), for certain predictions that are equally many of each class.
    """
    probabilities = evidence.target_probabilities
    count, classes = probabilities.shape
    singular = np.linalg.svd(probabilities, compute_uv=False)
    return float(singular.sum() / np.sqrt(count * min(count, classes)))
