"""Mutual information of target images and predictions (Shi & Sha 2012, arXiv 1206.6438)."""

import numpy as np

from src.selection import entropy


def score(evidence):
    """Entropy of the mean prediction minus mean entropy: in nats, in [0, ln K].

    It is high where predictions are certain for each image and diverse over all of them.
    """
    mean = evidence.target_probabilities.mean(0)
    return float(-np.sum(mean * np.log(np.maximum(mean, 1e-12)))) + entropy.score(evidence)
