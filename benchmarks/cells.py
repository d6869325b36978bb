"""What the benchmarks compile; the graph compiler wants it in a file of its own."""

import mindspore as ms
from mindspore import nn, ops


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


class _CrossEntropy(nn.Cell):
    """Mean cross-entropy of network(images) with the labels."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, labels):
        return ops.cross_entropy(self.network(images), labels)


class ClassifierStep:
    """step(images, labels): one update of `network` by SGD with momentum; gives the loss before it."""

    def __init__(self, network, lr, momentum, weight_decay):
        self.optimizer = nn.Momentum(network.trainable_params(), lr, momentum, weight_decay)
        self.gradient = ms.value_and_grad(_CrossEntropy(network), None, network.trainable_params())

    @ms.jit
    def step(self, images, labels):
        loss, gradients = self.gradient(images, labels)
        return ops.depend(loss, self.optimizer(gradients))


class Evaluation:
    """step(x): network(x), compiled."""

    def __init__(self, network):
        self.network = network

    @ms.jit
    def step(self, x):
        return self.network(x)
