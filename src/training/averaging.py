"""The exponential moving average of a network's weights (after Polyak & Juditsky 1992)."""

import mindspore as ms
from mindspore import ops

from model_utils.device import jit

_for_each = ops.HyperMap()  # a loop over hundreds of parameters would take the graph compiler minutes


def _move(share, average, weight):
    return ops.assign(average, average + share * (weight - average))


class Trainable:
    """The weights of a network without its running statistics, for an average that keeps its own."""

    def __init__(self, network):
        self.get_parameters = network.trainable_params


class Average:
    """Keeps `averaged` the moving average of `trained`, two networks of the same kind.

    After step t (0-based) every parameter of `averaged`, the running statistics of batch normalisation among
    them, becomes d·average + (1 - d)·trained with d = min(decay, (1 + t) / (10 + t)): short at first, so that
    the initial weights are forgotten soon.

    Args:
        trained, averaged: nn.Cell; `averaged` starts as a copy.
        decay: in (0, 1).
        config: `mode` chooses graph or PyNative.
    """

    def __init__(self, trained, averaged, decay, config):
        self.decay = decay
        self.averages = ms.ParameterTuple(averaged.get_parameters())
        self.weights = ms.ParameterTuple(trained.get_parameters())
        for average, weight in zip(self.averages, self.weights, strict=True):
            ops.assign(average, weight)
        self._move = jit(self._moved, config)

    def _moved(self, share):
        return ops.depend(share, _for_each(ops.partial(_move, share), self.averages, self.weights))

    def update(self, step):
        """Move the average after training step `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        self._move(ms.Tensor(1.0 - decay, ms.float32))
