"""Optimizers with parameter names that stay unique when a method uses several."""

from mindspore import nn


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
