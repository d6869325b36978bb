"""What a rule may look at: predictions of a network. No target label is among it."""

import dataclasses

import numpy as np
from scipy.special import log_softmax


@dataclasses.dataclass
class Evidence:
    """Predictions of one network.

    Attributes:
        target_logits: float (N, K), of unlabelled target images.
        target_features: float (N, D), of the same.
        mixed_logits: function (first (N,), second (N,), share) -> float (N, K), the logits of mixed target
            inputs share·x[first] + (1 - share)·x[second].
        source_logits, source_labels: float (M, K) and int (M,), of held-out source images; None if nothing is
            held out.
        source_shares: float (K,), the classes' shares among the labelled training images, or None.
    """

    target_logits: np.ndarray
    target_features: np.ndarray
    mixed_logits: object
    source_logits: np.ndarray | None = None
    source_labels: np.ndarray | None = None
    source_shares: np.ndarray | None = None

    @property
    def target_log_probabilities(self):
        """float64 (N, K)."""
        return log_softmax(np.asarray(self.target_logits, np.float64), axis=1)

    @property
    def target_probabilities(self):
        """float64 (N, K), rows sum to 1."""
        return np.exp(self.target_log_probabilities)
