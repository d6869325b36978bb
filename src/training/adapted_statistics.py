"""Adaptive batch normalisation (Li et al. 2016, arXiv 1603.04779): evaluation by target statistics."""

import mindspore as ms
import numpy as np
from mindspore import ops

from model_utils.device import jit
from model_utils.errors import UserError
from src.evaluation.evaluate import evaluating
from src.training.batch_norm import batch_norms

BATCH, IMAGES = 64, 2048


class AdaptedStatistics:
    """Replaces the running statistics of a network's batch normalisations by those of target images.

    `BATCH` images at a time go through the network as in training, without dropout. The mean of a
    normalisation becomes the mean over these batches; its variance the mean of theirs plus the variance
    of their means.

    Args:
        network: `Classifier`. Only normalisations that are trained are changed: a frozen backbone keeps its
            own statistics, and so does any backbone with `batch_norm: frozen`.
        loader: a TestLoader of unlabelled target images. `IMAGES` of them at most are looked at, the same
            each time.
        config: `mode`, `seed` and `batch_norm`.

    Raises:
        UserError: there is no batch normalisation to adapt, or fewer than two images.
    """

    def __init__(self, network, loader, config):
        self.network, self.loader, self.seed = network, loader, config.seed
        kept = batch_norms(network.backbone) if config.batch_norm == "frozen" else []
        self.norms = [
            norm
            for norm in batch_norms(network)
            if norm.gamma.requires_grad and not any(norm is other for other in kept)
        ]
        if not self.norms:
            raise UserError(
                "adapt_batch_norm: nothing that is trained has batch normalisation; add --bottleneck 256, or "
                "leave adapt_batch_norm out"
            )
        if loader.count < 2:
            raise UserError(
                f"adapt_batch_norm: the target has {loader.count} image, and statistics need two or more; "
                "leave adapt_batch_norm out"
            )
        self._forward = jit(self._pass, config)

    def _pass(self, images):
        return ops.sum(self.network(images))  # so that nothing of it is left out

    def renew(self):
        """Set the statistics anew; a pure function of weights and images."""
        images, _ = self.loader.sample(IMAGES, self.seed)
        size = min(BATCH, len(images))
        sums = [[] for _ in self.norms]
        with evaluating(self.network):
            for norm in self.norms:
                norm.set_train(True)
            for start in range(0, len(images) - size + 1, size):
                for found, statistics in zip(sums, self._of_batch(images[start : start + size]), strict=True):
                    found.append(statistics)
        for norm, found in zip(self.norms, sums, strict=True):
            means, variances = (np.stack(column) for column in zip(*found, strict=True))
            ops.assign(norm.moving_mean, ms.Tensor(means.mean(0).astype(np.float32)))
            total = variances.mean(0) + means.var(0)
            ops.assign(norm.moving_variance, ms.Tensor(total.astype(np.float32)))

    def _of_batch(self, images):
        """[(mean, variance) float64 (C,)] of one batch, for each normalisation.

        The operator mixes them into its running statistics. Where those are 0, a known share of them is left.
        """
        for norm in self.norms:
            for parameter in (norm.moving_mean, norm.moving_variance):
                ops.assign(parameter, ops.zeros_like(parameter))
        self._forward(ms.Tensor.from_numpy(np.ascontiguousarray(images))).asnumpy()
        found = []
        for norm in self.norms:
            share = float(norm.momentum)  # MindSpore keeps 1 - momentum under this name
            values = (norm.moving_mean, norm.moving_variance)
            found.append(tuple(value.asnumpy().astype(np.float64) / share for value in values))
        return found
