"""Optimizers with parameter names that stay unique when a method uses several, and gradient clipping."""

import mindspore as ms
from mindspore import nn, ops

# A loop over hundreds of gradients would take the graph compiler minutes.
_for_each = ops.HyperMap()


def dot(a, b):
    """⟨a, b⟩ of two tensors of one shape, a scalar.

    The sum is taken row by row. MindSpore sums all elements at once in one thread, which takes 178 ms for 38
    million elements instead of 15.
    """
    return ops.sum(ops.sum(a * b, -1))


def _square_sum(gradient):
    return dot(gradient, gradient)


def _times(factor, gradient):
    return gradient * factor


def _bad(gradient):
    """1.0 where an element is infinite or not a number, else 0.0."""
    return 1.0 - ops.cast(ops.isfinite(gradient).all(), ms.float32)


def uniquely_named(optimizer, name):
    """Prefix the optimizer's own parameters (global_step, beta powers, moments …) with `name.`.

    The graph compiler and checkpoints both need names that are unique over all optimizers of a run; the
    weights the optimizer updates keep theirs.
    """
    weights = {id(weight) for weight in optimizer.parameters}
    for parameter in optimizer.get_parameters():
        if id(parameter) not in weights:
            parameter.name = f"{name}.{parameter.name}"
    return optimizer


def build(config, name, weights, rate, beta1=0.9, weight_decay=None):
    """The optimizer that a configuration asks for; None if there are no weights to train.

    name: of its own parameters. rate: its learning rate, until another is set.
    beta1: of Adam. weight_decay: in place of the configuration's.
    """
    if not len(weights):
        return None
    decay = config.weight_decay if weight_decay is None else weight_decay
    groups, plain = weights, decay
    if config.weight_decay_on == "weights":
        groups, plain = decay_groups(weights, decay), 0.0
    if config.optimizer == "adam":
        return adam(f"adam_{name}", groups, rate, plain, beta1)
    return momentum(f"momentum_{name}", groups, rate, config.momentum, plain)


def adam(name, weights, lr, weight_decay=0.0, beta1=0.9):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) with L2 penalty; `learning_rate` is a Parameter to be set."""
    return uniquely_named(nn.Adam(weights, learning_rate=lr, beta1=beta1, weight_decay=weight_decay), name)


def momentum(name, weights, lr, momentum, weight_decay=0.0):
    """SGD with momentum: v ← momentum·v + g + weight_decay·w, then w ← w - lr·v (Sutskever et al. 2013).

    `weights`: Parameters, or groups of them from `decay_groups`; `learning_rate` is a Parameter to be set.
    """
    optimizer = nn.Momentum(weights, learning_rate=lr, momentum=momentum, weight_decay=weight_decay)
    return uniquely_named(optimizer, name)


def decay_groups(weights, weight_decay):
    """Parameter groups in which only weights of two and more dimensions are decayed.

    One-dimensional parameters are biases and the scales and shifts of batch normalisation, which a penalty
    would only pull away from what normalisation needs (Goyal et al. 2017, arXiv 1706.02677, section 5.3).
    The optimizer's `parameters` keep the order of `weights`.
    """
    parts = ([w for w in weights if w.ndim > 1], weight_decay), ([w for w in weights if w.ndim <= 1], 0.0)
    groups = [{"params": part, "weight_decay": decay} for part, decay in parts if part]
    return [*groups, {"order_params": list(weights)}]


def global_norm(gradients):
    """Euclidean norm of all gradients together, a float32 scalar."""
    return ops.sqrt(ops.addn(_for_each(_square_sum, gradients)))


def clip_by_global_norm(gradients, norm, limit):
    """The gradients, scaled down together to `limit` if their `norm` is larger (Pascanu et al. 2013)."""
    return _for_each(ops.partial(_times, limit / ops.maximum(norm, limit)), gradients)


def multiplied(gradients, factor):
    """Every gradient · factor, a float."""
    return _for_each(ops.partial(_times, factor), gradients)


def divided(gradients, divisor):
    """Every gradient / divisor, a scalar Tensor."""
    return _for_each(ops.partial(_times, 1.0 / divisor), gradients)


def all_finite(gradients):
    """Whether every element of every gradient is a finite number, a bool scalar."""
    return ops.addn(_for_each(_bad, gradients)) < 0.5


def set_learning_rate(optimizer, rate):
    """Set the learning rate of an optimizer's next steps, compiled or not.

    `Parameter.set_data` must not be used: it exchanges the tensor behind the parameter, and a step that was
    compiled before goes on with the old one (MindSpore 2.10 with its default MS_DEV_JIT_PIPELINE=1).
    """
    ops.assign(optimizer.learning_rate, ms.Tensor(rate, ms.float32))


def copy_weights(origin, copy):
    """Give cell `copy` the parameter values of `origin`, a cell of the same kind, bit for bit."""
    for before, after in zip(origin.get_parameters(), copy.get_parameters(), strict=True):
        ops.assign(after, before)  # in place: what is compiled already sees it, unlike after set_data
