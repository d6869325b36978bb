"""Collective operations over all processes of a run, each as one message.

A message between processes costs milliseconds however small it is, and a network has dozens of parameters, so
values are joined before they travel.
"""

import itertools
import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops

_for_each = ops.HyperMap()  # a loop over hundreds of gradients would take the graph compiler minutes


def _flat(gradient):
    return gradient.astype(ms.float32).reshape(-1)


def _part(means, start, gradient):
    return means[start : start + gradient.size].reshape(gradient.shape).astype(gradient.dtype)


class AverageGradients(nn.Cell):
    """Means of gradients over all ranks: a tuple of tensors of these shapes -> a tuple of the same shapes.

    Args:
        shapes: of the gradients, in order.
        world: the number of ranks.
    """

    def __init__(self, shapes, world):
        super().__init__()
        sizes = [math.prod(shape) for shape in shapes]
        self.starts = tuple(itertools.accumulate([0, *sizes[:-1]]))
        self.share = 1.0 / world
        self.all_reduce = ops.AllReduce()

    def construct(self, gradients):
        means = self.all_reduce(ops.concat(_for_each(_flat, gradients))) * self.share
        return _for_each(ops.partial(_part, means), self.starts, gradients)


def broadcast(parameters, rank):
    """Copy the values of rank 0's parameters into those of the other ranks; all ranks must call it.

    parameters: list of Parameter of any types, the same on all ranks. rank: this process's.
    """
    values = [parameter.asnumpy() for parameter in parameters]
    if not values:
        return
    # As bytes in int32 words: MCCL has no broadcast of bool, int8 or float64.
    joined = b"".join(value.tobytes() for value in values)
    joined += bytes(-len(joined) % 4)
    (received,) = ops.Broadcast(0)((ms.Tensor(np.frombuffer(joined, np.int32)),))
    if rank == 0:
        return
    content, start = received.asnumpy().tobytes(), 0
    for parameter, value in zip(parameters, values, strict=True):
        part = content[start : start + value.nbytes]
        start += value.nbytes
        array = np.frombuffer(part, value.dtype).reshape(value.shape)
        # In place: a step that is compiled already would not see the exchange that set_data makes.
        ops.assign(parameter, ms.Tensor(array, parameter.dtype))


def gather_texts(text, device):
    """[the text of each rank, by rank]; all ranks must call it. device: this process's Device."""
    content = text.encode()
    lengths = [0.0] * device.world
    lengths[device.rank] = float(len(content))
    lengths = [int(length) for length in device.all_sum(*lengths)]
    words = -(-max(*lengths, 1) // 4)
    padded = np.frombuffer(content.ljust(4 * words, b"\0"), np.int32)
    joined = ops.AllGather()(ms.Tensor(padded)).asnumpy().tobytes()
    parts = [joined[4 * words * rank :][:length] for rank, length in enumerate(lengths)]
    return [part.decode() for part in parts]
