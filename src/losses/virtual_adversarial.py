"""Virtual adversarial training (Miyato et al. 2018, arXiv 1704.03976), as VADA uses it for domain adaptation
(Shu et al. 2018, arXiv 1802.08735): predictions must not change under the small change of the image that
would change them most. No label is read.
"""

import mindspore as ms
from mindspore import nn, ops

_for_each = ops.HyperMap()


def _sum(factor, one, other):
    return one + factor * other


def add_scaled(gradients, factor, others):
    """gradients + factor·others, element by element of two tuples; `factor` is a scalar Tensor."""
    return _for_each(ops.partial(_sum, factor), gradients, others)


def unit(directions):
    """Each image of (N, C, H, W) divided by its Euclidean norm; an image of zeros stays one."""
    square = ops.sum(ops.square(directions), (1, 2, 3), keepdim=True)
    return directions * ops.rsqrt(square + 1e-24)


def divergence(logits, wanted):
    """Mean of KL(softmax(wanted) || softmax(logits)) in nats. Logits (N, K); returns a scalar >= 0."""
    log_wanted, log_probabilities = ops.log_softmax(wanted, 1), ops.log_softmax(logits, 1)
    return ops.mean(ops.sum(ops.exp(log_wanted) * (log_wanted - log_probabilities), 1))


class Smoothness(nn.Cell):
    """scale·KL(p(x) || p(x + r)): images, moves r (N, C, H, W), logits of x (N, K), scale -> scalar."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, moves, clean_logits, scale):
        logits = ops.cast(self.network(images + moves), ms.float32)
        return scale * divergence(logits, ops.stop_gradient(clean_logits))


class VirtualAdversary:
    """The smoothness loss of a network and its gradients; its methods are called inside a jitted function.

    One power iteration finds the direction. Batch normalisation uses the statistics of the batch, and its
    running ones see the moved images as well.

    Args:
        network: nn.Cell, images (N, C, H, W), prepared for it -> logits (N, K).
        weights: ParameterTuple that the gradients are for.
        radius: the Euclidean length of a move, in units of the prepared images, > 0.
        probe: length of the first, random move whose gradient gives the direction.
    """

    inputs = 3  # of `loss_and_gradients`; see src/training/update.py

    def __init__(self, network, weights, radius, probe=0.1):
        self.network, self.radius, self.probe = network, radius, probe
        loss = Smoothness(network)
        self.by_move = ms.grad(loss, 1)
        self.by_weight = ms.value_and_grad(loss, None, weights)

    def loss_and_gradients(self, scale, images, start, weight):
        """(scalar, weight, gradients times scale); `start` is standard normal noise of the images' shape."""
        clean = ops.stop_gradient(ops.cast(self.network(images), ms.float32))
        slope = self.by_move(images, self.probe * unit(start), clean, scale)
        moves = ops.stop_gradient(self.radius * unit(slope))
        cost, gradients = self.by_weight(images, moves, clean, scale)
        return cost / scale, weight, gradients
