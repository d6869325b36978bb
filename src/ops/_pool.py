"""Max pooling that can be differentiated twice, through the compiled operators.

The places of the largest values are piecewise constant. Fetching values from places is linear, and so is its
gradient, adding values at places, whose own gradient is fetching again.

Shapes: x (N, C, H, W), places and y (N, C, (H - kernel) // stride + 1, (W - kernel) // stride + 1); float32,
places int32, each the offset within its plane of H·W.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.ops import _conv
from src.ops.twice_differentiable import MaxPool2d


def _constant(x, geometry, out, dout):
    return ops.zeros_like(x), ops.zeros_like(geometry)


def _fetch():
    return _conv.operator("pool_fetch", "", lambda x, places: places)


class _Add(nn.Cell):
    """(y, places, x) -> sums of y at the places, differentiable once; of x only the shape matters."""

    def __init__(self):
        super().__init__()
        self.fetch = _fetch()
        self.add = _conv.operator("pool_add", "", lambda y, places, x: x)

    def construct(self, y, places, x):
        return self.add(y, places, x)

    def bprop(self, y, places, x, out, dout):
        return self.fetch(dout, places), ops.zeros_like(places), ops.zeros_like(x)


class _Pooling(nn.Cell):
    """x -> y, differentiable twice."""

    def __init__(self, kernel, stride):
        super().__init__()

        def shape(x, _):
            sides = [(side - kernel) // stride + 1 for side in x[2:]]
            if min(sides) < 1:
                raise ValueError(f"max_pool2d: kernel {kernel} does not fit an input of shape {tuple(x)}")
            return [*x[:2], *sides]

        self.geometry = Tensor((kernel, kernel, stride, stride), ms.int64)
        self.places = _conv.operator("pool_places", (kernel, stride), shape, dtype=ms.int32, bprop=_constant)
        self.fetch, self.add = _fetch(), _Add()

    def construct(self, x):
        return self.fetch(x, self.places(x, self.geometry))

    def bprop(self, x, out, dout):
        return (self.add(dout, self.places(x, self.geometry), x),)


class Pool(MaxPool2d):
    """What accelerate() turns a twice differentiable MaxPool2d into: the same object, another construct."""

    def construct(self, x):
        return self.pooling(x) if x.dtype == ms.float32 else super().construct(x)


def eligible(cell):
    """Whether `cell` is a max pooling the operators can compute."""
    return type(cell) is MaxPool2d


def convert(cell):
    """Turn an eligible cell into a `Pool` in place."""
    object.__setattr__(cell, "pooling", _Pooling(cell.kernel, cell.stride))
    cell.__class__ = Pool
