"""EnsV: agreement with what all candidates predict together (Hu et al. 2024, ensemble-based validation)."""

import numpy as np


def scores(probabilities):
    """For each candidate, how often it predicts what the mean over all candidates does: in [0, 1].

    probabilities: list of float (N, K), one for each candidate, of the same target images.
    """
    together = np.mean(probabilities, axis=0).argmax(1)
    return [float(np.mean(own.argmax(1) == together)) for own in probabilities]
