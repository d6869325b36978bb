"""One gradient step: a loss, the parameters it trains, and everything between gradient and optimizer."""

import mindspore as ms
from mindspore import nn, ops

from model_utils.device import gradient_reducer, jit
from src.losses.virtual_adversarial import add_scaled
from src.training import optim, precision

_for_each = ops.HyperMap()  # a loop over hundreds of gradients would take the graph compiler minutes


def _sum_up(kept, total, gradient):
    return ops.assign(total, ops.select(kept, total + gradient, gradient))


class _Scaled(nn.Cell):
    """A loss times `scale` where float16 asks for it; also the loss itself and its scalars."""

    def __init__(self, loss, scaled):
        super().__init__(auto_prefix=False)
        self.loss, self.scaled = loss, scaled

    def construct(self, scale, *inputs):
        total, scalars = self.loss(*inputs)
        return (total * scale if self.scaled else total), total, scalars


class Update:
    """Loss -> gradients -> division by scale and parts -> average over ranks -> clipping -> optimizers.

    Compiled once; everything that changes from step to step is an input Tensor. With a dynamic loss scale
    gradients that are not finite are left out.

    Args:
        trainer: the Trainer it belongs to (its configuration and device).
        loss: nn.Cell, inputs -> (total, tuple of scalars).
        optimizers: {name: optimizer, or None for a part with nothing to train}; the gradient is taken with
            respect to their parameters, in this order.
        added: None, or an object with `inputs`, how many of the last inputs are its own, and a method
            `loss_and_gradients(scale, *its inputs) -> (scalar, weight, gradients of the first parameters
            times scale)`. Its scalar joins the others, and weight times its gradients are added.
    """

    def __init__(self, trainer, loss, optimizers, added=None):
        config = trainer.config
        self.optimizers = {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}
        self.names, self.begins, self.ends = tuple(self.optimizers), {}, {}
        weights = []
        for name, optimizer in self.optimizers.items():
            self.begins[name] = len(weights)
            weights += optimizer.parameters
            self.ends[name] = len(weights)
        weights = ms.ParameterTuple(weights)
        self.scaled, self.dynamic = config.amp_level != "O0", trainer.dynamic
        self.clips, self.limit = config.clip_grad_norm > 0, config.clip_grad_norm
        self.scale_floor = trainer.loss_scale.scale
        self.added = added
        self.one, self.zero = ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32)
        self.true = ms.Tensor(True)
        self.reducer = gradient_reducer(weights, trainer.device)
        self.gradient = ms.value_and_grad(_Scaled(loss, self.scaled), None, weights, has_aux=True)
        self.sums = None
        if config.gradient_accumulation > 1:
            self.sums = ms.ParameterTuple(
                ms.Parameter(ops.zeros_like(weight), name=f"sum.{weight.name}", requires_grad=False)
                for weight in weights
            )
        self._whole = jit(self._whole_update, config)
        self._add = jit(self._add_gradients, config)
        self._finish = jit(self._update_with_sums, config)

    def step(self, parts, loss_scale):
        """One update from lists of inputs, one list for each part of the batch.

        Returns:
            (total, scalars, gradient norm or 0, whether the gradients are finite), means over the parts.
        """
        scale = ms.Tensor(loss_scale.scale.asnumpy()) if self.scaled else self.one
        if len(parts) == 1:
            total, scalars, (norm, finite) = self._whole(scale, *parts[0])
            return total, scalars, norm, finite
        totals, columns = 0.0, None
        for number, inputs in enumerate(parts):
            total, scalars = self._add(ms.Tensor(number > 0), scale, *inputs)
            shares = [value / len(parts) for value in scalars]
            totals = totals + total / len(parts)
            columns = shares if columns is None else [a + b for a, b in zip(columns, shares, strict=True)]
        norm, finite = self._finish(scale * len(parts))
        return totals, tuple(columns), norm, finite

    # Jitted parts. Each returns scalars only.

    def _gradients(self, scale, inputs):
        if self.added is None:
            (_, total, scalars), gradients = self.gradient(scale, *inputs)
            return total, scalars, gradients
        own = self.added.inputs
        (_, total, scalars), gradients = self.gradient(scale, *inputs[:-own])
        cost, weight, more = self.added.loss_and_gradients(scale, *inputs[-own:])
        count = len(more)
        changed = add_scaled(gradients[:count], weight, more)
        return total + weight * cost, (*scalars, cost), (*changed, *gradients[count:])

    def _whole_update(self, scale, *inputs):
        total, scalars, gradients = self._gradients(scale, inputs)
        return total, scalars, self._apply(gradients, scale)

    def _add_gradients(self, kept, scale, *inputs):
        """Sum up gradients; `kept` is False for the first part of a step, which begins the sums anew."""
        total, scalars, gradients = self._gradients(scale, inputs)
        added = _for_each(ops.partial(_sum_up, kept), self.sums, gradients)
        return ops.depend(total, added), scalars

    def _update_with_sums(self, divisor):
        return self._apply(self.sums, divisor)

    def _apply(self, gradients, divisor):
        """One update with gradients / divisor; (their norm, 0 without clipping; whether they are finite)."""
        if self.scaled or self.sums is not None:
            gradients = optim.divided(gradients, divisor)
        gradients = self.reducer(gradients)
        norm = optim.global_norm(gradients) if self.clips else self.zero
        if not self.dynamic:
            self._optimize(gradients, norm)
            return norm, self.true
        finite = optim.all_finite(gradients)
        # The smallest scale can't be lowered any further: the update is made, and the loop sees the weights
        # overflow.
        if ops.logical_or(finite, self.scale_floor <= precision.SCALE_MIN):
            self._optimize(gradients, norm)
        return norm, finite

    def _optimize(self, gradients, norm):
        if self.clips:
            gradients = optim.clip_by_global_norm(gradients, norm, self.limit)
        for name in self.names:
            self.optimizers[name](gradients[self.begins[name] : self.ends[name]])
