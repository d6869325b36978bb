"""MASF: model-agnostic learning of semantic features (Dou et al. 2019, arXiv 1910.13580).

A step plays an episode. One source domain, drawn anew each time, is the meta-test domain; the others are
meta-train. With the network's weights θ and the metric network's φ:

1. task loss L at θ on the meta-train domains; its gradient, clipped per tensor, makes the inner step
   θ' = θ - inner_lr·clip(∇L).
2. global and local loss at θ' on all domains.
3. Adam updates of θ by ∇L, of θ by the meta-gradient of (global + local_weight·local), clipped per tensor,
   and of φ by the local loss.

With `meta_order: first`, as published, the meta-gradient is v, the gradient at θ'. `second` differentiates
through the inner step as well: v - inner_lr·∇⟨∇L(θ), J·v⟩ with J the Jacobian of the clipping. That is exact,
and needs no copy of the network.

The published code hands φ to two optimizers, of global + local loss and of the local loss. Here φ has one,
the metric optimizer: the global loss does not depend on φ, so the other would only repeat the same update at
another rate.

Batch normalisation, where a network has it, gathers running statistics in the inner step only, at θ: those of
the pass at θ' are put back together with the weights.
"""

import mindspore as ms
import numpy as np
from mindspore import ops

from model_utils import noise
from model_utils.device import gradient_reducer, jit
from model_utils.errors import UserError
from model_utils.key import Key
from src.losses.meta import (
    Directional,
    MetaLoss,
    TaskLoss,
    buffers,
    clip_each,
    store,
    through_clipping,
)
from src.losses.metric import MetricNetwork
from src.ops import accelerate
from src.training import optim, trainer
from src.training.batch_norm import statistics
from src.training.contract import Phase
from src.training.optim import adam, set_learning_rate
from src.training.precision import share_parameters


class Method(trainer.Trainer):
    """Episodes on the source domains."""

    LEAST_SOURCES, SEES_TARGET = 2, False
    OWN_STEP = (
        "optimizer",
        "momentum",
        "weight_decay",
        "weight_decay_on",
        "backbone_lr_factor",
        "gradient_accumulation",
        "clip_grad_norm",
        "loss_scale_mode",
    )
    DEFAULTS = {
        "network": "alexnet",
        "domain_set": "pacs",
        "cache": "memory",
        "weight_decay": 0.0,
    }
    PER_DOMAIN = False
    KEYS = {
        "meta_batch_size": Key(126, "images per source domain, step and process", low=1),
        "batch_size": Key(1, "export.py: fixed batch size", low=1),
        "train_iterations": Key(300, "training steps", low=0),
        "inner_lr": Key(1e-5, "rate of the inner step on the task loss", low=0),
        "inner_gradient": Key(
            "mean",
            "the inner step's gradient, before it is clipped: mean of the cross-entropy over the images of "
            "each domain, as in the paper; sum over them, as in the authors' code",
            choices=("mean", "sum"),
        ),
        "outer_lr": Key(
            1e-5, "Adam's rate for the task loss and for the meta-gradient (peak, if scheduled)", above=0
        ),
        "meta_lr": Key(0.0, "Adam's rate for the meta-gradient; 0: outer_lr, as published", low=0),
        "metric_lr": Key(1e-5, "Adam's rate for the metric network (peak, if scheduled)", above=0),
        "meta_order": Key(
            "first",
            "second: the exact meta-gradient; first: without the inner step's own",
            choices=("first", "second"),
        ),
        "margin": Key(10.0, "margin of the triplet loss, a squared distance", low=0),
        "global_weight": Key(1.0, "weight of the global loss (class alignment)", low=0),
        "local_weight": Key(0.005, "weight of the local loss (triplets)", low=0),
        "temperature": Key(2.0, "temperature of the soft labels in the global loss", above=0),
        "gradients_clip_value": Key(
            2.0, "largest norm of each tensor's gradient in inner and meta step", above=0
        ),
    }
    ALIASES = {
        "summary_interval": "log_interval",
        "print_interval": "log_interval",
        "test_print_interval": "eval_interval",
    }

    def plan(self):
        """One phase of episodes on the source domains."""
        config, task = self.config, self.task
        if config.sync_bn and config.meta_order == "second":
            raise UserError(
                "sync_bn: second derivatives go through a network of their own, which normalises by each "
                "process's batch; leave sync_bn out, or choose meta_order first"
            )
        loaders = task.labelled(self.preparation, config.meta_batch_size, False, "meta_batch_size")
        self.names = list(loaders)
        if config.meta_batch_size % len(loaders):
            raise UserError(
                f"meta_batch_size: {config.meta_batch_size} can't be shared out among {len(loaders)} source "
                f"domains; choose a multiple of {len(loaders)}"
            )
        self.held_out = task.held_out(self.preparation, target=False)
        self.phases = [Phase("meta", config.train_iterations, max(1, config.train_iterations), loaders)]

    @property
    def smallest_batch(self):
        """Images that a batch normalisation sees at least."""
        return self.config.meta_batch_size

    def prepare(self):
        """Metric network, three optimizers, and the compiled parts of a step."""
        config = self.config
        self.add_part("metric", MetricNetwork(self.trained.feature_size))
        self.scale = config.loss_scale if config.amp_level != "O0" else 1.0
        self.inner_lr, self.zero = ms.Tensor(config.inner_lr, ms.float32), ms.Tensor(0.0, ms.float32)
        self.divisor = ms.Tensor(self.scale, ms.float32)
        # The sum over a domain's images is their number times their mean.
        images = config.meta_batch_size * self.device.world
        self.inner_factor = float(images) if config.inner_gradient == "sum" else 1.0
        self.network_weights = ms.ParameterTuple(self.trained.trainable_params())
        self.metric_weights = self.weights("metric")
        self.start = buffers("start", self.network_weights)
        self.task_gradients = buffers("task_gradient", self.network_weights)
        self.meta_gradients = buffers("meta_gradient", self.network_weights)
        self.metric_gradients = buffers("metric_gradient", self.metric_weights)
        self.statistics = statistics(self.trained)
        self.kept_statistics = buffers("kept", self.statistics)
        self._prepare_optimizers()
        task = TaskLoss(self.trained, self.scale)
        meta = MetaLoss(self.trained, self.parts["metric"], len(self.names), config, self.scale)
        self.task_gradient = ms.value_and_grad(task, None, self.network_weights)
        self.count = len(self.network_weights)
        both = ms.ParameterTuple([*self.network_weights, *self.metric_weights])
        self.meta_gradient = ms.value_and_grad(meta, None, both, has_aux=True)
        self.second_order = None
        if config.meta_order == "second":
            self.hessian_gradient = self._hessian_gradient()
        self._inner, self._meta = jit(self._inner_step, config), jit(self._meta_step, config)
        self._restore, self._update = jit(self._put_back, config), jit(self._outer_step, config)
        self._keep, self._put = jit(self._keep_statistics, config), jit(self._put_statistics, config)
        # Compiled in PyNative mode, too, whose own second derivatives are off by percents (MindSpore 2.10).
        self._correct = ms.jit(self._second_order)

    def _prepare_optimizers(self):
        config = self.config
        self.rates = {
            "task": config.outer_lr,
            "meta": config.meta_lr or config.outer_lr,
            "metric": config.metric_lr,
        }
        trained = {"task": self.network_weights, "meta": self.network_weights, "metric": self.metric_weights}
        self.optimizers = {name: adam(name, trained[name], rate) for name, rate in self.rates.items()}
        self.reduce = gradient_reducer(self.network_weights, self.device)
        self.reduce_metric = gradient_reducer(self.metric_weights, self.device)

    def _hessian_gradient(self):
        """(direction, images, labels, *masks) -> the Hessian's product with the direction, a tuple.

        Through a network of its own over the same weights, in float32: the fast operators have no second
        derivatives.
        """
        twin = self.new_network(twice=True)
        self.second_order = share_parameters(self.trained, twin)
        accelerate(self.second_order, second_order=True)
        gradient = ms.value_and_grad(TaskLoss(self.second_order), None, self.network_weights)
        return ms.grad(Directional(gradient), None, self.network_weights)

    # Jitted parts of a step. What one leaves to the next stands in the buffers.

    def _unscaled(self, gradients):
        return gradients if self.scale == 1.0 else optim.divided(gradients, self.divisor)

    def _inner_gradients(self, gradients):
        """Gradients of the mean cross-entropy -> what the inner step clips and takes."""
        return gradients if self.inner_factor == 1.0 else optim.multiplied(gradients, self.inner_factor)

    def _inner_step(self, images, labels, rate, *masks):
        """Task loss and its gradient at θ; leaves the network at θ', θ in `start`."""
        loss, gradients = self.task_gradient(images, labels, *masks)
        gradients = self.reduce(self._unscaled(gradients))
        store(self.task_gradients, gradients)
        moved = clip_each(self._inner_gradients(gradients), self.config.gradients_clip_value)
        for weight, start, gradient in zip(self.network_weights, self.start, moved):  # noqa: B905 - the graph compiler does not know strict
            before = ops.assign(start, weight)
            ops.assign(weight, before - rate * gradient)
        return loss if self.scale == 1.0 else loss / self.divisor

    def _meta_step(self, images, labels, *masks):
        """Meta losses at θ', and their gradients with respect to θ' and φ."""
        (_, aligned, local), gradients = self.meta_gradient(images, labels, *masks)
        gradients = self._unscaled(gradients)
        store(self.meta_gradients, self.reduce(gradients[: self.count]))
        store(self.metric_gradients, self.reduce_metric(gradients[self.count :]))
        return aligned, local

    def _put_back(self):
        store(self.network_weights, self.start)
        return self.zero

    def _keep_statistics(self):
        store(self.kept_statistics, self.statistics)
        return self.zero

    def _put_statistics(self):
        store(self.statistics, self.kept_statistics)
        return self.zero

    def _second_order(self, images, labels, rate, *masks):
        """v - rate·∇⟨∇L(θ), J·v⟩. Ranks average what is linear in L: it is exact for them together."""
        limit = self.config.gradients_clip_value
        direction = through_clipping(self._inner_gradients(self.task_gradients), self.meta_gradients, limit)
        if self.inner_factor != 1.0:
            direction = optim.multiplied(direction, self.inner_factor)
        through = self.reduce(self.hessian_gradient(direction, images, labels, *masks))
        for part, hessian in zip(self.meta_gradients, through):  # noqa: B905 - the graph compiler does not know strict
            ops.assign(part, part - rate * hessian)
        return self.zero

    def _outer_step(self):
        self.optimizers["task"](self.task_gradients)
        self.optimizers["meta"](clip_each(self.meta_gradients, self.config.gradients_clip_value))
        self.optimizers["metric"](self.metric_gradients)
        return self.zero

    # What the loop calls.

    def begin_phase(self, phase):
        """The network for second derivatives normalises as the trained one does."""
        if self.second_order is not None:
            self.second_order.set_train(True)
            self.freeze_statistics(self.second_order)

    def train_step(self, phase, batch):
        """One episode; returns the three losses, their weighted sum as "loss", and the outer rate."""
        config = self.config
        factor = self.factor(phase)
        for name, rate in self.rates.items():
            set_learning_rate(self.optimizers[name], rate * factor)
        order = self.episode(phase.step)
        train = self._tensors(batch, order[:-1], phase.step, "inner")
        every = self._tensors(batch, order, phase.step, "meta")
        task = self._inner(*train[:2], self.inner_lr, *train[2:])
        if self.statistics:
            self._keep()
        aligned, local = self._meta(*every)
        self._restore()
        if config.meta_order == "second":
            self._correct(*train[:2], self.inner_lr, *train[2:])
        if self.statistics:
            self._put()
        self._update()
        for average in self.averages:
            average.update(phase.step)
        total = task + config.global_weight * aligned + config.local_weight * local
        losses = {"loss": total, "task_loss": task, "global_loss": aligned, "local_loss": local}
        return {**losses, "lr": config.outer_lr * factor}

    def episode(self, step):
        """The domains in the order of this step: the meta-test domain, drawn by seed and step, comes last.

        The batch is put into that order on the host, so that one compiled step serves every choice.
        """
        chosen = int(noise.generator(self.config.seed, "meta-test domain", step).integers(len(self.names)))
        return [name for index, name in enumerate(self.names) if index != chosen] + [self.names[chosen]]

    def _tensors(self, batch, order, step, purpose):
        images = np.concatenate([batch[name][0] for name in order])
        labels = np.concatenate([batch[name][1] for name in order])
        masks = self.masks(len(labels), f"dropout {purpose}", step, self.device.rank)
        return ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels), *masks

    def state(self):
        """Networks and optimizers by name."""
        optimizers = {f"optimizer_{name}": optimizer for name, optimizer in self.optimizers.items()}
        return {**super().state(), **optimizers}
