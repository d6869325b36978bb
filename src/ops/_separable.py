"""A depthwise separable layer as one operator, made of two stages in a row.

The first is any convolution with batch normalisation and perhaps an activation, the second a depthwise 3x3
or 5x5 convolution of stride 1 or 2 with the same. Between them data never leaves oneDNN's layout, and the
activated tensor is never written to memory.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.ops import _conv, _stage


class _Operator(nn.Cell):
    """The compiled layer with its gradient.

    x (N, I, H, W), w (O, I / groups, kh, kw), depthwise w (O, 1, k, k), then gamma, beta, moving mean and
    variance (O,) of both normalisations -> y, what the gradient needs (three tensors), the new moving mean
    and variance of both.
    """

    def __init__(self, first, second, training):
        super().__init__()
        (conv, norm1, _, activation1), (depthwise, norm2, _, activation2) = first.parts, second.parts
        geometry, behind = _conv.Geometry(conv, bias=False), _conv.Geometry(depthwise, bias=False)
        activations = _stage.activation_code(activation1), _stage.activation_code(activation2)
        tail = (2 if training else 1, *activations, *behind.values)
        self.geometry = Tensor((*geometry.values, *tail), ms.int64)
        self.coefficients = Tensor((norm1.eps, norm1.momentum, norm2.eps, norm2.momentum), ms.float32)
        self.forward, self.backward, self.backward_data = _functions(geometry, behind)

    def construct(self, x, w, d, g1, b1, m1, v1, g2, b2, m2, v2):
        return self.forward(x, w, d, g1, b1, m1, v1, g2, b2, m2, v2, self.geometry, self.coefficients)

    def bprop(self, x, w, d, g1, b1, m1, v1, g2, b2, m2, v2, out, dout):
        dw, dd, dg1, db1, dg2, db2, dz1 = self.backward(
            x, dout[0], out[1], out[2], out[3], d, g1, b1, g2, b2, self.geometry, self.coefficients
        )
        dx = self.backward_data(x, w, dz1, self.geometry)
        zero = ops.zeros_like(m1)
        return dx, dw, dd, dg1, db1, zero, zero, dg2, db2, zero, zero


def _functions(geometry, behind):
    """The compiled functions: forward, gradient of the parameters, gradient of x."""
    weight, channels, depthwise = list(geometry.weight), [geometry.weight[0]], list(behind.weight)

    def shapes(x):
        z1 = geometry.output(x)
        return z1, behind.output(z1)

    def forward(x, *_):
        z1, z2 = shapes(x)
        moving = [channels] * 4
        return z2, _stage.blocked(z1), _stage.blocked(z2), [4, *channels], *moving

    def backward(x, *_):
        z1, _ = shapes(x)
        return weight, depthwise, channels, channels, channels, channels, _stage.blocked(z1)

    variant = ("separable", geometry.values, geometry.weight, behind.values, behind.weight)
    return (
        _conv.operator("separable_forward", variant, forward, 8),
        _conv.operator("separable_backward", variant, backward, 7),
        _conv.operator("stage_backward_data", variant, lambda x, w, dz, g: x),
    )


class Separable(_stage.StandIn):
    """Two stages, or cells that hold one each."""

    def __init__(self, cells, first, second):
        super().__init__(
            cells,
            conv=first.conv,
            depthwise=second.conv,
            norm1=first.norm,
            norm2=second.norm,
            train=_Operator(first, second, True),
            infer=_Operator(first, second, False),
        )

    def construct(self, x):
        one, two = self.norm1, self.norm2
        batch1 = _stage.batch_statistics(one)
        batch2 = _stage.batch_statistics(two)
        if x.dtype != ms.float32 or batch1 != batch2:
            for cell in self.cells:
                x = cell(x)
            return x
        operator = self.train if batch1 else self.infer
        out = operator(
            x, self.conv.weight, self.depthwise.weight,
            one.gamma, one.beta, one.moving_mean, one.moving_variance,
            two.gamma, two.beta, two.moving_mean, two.moving_variance,
        )  # fmt: skip
        if not batch1:
            return out[0]
        moved = (
            ops.assign(one.moving_mean, ops.stop_gradient(out[4])),
            ops.assign(one.moving_variance, ops.stop_gradient(out[5])),
            ops.assign(two.moving_mean, ops.stop_gradient(out[6])),
            ops.assign(two.moving_variance, ops.stop_gradient(out[7])),
        )
        return ops.depend(out[0], moved)


def _stage_of(cell):
    """The stage that `cell` is or consists of, or None."""
    while type(cell) is nn.SequentialCell and len(cell.cell_list) == 1:
        cell = cell.cell_list[0]
    return cell if type(cell) is _stage.Stage else None


def _fits(first, second):
    """Whether the stages make up a depthwise separable layer."""
    if first is None or second is None:
        return False
    (conv, norm1, pool1, _), (depthwise, norm2, pool2, _) = first.parts, second.parts
    if norm1 is None or norm2 is None or conv.has_bias or depthwise.has_bias:
        return False
    channels, kernel = conv.out_channels, depthwise.kernel_size
    return (
        pool1 is None
        and pool2 is None
        and kernel in ((3, 3), (5, 5))
        and tuple(depthwise.weight.shape) == (channels, 1, *kernel)
        and depthwise.group == channels
        and depthwise.stride in ((1, 1), (2, 2))
        and depthwise.dilation == (1, 1)
        and max(_conv.Geometry(depthwise, bias=False).values[6:10]) < kernel[0]
    )


def fuse(container):
    """Join pairs of stages in an nn.SequentialCell or Chain, in place; after `_stage.fuse` on all of them."""
    cells, fused = list(container.cell_list), []
    while cells:
        first = _stage_of(cells[0])
        if len(cells) > 1 and _fits(first, second := _stage_of(cells[1])):
            fused.append(Separable(cells[:2], first, second))
            del cells[:2]
        else:
            fused.append(cells.pop(0))
    object.__setattr__(container, "cell_list", fused)
