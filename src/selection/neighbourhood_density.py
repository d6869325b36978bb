"""Soft neighbourhood density (Saito et al. 2021, arXiv 2108.10860)."""

import numpy as np
from scipy.special import log_softmax

TEMPERATURE = 0.05


def score(evidence):
    """Mean entropy, in nats, of how each target image's neighbours are shared out: in [0, ln(N - 1)].

    Similarity is the inner product of the probability vectors, scaled to length 1, without that of an image
    with itself; a softmax at temperature 0.05 over each row makes it a distribution (eq. 1 to 3). Images with
    many near neighbours have a high entropy.
    """
    vectors = evidence.target_probabilities
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    count = len(vectors)
    if count < 3:
        return None
    similarity = (vectors @ vectors.T)[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    logs = log_softmax(similarity / TEMPERATURE, axis=1)
    return float(-np.mean(np.sum(np.exp(logs) * logs, axis=1)))
