"""Optimizers with parameter names that stay unique when a method uses several."""

import mindspore as ms
from mindspore import nn, ops


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


def adam(name, weights, lr, weight_decay=0.0, beta1=0.9):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) with L2 penalty; `learning_rate` is a Parameter to be set."""
    return uniquely_named(nn.Adam(weights, learning_rate=lr, beta1=beta1, weight_decay=weight_decay), name)


def set_learning_rate(optimizer, rate):
    """Set the learning rate of an optimizer's next steps, compiled or not.

    Not by `Parameter.set_data`: it exchanges the tensor behind the parameter, and a step compiled before goes
    on with the old one (MindSpore 2.10 with its default MS_DEV_JIT_PIPELINE=1).
    """
    ops.assign(optimizer.learning_rate, ms.Tensor(rate, ms.float32))
