"""The meta-gradient of MASF: loss cells, clipping, and the buffers between the compiled parts of a step."""

import mindspore as ms
from mindspore import nn, ops

from src.losses import episodic
from src.training.optim import dot


class TaskLoss(nn.Cell):
    """Mean cross-entropy of the meta-train domains' images (N, C, S, S), times `scale`."""

    def __init__(self, network, scale=1.0):
        super().__init__(auto_prefix=False)
        self.network, self.scale = network, scale

    def construct(self, images, labels, *masks):
        logits = ops.cast(self.network(images, *masks), ms.float32)
        loss = episodic.task_loss(logits, labels)
        return loss if self.scale == 1.0 else loss * self.scale


class MetaLoss(nn.Cell):
    """Global and local loss over all domains, the meta-test domain last: (sum to differentiate, the two).

    The sum has two gradients. With respect to the network it is that of global_weight·global +
    local_weight·local; with respect to the metric network, which has a learning rate of its own, that of the
    local loss. Both are multiplied by `scale`.
    """

    def __init__(self, network, metric, count, config, scale=1.0):
        super().__init__(auto_prefix=False)
        self.network, self.metric, self.count, self.scale = network, metric, count, scale
        self.share, self.split = config.meta_batch_size // count, network.split
        self.temperature, self.margin = config.temperature, config.margin
        self.global_weight, self.local_weight = config.global_weight, config.local_weight

    def construct(self, images, labels, *masks):
        features = ops.cast(self.network.features(images, *masks[: self.split]), ms.float32)
        logits = ops.cast(self.network.classify(features, *masks[self.split :]), ms.float32)
        aligned = episodic.global_loss(logits, labels, self.count, self.temperature)
        # With three domains, a third of each domain's images: together as many as one domain has.
        features = episodic.share_of_each(features, self.count, self.share)
        # This leaves the value as it is and multiplies the network's gradient, not the metric network's, by
        # local_weight.
        features = self.local_weight * features + (1.0 - self.local_weight) * ops.stop_gradient(features)
        chosen = episodic.share_of_each(labels, self.count, self.share)
        embeddings = ops.cast(self.metric(features), ms.float32)
        local = episodic.semi_hard_triplet_loss(embeddings, chosen, self.margin)
        total = self.global_weight * aligned + local
        return (total if self.scale == 1.0 else total * self.scale), aligned, local


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
    for parameter, value in zip(parameters, values):  # noqa: B905 - the graph compiler does not know strict
        ops.assign(parameter, value)


def through_clipping(gradients, vectors, limit):
    """J·v for each gradient, J the (symmetric) Jacobian of `clip_each` there."""
    products = []
    for gradient, vector in zip(gradients, vectors):  # noqa: B905 - the graph compiler does not know strict
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
        for gradient, part in zip(gradients, direction):  # noqa: B905 - the graph compiler does not know strict
            total = total + dot(gradient, part)
        return total


def buffers(name, weights):
    """Parameters of the weights' shapes, for what one compiled part of a step hands to the next.

    The graph compiler takes a tuple of tensors for a constant, and would compile anew at every step.
    """
    named = ((f"{name}.{weight.name}", ops.zeros_like(weight)) for weight in weights)
    return ms.ParameterTuple(tuple(ms.Parameter(zeros, name=n, requires_grad=False) for n, zeros in named))
