"""Where a network's batch normalisations are, and how their statistics are kept."""

import mindspore as ms
from mindspore import nn

from model_utils.sync_batch_norm import SyncBatchNorm

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, SyncBatchNorm)


def batch_norms(network):
    """The batch normalisations of a network, in order."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, KINDS)]


def has_batch_norm(network):
    """Whether the network has batch normalisation anywhere."""
    return bool(batch_norms(network))


def set_frozen(network):
    """Let the network's batch normalisations use, and keep, their stored statistics in training."""
    for norm in batch_norms(network):
        norm.set_train(False)


def statistics(network):
    """ParameterTuple of the running means and variances of a network; empty without batch normalisation."""
    return ms.ParameterTuple(
        [p for norm in batch_norms(network) for p in (norm.moving_mean, norm.moving_variance)]
    )
