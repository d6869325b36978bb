"""Supervised training of one network: what HarDNet and the DeepAll baseline share."""

import logging

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils import noise
from model_utils.device import gradient_reducer, jit
from model_utils.key import Key
from src.losses.classification import accuracy, smoothed_cross_entropy
from src.ops import accelerate
from src.train_cells import TrainCell, find_method
from src.training import optim, precision
from src.training.averaging import Average
from src.training.schedules import DECAY_MODES, warmup_and_decay

log = logging.getLogger("run")

KEYS = {
    "optimizer": Key("momentum", "SGD with momentum, or Adam", choices=("momentum", "adam")),
    "momentum": Key(0.9, "momentum of optimizer momentum", low=0, below=1),
    "weight_decay": Key(6e-5, "L2 penalty of weights; not of biases and batch norms", low=0, below=1),
    "label_smooth_factor": Key(0.1, "share of each label spread over all classes", low=0, below=1),
    "lr_init": Key(0.05, "learning rate that the warm-up starts from", low=0),
    "lr_max": Key(0.1, "learning rate after the warm-up", above=0),
    "lr_end": Key(1e-5, "learning rate at the end of modes cosine and poly", low=0),
    "warmup_epochs": Key(5, "epochs of linear warm-up, part of all epochs; one_cycle has its own", low=0),
    "lr_decay_mode": Key(
        "cosine",
        "after the warm-up: cosine or poly to lr_end; step: a tenth at 30, 60 and 80 % of all steps; "
        "constant; one_cycle: the whole schedule from lr_max alone",
        choices=DECAY_MODES,
    ),
    "amp_level": Key(
        "O0",
        "float16 in training: O0 nowhere, O1 in convolutions and dense layers, O2 in all but batch "
        "normalisation, O3 everywhere; weights, evaluation and export stay float32",
        choices=precision.LEVELS,
    ),
    "loss_scale": Key(1024.0, "factor of the loss at O1 to O3 (dynamic: at first); not used at O0", low=1),
    "loss_scale_mode": Key(
        "static",
        "dynamic: gradients that overflow are skipped and halve the scale, 1000 good steps double it",
        choices=("static", "dynamic"),
    ),
    "gradient_accumulation": Key(1, "batches whose gradients are averaged for one step", low=1),
    "clip_grad_norm": Key(0.0, "largest Euclidean norm of all gradients together; 0: no limit", low=0),
    "ema_decay": Key(0.0, "decay of the average of weights that is evaluated; 0: none", low=0, below=1),
    "freeze_backbone": Key(False, "train the last layer only; batch normalisation keeps its statistics, too"),
    "pre_ckpt_path": Key("", "checkpoint or run folder to start from; another class_num: a new last layer"),
}


_for_each = ops.HyperMap()  # a loop over hundreds of gradients would take the graph compiler minutes


def _sum_up(kept, total, gradient):
    return ops.assign(total, ops.select(kept, total + gradient, gradient))


class SupervisedLoss(nn.Cell):
    """Label-smoothed cross-entropy times `scale`; also the loss itself (nats) and the accuracy."""

    def __init__(self, network, smoothing):
        super().__init__(auto_prefix=False)
        self.network, self.smoothing = network, smoothing

    def construct(self, images, labels, scale, *masks):
        logits = ops.cast(self.network(images, *masks), ms.float32)
        loss = smoothed_cross_entropy(logits, labels, self.smoothing)
        return loss * scale, loss, accuracy(logits, labels)


class SupervisedTrainCell(TrainCell):
    """Trains one network on the labels of all domains of its phase's batches, joined into one.

    With `gradient_accumulation` k, the phase's loaders give k·batch_size images a step: each domain's batch
    is cut into k parts, and the gradients of the k joined parts are averaged. A step is one update.

    Args:
        network: images (N, C, H, W) -> logits (N, K), as `build_network(config)` of the method makes it; with
            masks, images and masks -> logits.
        phase: the one phase; its loaders give labels for every domain.
        config: has `KEYS`.
        device: averages gradients over processes.
        dropout: [(shape of one image's mask, probability)]; masks (N, *shape) from src/noise, already scaled,
            follow the images in the network's arguments.
        head: the part of `network` that is trained with `freeze_backbone`.
        first_step: steps that earlier runs have done: the learning rate goes on from there.

    Attributes:
        network: what is evaluated and exported; with `ema_decay` the averaged weights.
        trained: what is trained: `network` itself, a float16 tree over its weights, or with `ema_decay` a
            network of its own.
    """

    def __init__(self, network, phase, config, device, dropout=(), head=None, first_step=0):
        self.network, self.config, self.device = network, config, device
        self.phases, self.first_step = [phase], first_step
        self.dropout = [(shape, probability) for shape, probability in dropout if probability > 0]
        if config.freeze_backbone:
            _freeze_all_but(network, head)
        self.trained = self._trained_network()
        accelerate(network)
        weights = ms.ParameterTuple(self.trained.trainable_params())
        self.optimizer = self._optimizer(weights)
        self.reducer = gradient_reducer(self.optimizer.parameters, device)
        self.scaled = config.amp_level != "O0"
        self.dynamic = self.scaled and config.loss_scale_mode == "dynamic"
        self.clips = config.clip_grad_norm > 0
        self.loss_scale = precision.LossScale(config.loss_scale if self.scaled else 1.0)
        self._compile(weights)

    def _trained_network(self):
        """The cells that training goes through; see `trained`."""
        config, network = self.config, self.network
        self.average = None
        if not config.ema_decay and config.amp_level == "O0":
            return network
        trained = find_method(config.method).build_network(config)
        if config.ema_decay:
            for own, other in zip(trained.get_parameters(), network.get_parameters(), strict=True):
                ops.assign(own, other)
                own.requires_grad = other.requires_grad
            # A network of its own: without a prefix its names would collide with the averaged one's.
            trained.update_parameters_name("trained.")
            self.average = Average(trained, network, config.ema_decay, config)
        else:
            precision.share_parameters(network, trained)
        if config.amp_level == "O0":
            accelerate(trained)
        return precision.lower(trained, config.amp_level)

    def _optimizer(self, weights):
        config = self.config
        groups = optim.decay_groups(weights, config.weight_decay)
        if config.optimizer == "adam":
            return optim.adam("adam", groups, config.lr_max)
        return optim.momentum("momentum", groups, config.lr_max, config.momentum)

    def _compile(self, weights):
        config = self.config
        loss = SupervisedLoss(self.trained, config.label_smooth_factor)
        self.gradient = ms.value_and_grad(loss, None, weights, has_aux=True)
        self.sums = None
        if config.gradient_accumulation > 1:
            self.sums = ms.ParameterTuple(
                ms.Parameter(ops.zeros_like(weight), name=f"sum.{weight.name}", requires_grad=False)
                for weight in weights
            )
        self._update = jit(self._whole_update, config)
        self._add = jit(self._add_gradients, config)
        self._update_from_sums = jit(self._update_with_sums, config)

    # Jitted parts of a step. Each returns scalars only.

    def _whole_update(self, images, labels, scale, *masks):
        (_, loss, hits), gradients = self.gradient(images, labels, scale, *masks)
        return loss, hits, self._apply(gradients, scale)

    def _add_gradients(self, kept, images, labels, scale, *masks):
        """Sum up gradients; `kept` is False for the first part of a step, which begins the sums anew."""
        (_, loss, hits), gradients = self.gradient(images, labels, scale, *masks)
        added = _for_each(ops.partial(_sum_up, kept), self.sums, gradients)
        return ops.depend(loss, added), hits

    def _update_with_sums(self, divisor):
        return self._apply(self.sums, divisor)

    def _apply(self, gradients, divisor):
        """One update with gradients / divisor; (their norm, 0 without clipping; whether they are finite)."""
        if self.scaled or self.sums is not None:
            gradients = optim.divided(gradients, divisor)
        gradients = self.reducer(gradients)
        norm = optim.global_norm(gradients) if self.clips else ops.zeros_like(divisor)
        finite = optim.all_finite(gradients) if self.dynamic else norm >= 0.0
        if self.dynamic:
            # At the smallest scale there is nothing left to lower: the loop shall see the weights overflow.
            if ops.logical_or(finite, self.loss_scale.scale <= precision.SCALE_MIN):
                self._optimize(gradients, norm)
        else:
            self._optimize(gradients, norm)
        return norm, finite

    def _optimize(self, gradients, norm):
        if self.clips:
            gradients = optim.clip_by_global_norm(gradients, norm, self.config.clip_grad_norm)
        self.optimizer(gradients)

    # What the loop calls.

    def start_phase(self, phase):
        """With a frozen backbone: its batch normalisation neither uses nor gathers batch statistics."""
        if self.config.freeze_backbone:
            self.trained.set_train(False)

    def train_step(self, phase, batch):
        """One update; returns loss, class_accuracy, lr and, where they exist, gradient_norm and scale."""
        rate = self.learning_rate(phase)
        optim.set_learning_rate(self.optimizer, rate)
        scale = ms.Tensor(self.loss_scale.scale.asnumpy())
        if self.sums is None:
            images, labels, masks = self._part(phase, batch, 0)
            loss, hits, (norm, finite) = self._update(images, labels, scale, *masks)
        else:
            loss, hits, norm, finite = self._accumulated(phase, batch, scale)
        values = {"loss": loss, "class_accuracy": hits, "lr": rate}
        skipped = self.dynamic and self._adjust_scale(bool(finite), phase)
        if self.dynamic:
            values |= {"scale": float(scale), "skipped": float(self.loss_scale.skipped)}
        if self.clips and not skipped:
            values["gradient_norm"] = norm
        if self.average is not None and not skipped:
            self.average.update(phase.step)
        return values

    def learning_rate(self, phase):
        """The learning rate of `phase.step`: a pure function of the step."""
        config, done = self.config, self.first_step
        return warmup_and_decay(
            config.lr_decay_mode,
            done + phase.step,
            done + phase.steps,
            config.warmup_epochs * phase.steps_per_epoch,
            config.lr_init,
            config.lr_max,
            config.lr_end,
        )

    def _accumulated(self, phase, batch, scale):
        """A step in parts, for which all loaders give k times the batch."""
        parts = self.config.gradient_accumulation
        loss = hits = 0.0
        for number in range(parts):
            kept = ms.Tensor(number > 0)
            images, labels, masks = self._part(phase, batch, number)
            part_loss, part_hits = self._add(kept, images, labels, scale, *masks)
            loss, hits = loss + part_loss / parts, hits + part_hits / parts
        return loss, hits, *self._update_from_sums(scale * parts)

    def _part(self, phase, batch, number):
        """(images, labels, masks) of one part of a step, all domains joined, as Tensors."""
        parts = self.config.gradient_accumulation
        chosen = []
        for images, labels in batch.values():
            size, rest = divmod(len(images), parts)
            if rest:
                raise ValueError(f"{len(images)} images can't be cut into {parts} equal parts")
            rows = slice(number * size, (number + 1) * size)
            chosen.append((images[rows], labels[rows]))
        columns = zip(*chosen, strict=True)
        images, labels = (np.concatenate(rows) if len(rows) > 1 else rows[0] for rows in columns)
        masks = tuple(ms.Tensor.from_numpy(mask) for mask in self._masks(phase, number, len(labels)))
        return ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels), masks

    def _masks(self, phase, number, rows):
        if not self.dropout:
            return []
        rng = noise.generator(self.config.seed, "dropout", phase.step, number, self.device.rank)
        return [noise.keep_mask(rng, (rows, *shape), probability) for shape, probability in self.dropout]

    def _adjust_scale(self, finite, phase):
        """Account for the step in the dynamic loss scale; whether its update was skipped."""
        before = float(self.loss_scale.scale)
        skipped = not finite and before > precision.SCALE_MIN
        self.loss_scale.adjust(skipped)
        if skipped:
            log.info(
                "step %d: gradients overflowed at loss scale %g and were left out (%d steps so far); now %g",
                phase.step + 1,
                before,
                int(self.loss_scale.skipped),
                float(self.loss_scale.scale),
            )
        return skipped

    def state(self):
        """Networks, optimizer and loss scale by name."""
        trained = {} if self.trained is self.network else {"trained": self.trained}
        return {
            "network": self.network,
            **trained,
            "optimizer": self.optimizer,
            "loss_scale": self.loss_scale,
        }


def _freeze_all_but(network, head):
    """Only `head` is trained; its parameters are told by identity, not by name."""
    if head is None:
        raise ValueError("freeze_backbone needs to know the network's last layer")
    kept = {id(parameter) for parameter in head.get_parameters()}
    for parameter in network.get_parameters():
        parameter.requires_grad = parameter.requires_grad and id(parameter) in kept
