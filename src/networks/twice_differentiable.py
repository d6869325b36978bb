"""Max pooling and local response normalisation that have second derivatives.

MindSpore's own have none on a CPU: MaxPool2d's gradient refuses to be differentiated, LRN's has no gradient.
These give the same values, and export like any other cell.
"""

from mindspore import nn, ops


def _every(x, axis, offset, stride, count):
    """x[offset], x[offset + stride], … along an axis, `count` of them.

    From slices of step 1 and reshapes: on MindSpore 2.10's CPU backend a slice of step 2 has no gradient, and
    the second derivative of a gather is wrong.
    """
    shape, begin = x.shape, offset % stride
    groups = -(-shape[axis] // stride)
    if groups * stride > shape[axis]:
        widths = [0, 0] * len(shape)
        widths[2 * (len(shape) - 1 - axis) + 1] = groups * stride - shape[axis]
        x = ops.pad(x, tuple(widths))
    x = ops.reshape(x, (*shape[:axis], groups, stride, *shape[axis + 1 :]))
    first = offset // stride
    if axis == 2:
        return x[:, :, first : first + count, begin]
    return x[:, :, :, first : first + count, begin]


def _largest(x, axis, kernel, stride):
    """Maximum over the windows along axis 2 or 3. Of equal values the first counts, as in MaxPool2d."""
    count = (x.shape[axis] - kernel) // stride + 1
    best = _every(x, axis, 0, stride, count)
    for offset in range(1, kernel):
        part = _every(x, axis, offset, stride, count)
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
        squares = ops.pad(x * x, (0, 0, 0, 0, self.radius, self.radius))
        total = squares[:, :channels]
        for shift in range(1, 2 * self.radius + 1):
            total = total + squares[:, shift : shift + channels]
        return x * ops.pow(self.bias + self.alpha * total, -self.beta)


def max_pool(kernel, stride, twice):
    """The max pooling of this file if `twice`, else MindSpore's, which is faster."""
    return MaxPool2d(kernel, stride) if twice else nn.MaxPool2d(kernel, stride)
