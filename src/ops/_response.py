"""Local response normalisation through the compiled operators, differentiable twice.

All tensors (N, C, H, W), float32. Only x is kept for the gradients; MindSpore's operators would keep several
tensors of its size.
"""

import mindspore as ms
from mindspore import Tensor, nn

from src.ops import _conv
from src.ops.twice_differentiable import LocalResponseNorm


class _Gradient(nn.Cell):
    """(dy, x) -> dx, differentiable once."""

    def __init__(self, coefficients):
        super().__init__()
        self.coefficients = coefficients
        self.backward = _conv.operator("response_backward", "", lambda x, dy, c: x)
        self.twice = _conv.operator("response_twice", "", lambda x, dy, u, c: (x, x), 2)

    def construct(self, dy, x):
        return self.backward(x, dy, self.coefficients)

    def bprop(self, dy, x, out, dout):
        return self.twice(x, dy, dout, self.coefficients)


class _Response(nn.Cell):
    """x -> y, differentiable twice."""

    def __init__(self, norm):
        super().__init__()
        self.coefficients = Tensor((norm.radius, norm.alpha, norm.beta, norm.bias), ms.float32)
        self.forward = _conv.operator("response_forward", "", lambda x, c: x)
        self.gradient = _Gradient(self.coefficients)

    def construct(self, x):
        return self.forward(x, self.coefficients)

    def bprop(self, x, out, dout):
        return (self.gradient(dout, x),)


class Response(LocalResponseNorm):
    """What accelerate() turns a LocalResponseNorm into: the same object, another construct."""

    def construct(self, x):
        return self.response(x) if x.dtype == ms.float32 else super().construct(x)


def eligible(cell):
    """Whether `cell` is a normalisation the operators can compute."""
    return type(cell) is LocalResponseNorm


def convert(cell):
    """Turn an eligible cell into a `Response` in place."""
    object.__setattr__(cell, "response", _Response(cell))
    cell.__class__ = Response
