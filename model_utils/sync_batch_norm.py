"""Batch normalisation over the joined batch of all processes, from plain operators: for every device."""

from mindspore import nn, ops


class SyncBatchNorm(nn.Cell):
    """What an nn.BatchNorm1d or 2d becomes, in place, by `convert`: (N, C) or (N, C, H, W) -> the same.

    In training, mean and variance are those over the batches of all ranks, and gradients flow through them to
    all ranks. Running statistics then agree on every rank. In evaluation nothing changes.
    Source: Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1, with the sums taken over ranks.
    """

    def construct(self, x):
        shape = x.shape
        image = x.reshape(shape[0], shape[1], -1, 1)
        if not self.training:
            statistics = (self.moving_mean, self.moving_variance)
            return self.bn_infer(image, self.gamma, self.beta, *statistics)[0].reshape(shape)
        count = image.size // shape[1] * self.world
        # Two passes: the mean of squares minus the square of the mean loses digits.
        mean = self.all_reduce(image.sum((0, 2, 3))) / count
        centred = image - mean.reshape(1, -1, 1, 1)
        variance = self.all_reduce(ops.square(centred).sum((0, 2, 3))) / count
        unbiased = variance * (count / max(count - 1, 1))
        ops.assign(self.moving_mean, self._moved(self.moving_mean, mean))
        ops.assign(self.moving_variance, self._moved(self.moving_variance, unbiased))
        scale = self.gamma * ops.rsqrt(variance + self.eps)
        return (centred * scale.reshape(1, -1, 1, 1) + self.beta.reshape(1, -1, 1, 1)).reshape(shape)

    def _moved(self, old, new):
        return old + self.momentum * (ops.stop_gradient(new) - old)


def convert(network, world):
    """Turn every batch normalisation in `network` into a SyncBatchNorm; returns how many there were.

    Parameters, their names and order stay what they are, and so does every checkpoint.
    """
    cells = [cell for _, cell in network.cells_and_names() if type(cell) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    for cell in cells:
        cell.__class__ = SyncBatchNorm
        cell.world, cell.all_reduce = world, ops.AllReduce()
    return len(cells)
