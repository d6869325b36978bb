"""The random weights that training starts from, where they are not MindSpore's own."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils import noise

DEFAULT, _, GLOROT_BIASES = CHOICES = ("default", "glorot", "glorot_biases")


def draw(cell, config):
    """Draw the weights of every dense layer and convolution of `cell` anew, as `initial_weights` says.

    `default` leaves what MindSpore has drawn. `glorot` draws weights from the uniform distribution on
    [-limit, limit] with limit = sqrt(6 / (inputs + outputs)) and sets biases to 0 (Glorot & Bengio 2010,
    equation 16), as TensorFlow's layers do. A convolution counts each input and output once for every pixel
    of its kernel. `glorot_biases` draws the n biases of a layer, too, with limit = sqrt(6 / (n + n)): the
    value that TensorFlow gives a variable without an initializer. Batch normalisations are left alone.

    The numbers depend on the seed and on the parameter's name only.

    Args:
        cell: nn.Cell whose parameters have their final names.
        config: with `initial_weights` and `seed`.
    """
    if config.initial_weights == DEFAULT:
        return
    for _, layer in cell.cells_and_names():
        if not isinstance(layer, nn.Dense | nn.Conv2d):
            continue
        _fill(layer.weight, glorot_limit(layer.weight.shape), config.seed)
        if layer.has_bias:
            biases = config.initial_weights == GLOROT_BIASES
            _fill(layer.bias, glorot_limit(layer.bias.shape) if biases else 0.0, config.seed)


def glorot_limit(shape):
    """sqrt(6 / (inputs + outputs)) of a weight (outputs, inputs[, height, width]) or of n biases (n,)."""
    if len(shape) == 1:
        return float(np.sqrt(3 / shape[0]))
    kernel = int(np.prod(shape[2:]))
    return float(np.sqrt(6 / (kernel * (shape[0] + shape[1]))))


def _fill(parameter, limit, seed):
    rng = noise.generator(seed, f"initial weights {parameter.name}")
    drawn = rng.uniform(-limit, limit, parameter.shape).astype(np.float32)
    ops.assign(parameter, ms.Tensor(drawn, parameter.dtype))
