"""Max pooling, local response normalisation and ReLU6 that have second derivatives.

MindSpore's own have none on a CPU: the gradient of MaxPool2d refuses to be differentiated, and the gradients
of LRN and ReLU6 have none. The cells here give the same values. Few operators are left to build them from
(MindSpore 2.10 on a CPU): the gradient of a slice with a step fails, ops.slice has no second derivative, and
that of several gathers is wrong. An index (x[..., 0]) copies number by number; ops.unstack takes a fifth of
that time. Second derivatives have to be compiled, because that of a concatenation is wrong in PyNative mode.
MaxPool2d has no ONNX form and needs none, because networks are exported with MindSpore's own pooling.
"""

from mindspore import nn, ops


def _nothing(x):
    """Zeros of the shape of `x`: what ops.pad would add, which has no ONNX form (MindSpore 2.10)."""
    return x * 0.0


def _part(x, axis, start, size):
    """x[start : start + size] along axis 2 or 3; the whole as it is, which a subscript would copy."""
    if size == x.shape[axis]:
        return x
    return x[:, :, start : start + size] if axis == 2 else x[:, :, :, start : start + size]


def _largest(x, axis, kernel, stride):
    """Maximum over windows along axis 2 or 3. Among equal values the first one counts, as in MaxPool2d.

    A side of length L of x (N, C, H, W) becomes (L - kernel) // stride + 1.
    """
    length = x.shape[axis]
    count = (length - kernel) // stride + 1
    # In groups of `stride`: number i·stride + r of a window's start i is then place r of group i.
    groups = count + (kernel - 1) // stride
    whole = groups * stride
    if whole <= length:
        x = _part(x, axis, 0, whole)
    else:
        x = ops.concat((x, _nothing(_part(x, axis, 0, whole - length))), axis)
    # Unstacked, not indexed: an indexed axis is copied number by number (MindSpore 2.10 on a CPU).
    grouped = ops.reshape(x, x.shape[:axis] + (groups, stride) + x.shape[axis + 1 :])
    places = ops.unstack(grouped, axis + 1)
    best = _part(places[0], axis, 0, count)
    for number in range(1, kernel):
        part = _part(places[number % stride], axis, number // stride, count)
        best = ops.select(part > best, part, best)
    return best


class MaxPool2d(nn.Cell):
    """nn.MaxPool2d without padding: the largest of `kernel` x `kernel` values every `stride`.

    (N, C, H, W) -> (N, C, (H - kernel) // stride + 1, (W - kernel) // stride + 1).
    """

    def __init__(self, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def construct(self, x):
        return _largest(_largest(x, 2, self.kernel, self.stride), 3, self.kernel, self.stride)


class LocalResponseNorm(nn.Cell):
    """x / (bias + alpha · Σ x²)^beta, the sum over `radius` channels to either side (Krizhevsky et al. 2012).

    As in TensorFlow and Caffe's `alpha / size`, alpha is not divided by the number of channels summed.
    (N, C, H, W) -> the same shape.
    """

    def __init__(self, radius=2, alpha=1e-5, beta=0.75, bias=1.0):
        super().__init__()
        self.radius, self.alpha, self.beta, self.bias = radius, alpha, beta, bias

    def construct(self, x):
        channels = x.shape[1]
        squares = x * x
        beyond = _nothing(squares[:, : self.radius])
        squares = ops.concat((beyond, squares, beyond), 1)
        total = squares[:, :channels]
        for shift in range(1, 2 * self.radius + 1):
            total = total + squares[:, shift : shift + channels]
        return x * ops.pow(self.bias + self.alpha * total, -self.beta)


class ReLU6(nn.Cell):
    """nn.ReLU6: min(max(x, 0), 6)."""

    def construct(self, x):
        return ops.select(x > 6.0, 6.0, ops.select(x <= 0.0, 0.0, x))


def relu6(twice):
    """The ReLU6 of this file if `twice`, else MindSpore's, which is faster."""
    return ReLU6() if twice else nn.ReLU6()


def max_pool(kernel, stride, twice):
    """The max pooling of this file if `twice`, else MindSpore's, which is faster."""
    return MaxPool2d(kernel, stride) if twice else nn.MaxPool2d(kernel, stride)
