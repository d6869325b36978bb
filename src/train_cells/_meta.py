"""The compiled parts of MASF's step: loss cells, clipping, and the buffers between them."""

import mindspore as ms
from mindspore import nn, ops

from src.losses import episodic
from src.training.optim import dot


class TaskLoss(nn.Cell):
    """Mean cross-entropy of the meta-train domains' images (N, C, H, W)."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, labels, *masks):
        return episodic.task_loss(self.network(images, *masks), labels)


class MetaLoss(nn.Cell):
    """Global and local loss over all domains, the meta-test domain last: (sum to differentiate, the two).

    The sum's gradient is that of global_weight·global + local_weight·local with respect to the network, and
    that of the local loss with respect to the metric network, which has its own learning rate.
    """

    def __init__(self, network, metric, count, config):
        super().__init__(auto_prefix=False)
        self.network, self.metric, self.count = network, metric, count
        self.share = config.meta_batch_size // count
        self.temperature, self.margin = config.temperature, config.margin
        self.global_weight, self.local_weight = config.global_weight, config.local_weight

    def construct(self, images, labels, *masks):
        features, logits = self.network.features_and_logits(images, *masks)
        aligned = episodic.global_loss(logits, labels, self.count, self.temperature)
        # A batch of a third of each domain's samples, for three domains: as large as one domain's batch.
        features = episodic.share_of_each(features, self.count, self.share)
        # The value as it is, of the gradient the weighted share: φ above it gets the whole.
        features = self.local_weight * features + (1.0 - self.local_weight) * ops.stop_gradient(features)
        chosen = episodic.share_of_each(labels, self.count, self.share)
        local = episodic.semi_hard_triplet_loss(self.metric(features), chosen, self.margin)
        return self.global_weight * aligned + local, aligned, local


def clip_each(gradients, limit):
    """Each gradient scaled to Euclidean norm `limit` where its own is larger."""
    clipped = []
    for gradient in gradients:
        # The square root has no gradient at 0; a norm below 1e-12 is nothing to clip.
        norm = ops.sqrt(ops.maximum(dot(gradient, gradient), 1e-24))
        clipped.append(gradient * (limit / ops.maximum(norm, limit)))
    return tuple(clipped)


def store(parameters, values):
    """Assign each value to its parameter."""
    for parameter, value in zip(parameters, values):  # noqa: B905 - the graph compiler knows no strict
        ops.assign(parameter, value)


def through_clipping(gradients, vectors, limit):
    """J·v for each gradient, J the (symmetric) Jacobian of `clip_each` there."""
    products = []
    for gradient, vector in zip(gradients, vectors):  # noqa: B905 - the graph compiler knows no strict
        norm = ops.sqrt(ops.maximum(dot(gradient, gradient), 1e-24))
        along = ops.cast(norm > limit, ms.float32) * dot(gradient, vector) / (norm * norm)
        products.append((vector - along * gradient) * (limit / ops.maximum(norm, limit)))
    return tuple(products)


class Directional(nn.Cell):
    """⟨∇L(θ), direction⟩: its gradient is the Hessian's product with the direction."""

    def __init__(self, task_gradient):
        super().__init__(auto_prefix=False)
        self.task_gradient = task_gradient

    def construct(self, direction, images, labels, *masks):
        _, gradients = self.task_gradient(images, labels, *masks)
        total = 0.0
        for gradient, part in zip(gradients, direction):  # noqa: B905 - the graph compiler knows no strict
            total = total + dot(gradient, part)
        return total


def buffers(name, weights):
    """Parameters of the weights' shapes, for what one compiled part of a step hands to the next.

    Handed over as a tuple of tensors it would be a constant to the graph compiler, and compile anew each
    time.
    """
    named = ((f"{name}.{weight.name}", ops.zeros_like(weight)) for weight in weights)
    return ms.ParameterTuple(tuple(ms.Parameter(zeros, name=n, requires_grad=False) for n, zeros in named))
