"""What the benchmarks compile; the graph compiler wants it in a file of its own."""

import mindspore as ms
from mindspore import nn


class _Sum(nn.Cell):
    """Σ network(x) · weights, whose gradient with respect to the network's output is `weights`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, x, weights):
        return (self.network(x) * weights).sum()


class WeightedSum:
    """Σ network(x) · weights: step() gives [value, parameters' gradients, gradient of x if asked for]."""

    def __init__(self, network, input_gradient=True):
        cell = _Sum(network)
        self.input_gradient = input_gradient
        self.gradient = ms.value_and_grad(cell, 0 if input_gradient else None, cell.trainable_params())

    @ms.jit
    def step(self, x, weights):
        value, gradients = self.gradient(x, weights)
        if self.input_gradient:
            return [value, *gradients[1], gradients[0]]
        return [value, *gradients]
