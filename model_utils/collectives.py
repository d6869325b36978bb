"""Collective operations over all processes of a run, each as one message.

A message between processes costs milliseconds however small it is, and a network has dozens of parameters, so
values are joined before they travel.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops


class AverageGradients(nn.Cell):
    """Means of gradients over all ranks: a tuple of tensors of these shapes -> a tuple of the same shapes.

    Args:
        shapes: of the gradients, in order.
        world: the number of ranks.
    """

    def __init__(self, shapes, world):
        super().__init__()
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.share = 1.0 / world
        self.all_reduce = ops.AllReduce()

    def construct(self, gradients):
        flat = ()
        for gradient in gradients:
            flat += (gradient.astype(ms.float32).reshape(-1),)
        means = self.all_reduce(ops.concat(flat)) * self.share
        averaged = ()
        parts = ops.split(means, self.sizes)
        for index in range(len(gradients)):
            averaged += (parts[index].reshape(self.shapes[index]).astype(gradients[index].dtype),)
        return averaged


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
