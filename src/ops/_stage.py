"""Convolution, batch normalisation, max-pooling and activation as one operator, for cells in a row.

Between the parts data stays in the layout oneDNN prefers, and each pass over memory does as much as it can.
The mathematics, the parameters and the moving statistics are those of the cells a stage stands for.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.ops import _conv, _library

_ACTIVATIONS = {nn.ReLU: 1, nn.ReLU6: 2}


class _Operator(nn.Cell):
    """The compiled stage with its gradient; its inputs are tensors only, unused ones included.

    x (N, C, H, W), w, b (O,), gamma (O,), beta (O,), moving mean (O,), moving variance (O,) ->
    y, what the gradient needs (two tensors), the new moving mean and variance (O,).
    """

    def __init__(self, parts, training):
        super().__init__()
        conv, norm, pool, activation = parts
        geometry = _conv.Geometry(conv, conv.has_bias)
        kernel, stride = ((1, 1), (1, 1)) if pool is None else (_pair(pool.kernel_size), _pair(pool.stride))
        mode = 0 if norm is None else 2 if training else 1
        tail = (mode, *kernel, *stride, activation_code(activation))
        coefficients = (0.0, 0.0) if norm is None else (norm.eps, norm.momentum)
        self.geometry = Tensor((*geometry.values, *tail), ms.int64)
        self.coefficients = Tensor(coefficients, ms.float32)
        self.forward, self.backward, self.backward_data = _functions(geometry, kernel, stride)

    def construct(self, x, w, b, gamma, beta, mean, variance):
        return self.forward(x, w, b, gamma, beta, mean, variance, self.geometry, self.coefficients)

    def bprop(self, x, w, b, gamma, beta, mean, variance, out, dout):
        _, z, statistics, _, _ = out
        dw, db, dgamma, dbeta, dz = self.backward(
            x, dout[0], z, statistics, gamma, beta, self.geometry, self.coefficients
        )
        dx = self.backward_data(x, w, dz, self.geometry)
        return dx, dw, db, dgamma, dbeta, ops.zeros_like(mean), ops.zeros_like(variance)


def activation_code(cell):
    """What the compiled code calls the activation; `cell` may be None."""
    return _ACTIVATIONS.get(type(cell), 0)


def blocked(shape):
    """Flat shape of a tensor (N, C, H, W) in oneDNN's blocked layout."""
    n, c, h, w = shape
    block = _library.handle().da_block()
    return [n * -(-c // block) * block * h * w]


def batch_statistics(norm):
    """Whether the normalisation uses, and gathers, statistics of its batch."""
    return norm.training if norm.use_batch_statistics is None else norm.use_batch_statistics


def _functions(geometry, kernel, stride):
    """The compiled functions: forward, gradient of the parameters, gradient of x."""
    weight = list(geometry.weight)
    channels = weight[:1]

    def forward(x, *_):
        z = geometry.output(x)
        sides = [(z[2 + i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
        if min(sides) < 1:
            raise ValueError(f"max_pool2d: kernel {kernel} does not fit an input of shape {tuple(z)}")
        return [*z[:2], *sides], blocked(z), [2, *channels], channels, channels

    def backward(x, *_):
        return weight, channels, channels, channels, blocked(geometry.output(x))

    variant = (geometry.values, geometry.weight, kernel, stride)
    return (
        _conv.operator("stage_forward", variant, forward, 5),
        _conv.operator("stage_backward", variant, backward, 5),
        _conv.operator("stage_backward_data", variant, lambda x, w, dz, g: x),
    )


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class StandIn(nn.Cell):
    """Computes what `cells` do, one after the other; they keep their parameters and their training mode."""

    def __init__(self, cells, **own):
        super().__init__()
        for name, value in {
            "cells": cells,
            **own,
        }.items():  # the cells belong to the network, not to this one
            object.__setattr__(self, name, value)


class Stage(StandIn):
    """Convolution, normalisation, pooling and activation."""

    def __init__(self, cells, parts):
        conv, norm, _, _ = parts
        zeros = Tensor([0.0] * conv.out_channels, ms.float32)
        super().__init__(
            cells,
            parts=parts,
            conv=conv,
            norm=norm,
            has_norm=norm is not None,
            has_bias=conv.has_bias,
            zeros=zeros,
            train=None if norm is None else _Operator(parts, True),
            infer=_Operator(parts, False),
        )

    def construct(self, x):
        if x.dtype != ms.float32:  # mixed precision: the compiled operators know float32 only
            for cell in self.cells:
                x = cell(x)
            return x
        bias = self.conv.bias if self.has_bias else self.zeros
        if not self.has_norm:
            return self.infer(x, self.conv.weight, bias, self.zeros, self.zeros, self.zeros, self.zeros)[0]
        norm = self.norm
        if not batch_statistics(norm):
            return self.infer(
                x, self.conv.weight, bias, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance
            )[0]
        out = self.train(
            x, self.conv.weight, bias, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance
        )
        mean = ops.assign(norm.moving_mean, ops.stop_gradient(out[3]))
        variance = ops.assign(norm.moving_variance, ops.stop_gradient(out[4]))
        return ops.depend(out[0], (mean, variance))


def _poolable(cell):
    return type(cell) is nn.MaxPool2d and cell.pad_mode == "VALID" and cell.format == "NCHW"


def _parts(cells):
    """What `cells` starts with: ((convolution, norm, pool, activation), number of cells), or None."""
    conv, norm, pool, activation = cells[0], None, None, None
    if not isinstance(conv, _conv.Conv2d) or conv.twice:
        return None
    used = 1
    for cell in cells[1:]:
        plain_norm = type(cell) is nn.BatchNorm2d and cell.gamma.dtype == ms.float32
        if plain_norm and used == 1 and cell.num_features == conv.out_channels:
            norm = cell
        elif _poolable(cell) and pool is None:
            pool = cell
        elif type(cell) in _ACTIVATIONS and activation is None:
            activation = cell
        else:
            break
        used += 1
    return ((conv, norm, pool, activation), used) if used > 1 else None


def fuse(container):
    """Put stages into an nn.SequentialCell or Chain, in place; returns how many. `restore` undoes it."""
    cells, fused, count = list(container.cell_list), [], 0
    while cells:
        found = _parts(cells)
        if found is None:
            fused.append(cells.pop(0))
            continue
        parts, used = found
        fused.append(Stage(cells[:used], parts))
        del cells[:used]
        count += 1
    if count:
        object.__setattr__(container, "cell_list", fused)
    return count


def restore(container):
    """Put the container's own cells back; returns the cells that were in their place."""
    fused = container.cell_list
    object.__setattr__(container, "cell_list", _unfused(fused))
    return fused


def _unfused(cells):
    """The original cells that these stand for, however often they were fused."""
    return [own for cell in cells for own in (_unfused(cell.cells) if isinstance(cell, StandIn) else [cell])]
