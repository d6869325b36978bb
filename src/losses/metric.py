"""MASF's metric network (Dou et al. 2019, arXiv 1910.13580, section 3.2): where the triplet loss is taken."""

from mindspore import nn, ops

HIDDEN, EMBEDDING = 1024, 256
SLOPE = 0.2  # of the leaky ReLU below zero


class MetricNetwork(nn.Cell):
    """Features (N, D) -> embeddings (N, 256): D -> 1024 -> 256, leaky ReLU (0.2) after both layers."""

    def __init__(self, features):
        super().__init__()
        self.first = nn.Dense(features, HIDDEN)
        self.second = nn.Dense(HIDDEN, EMBEDDING)

    def construct(self, x):
        # LeakyReLU, max(x, 0.2 x), from operators that have second derivatives everywhere.
        x = _leaky(self.first(x))
        return _leaky(self.second(x))


def _leaky(x):
    return SLOPE * x + (1.0 - SLOPE) * ops.relu(x)
