"""Convolution through the compiled operators: cells with a gradient of their own.

A convolution is three bilinear maps: forward (x, w), weight gradient (x, dy), data gradient (w, dy). The
derivative of each is made of the other two, so a gradient of a gradient needs no further operator.

Shapes: x (N, C, H, W), w (O, C / groups, kh, kw), b (O,), dy and the output (N, O, H', W'); all float32.
"""

import ctypes

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.ops import _library


class Geometry:
    """Stride, dilation, groups and padding of one convolution, and the shapes that follow from them.

    ``values`` are the integers the compiled code reads: stride (h, w), dilation (h, w), groups, 1 for
    pad_mode "same", padding (top, bottom, left, right), 1 with a bias.
    """

    def __init__(self, conv, bias):
        padding = conv.padding if isinstance(conv.padding, tuple) else (conv.padding,) * 4
        if conv.pad_mode != "pad":
            padding = (0, 0, 0, 0)
        same = int(conv.pad_mode == "same")
        self.values = (*conv.stride, *conv.dilation, conv.group, same, *padding, int(bias))
        self.weight = tuple(conv.weight.shape)

    def tensor(self):
        return Tensor(self.values, ms.int64)

    def output(self, x):
        """Shape of the output for an input of shape `x`."""
        if x[1] != self.weight[1] * self.values[4]:
            raise ValueError(f"conv2d: {x[1]} input channels, but the weight is {self.weight}")
        sides = []
        for i in (0, 1):
            stride, span = self.values[i], self.values[2 + i] * (self.weight[2 + i] - 1) + 1
            if self.values[5]:
                sides.append(-(-x[2 + i] // stride))
            else:
                pad = self.values[6 + 2 * i] + self.values[7 + 2 * i]
                sides.append((x[2 + i] + pad - span) // stride + 1)
        if min(sides) < 1:
            raise ValueError(f"conv2d: kernel {self.weight[2:]} does not fit an input of shape {tuple(x)}")
        return [x[0], self.weight[0], *sides]

    def converted(self, x):
        """Shape of the output gradient, flat, in the layout that both gradients read; [1] if that is NCHW."""
        shape = ctypes.c_int64 * 4
        values = (ctypes.c_int64 * len(self.values))(*self.values)
        weight = shape(*self.weight)
        size = _library.handle().da_converted_size(shape(*x), weight, values, self.values[-1])
        if size < 0:
            raise RuntimeError(
                f"oneDNN refused conv2d with input {tuple(x)}, weight {self.weight}, {self.values}"
            )
        return [size]


def refuse(*arguments):
    """The gradient of an operator that has none of its own, whatever its inputs."""
    raise NotImplementedError("gradient of a gradient: build with accelerate(network, second_order=True)")


def operator(function, variant, shapes, outputs=1, dtype=ms.float32, bprop=refuse):
    """One compiled function. Differentiating it directly raises, unless `bprop` is given: the cells know the
    gradients.

    ``variant`` is whatever the output shapes depend on besides the input shapes: MindSpore remembers shapes
    by attributes and inputs, and would mix up two operators that differ in nothing it can see.
    """
    dtypes = dtype if outputs == 1 else (dtype,) * outputs

    def infer_dtype(*_):
        return dtypes

    custom = ops.Custom(f"{_library.path()}:{function}", shapes, infer_dtype, "aot", bprop=bprop)
    custom.add_prim_attr("variant", str(variant))
    return custom


def _forward(geometry):
    if geometry.values[-1]:
        return operator("conv_forward", geometry.values, lambda x, w, b, g: geometry.output(x))
    return operator("conv_forward", geometry.values, lambda x, w, g: geometry.output(x))


def _backward_data(geometry):
    return operator("conv_backward_data", geometry.values, lambda x, w, dy, converted, g: x)


def _backward_weights(geometry):
    """-> dw, [db], dy converted."""
    weight = list(geometry.weight)
    if geometry.values[-1]:
        return operator(
            "conv_backward_weights",
            (geometry.values, geometry.weight),
            lambda x, dy, g: (weight, weight[:1], geometry.converted(x)),
            outputs=3,
        )
    return operator(
        "conv_backward_weights",
        (geometry.values, geometry.weight),
        lambda x, dy, g: (weight, geometry.converted(x)),
        outputs=2,
    )


class Convolution(nn.Cell):
    """conv2d(x, w), differentiable once. The data gradient is an operator of its own, so that a graph drops
    it where no gradient of x is asked for, as in a network's first layer."""

    def __init__(self, conv):
        super().__init__()
        geometry = Geometry(conv, bias=False)
        self.geometry = geometry.tensor()
        self.forward = _forward(geometry)
        self.backward_weights = _backward_weights(geometry)
        self.backward_data = _backward_data(geometry)

    def construct(self, x, w):
        return self.forward(x, w, self.geometry)

    def bprop(self, x, w, out, dout):
        dw, converted = self.backward_weights(x, dout, self.geometry)
        return self.backward_data(x, w, dout, converted, self.geometry), dw


class BiasedConvolution(nn.Cell):
    """conv2d(x, w) + b, differentiable once."""

    def __init__(self, conv):
        super().__init__()
        geometry = Geometry(conv, bias=True)
        self.geometry = geometry.tensor()
        self.forward = _forward(geometry)
        self.backward_weights = _backward_weights(geometry)
        self.backward_data = _backward_data(geometry)

    def construct(self, x, w, b):
        return self.forward(x, w, b, self.geometry)

    def bprop(self, x, w, b, out, dout):
        dw, db, converted = self.backward_weights(x, dout, self.geometry)
        return self.backward_data(x, w, dout, converted, self.geometry), dw, db


class _WeightGradient(nn.Cell):
    """dw(x, dy), differentiable once."""

    def __init__(self, geometry):
        super().__init__()
        self.geometry = geometry.tensor()
        self.unconverted = Tensor([0.0], ms.float32)
        self.forward = _forward(geometry)
        self.backward_weights = _backward_weights(geometry)
        self.backward_data = _backward_data(geometry)

    def construct(self, x, dy):
        return self.backward_weights(x, dy, self.geometry)[0]

    def bprop(self, x, dy, out, dout):
        dx = self.backward_data(x, dout, dy, self.unconverted, self.geometry)
        return dx, self.forward(x, dout, self.geometry)


class _DataGradient(nn.Cell):
    """dx(x, w, dy), differentiable once; of x only the shape matters."""

    def __init__(self, geometry):
        super().__init__()
        self.geometry = geometry.tensor()
        self.unconverted = Tensor([0.0], ms.float32)
        self.forward = _forward(geometry)
        self.backward_weights = _backward_weights(geometry)
        self.backward_data = _backward_data(geometry)

    def construct(self, x, w, dy):
        return self.backward_data(x, w, dy, self.unconverted, self.geometry)

    def bprop(self, x, w, dy, out, dout):
        dw = self.backward_weights(dout, dy, self.geometry)[0]
        return ops.zeros_like(x), dw, self.forward(dout, w, self.geometry)


class TwiceConvolution(nn.Cell):
    """conv2d(x, w), differentiable twice."""

    def __init__(self, conv):
        super().__init__()
        geometry = Geometry(conv, bias=False)
        self.geometry = geometry.tensor()
        self.forward = _forward(geometry)
        self.weight_gradient = _WeightGradient(geometry)
        self.data_gradient = _DataGradient(geometry)

    def construct(self, x, w):
        return self.forward(x, w, self.geometry)

    def bprop(self, x, w, out, dout):
        return self.data_gradient(x, w, dout), self.weight_gradient(x, dout)


class Conv2d(nn.Conv2d):
    """What accelerate() turns an nn.Conv2d into: the same object, parameters and state, another construct."""

    def construct(self, x):
        if x.dtype != ms.float32:  # mixed precision: the compiled operators know float32 only
            output = self.conv2d(x, self.weight)
            if self.has_bias:
                output = self.bias_add(output, self.bias)
            return output
        if self.fused_bias:
            return self.convolution(x, self.weight, self.bias)
        output = self.convolution(x, self.weight)
        if self.has_bias:
            output = self.bias_add(output, self.bias)
        return output


def eligible(cell):
    """Whether `cell` is a convolution the operators can compute."""
    return (
        type(cell) is nn.Conv2d
        and cell.data_format == "NCHW"
        and cell.weight.dtype == ms.float32
        and (cell.bias is None or cell.bias.dtype == ms.float32)
    )


def convert(cell, second_order):
    """Turn an eligible cell into a `Conv2d` in place."""
    fused_bias = cell.has_bias and not second_order
    if second_order:
        convolution = TwiceConvolution(cell)
    else:
        convolution = BiasedConvolution(cell) if fused_bias else Convolution(cell)
    # Past nn.Cell's own bookkeeping: the network's cells, parameters and their order stay as they are.
    object.__setattr__(cell, "convolution", convolution)
    object.__setattr__(cell, "fused_bias", fused_bias)
    object.__setattr__(cell, "twice", second_order)
    cell.__class__ = Conv2d
