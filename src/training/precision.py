"""Mixed precision: a second tree of cells over the same float32 weights, and the scale of the loss.

Training at O1, O2 or O3 goes through the second tree; evaluation, checkpoints and export see the float32
network only. Weights are float32 at every level, and so are gradients, optimizer and losses.
"""

import itertools
import logging

import mindspore as ms
from mindspore import nn, ops

log = logging.getLogger("run")

LEVELS = ("O0", "O1", "O2", "O3")
SCALE_MIN, SCALE_MAX = 1.0, 2.0**24


class _Conv2d(nn.Conv2d):
    """A convolution in float16 whose result is float32."""

    def construct(self, x):
        return ops.cast(super().construct(x), ms.float32)


class _Dense(nn.Dense):
    """A dense layer in float16 whose result is float32."""

    def construct(self, x):
        return ops.cast(super().construct(x), ms.float32)


_SINGLE_RESULT = {nn.Conv2d: _Conv2d, nn.Dense: _Dense}


def lower(network, level):
    """Let `network` compute in float16, in place; its parameters stay float32.

    level: O1, convolutions and dense layers in float16, everything else in float32; O2, everything but batch
    normalisation; O3, everything. MindSpore's own O1 rewrites the source of each cell, which networks with
    loops over their layers don't survive; here it is put together cell by cell.
    """
    if level == "O1":
        for _, cell in network.cells_and_names():
            if type(cell) in _SINGLE_RESULT:
                cell.__class__ = _SINGLE_RESULT[type(cell)]
                cell.to_float(ms.float16)
    elif level != "O0":
        ms.amp.auto_mixed_precision(network, level, ms.float16)
    return network


def share_parameters(origin, twin):
    """Make `twin`, a network of the same parameters in the same order, use those of `origin`; returns it."""
    own, others = list(origin.get_parameters()), list(twin.get_parameters())
    for mine, other in itertools.zip_longest(own, others):
        if mine is None or other is None or mine.shape != other.shape:
            left = other if mine is None else mine
            raise ValueError(f"share_parameters: {left.name} has no counterpart")
    shared = {id(other): mine for mine, other in zip(own, others, strict=True)}
    for _, cell in twin.cells_and_names():
        for key, parameter in list(cell._params.items()):
            setattr(cell, key, shared[id(parameter)])
    return twin


class LossScale(nn.Cell):
    """The factor that keeps small float16 gradients from becoming 0; part of a checkpoint.

    A static scale is never adjusted. A dynamic one is halved when gradients overflow, and doubled after
    `window` steps in a row without (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2), within 1 and
    2^24.

    Attributes:
        scale: Parameter, float32 scalar.
        good_steps: Parameter, int32: steps since the last change.
        skipped: Parameter, int32: steps whose update was left out.
    """

    def __init__(self, scale, window=1000):
        super().__init__(auto_prefix=False)
        self.window = window
        self.scale = ms.Parameter(ms.Tensor(scale, ms.float32), name="scale", requires_grad=False)
        self.good_steps = ms.Parameter(ms.Tensor(0, ms.int32), name="good_steps", requires_grad=False)
        self.skipped = ms.Parameter(ms.Tensor(0, ms.int32), name="skipped", requires_grad=False)

    def account(self, finite, step):
        """Account for a step of a dynamic scale; whether its update was skipped.

        finite: whether its gradients were. step: its number from 0, for the log.
        """
        before = float(self.scale)
        skipped = not finite and before > SCALE_MIN
        self.adjust(skipped)
        if skipped:
            log.info(
                "step %d: gradients overflowed at loss scale %g and were left out (%d steps so far); now %g",
                step + 1,
                before,
                int(self.skipped),
                float(self.scale),
            )
        return skipped

    def adjust(self, overflow):
        """Account for one step; `overflow`: whether its gradients were not finite and it was skipped."""
        scale, good = float(self.scale), int(self.good_steps) + 1
        if overflow:
            scale, good = max(SCALE_MIN, scale / 2), 0
            ops.assign(self.skipped, ms.Tensor(int(self.skipped) + 1, ms.int32))
        elif good >= self.window:
            scale, good = min(SCALE_MAX, scale * 2), 0
        ops.assign(self.scale, ms.Tensor(scale, ms.float32))
        ops.assign(self.good_steps, ms.Tensor(good, ms.int32))
