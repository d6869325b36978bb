"""Supervised training of one network on all labelled domains: the baseline that adaptation has to beat.

Every step takes `batch_size` images of each labelled domain, joins them into one batch and minimises their
mean cross-entropy. Methods `hardnet` and `deepall` are this one under the names, and with the defaults, that
users of the published models know.
"""

import mindspore as ms
from mindspore import nn, ops

from model_utils.errors import UserError
from model_utils.key import Key
from src.losses.classification import accuracy, smoothed_cross_entropy
from src.training import trainer
from src.training.batches import joined
from src.training.contract import Phase
from src.training.schedules import DECAY_MODES, warmup_and_decay


class SupervisedLoss(nn.Cell):
    """Label-smoothed cross-entropy (nats), and the accuracy.

    Args:
        network: images (N, C, S, S) and masks -> logits.
        smoothing: share of each label spread over all classes.
        domains: number of domains whose images, equally many of each, go through the network one after the
            other; 1: the whole batch at once.
    """

    def __init__(self, network, smoothing, domains=1):
        super().__init__(auto_prefix=False)
        self.network, self.smoothing, self.domains = network, smoothing, domains

    def _logits(self, images, masks):
        if self.domains == 1:
            return self.network(images, *masks)
        size, parts = images.shape[0] // self.domains, ()
        for number in range(self.domains):
            begin, end, own = number * size, (number + 1) * size, ()
            for mask in masks:
                own += (mask[begin:end],)
            parts += (self.network(images[begin:end], *own),)
        return ops.concat(parts)

    def construct(self, images, labels, *masks):
        logits = ops.cast(self._logits(images, masks), ms.float32)
        return smoothed_cross_entropy(logits, labels, self.smoothing), (accuracy(logits, labels),)


class Method(trainer.Trainer):
    """Supervised training, counted in epochs or in iterations."""

    COUNTS_TOP5 = True
    INSTEAD = {"lr_schedule": "lr_decay_mode"}
    DEFAULTS = {"network": "hardnet39ds", "optimizer": "momentum", "weight_decay": 6e-5}
    KEYS = {
        "batch_size": Key(
            64,
            "images per labelled domain, step and process; export.py: fixed batch size",
            low=1,
        ),
        "epoch_size": Key(150, "epochs of the whole training, those done before this run included", low=1),
        "pretrain_epoch_size": Key(
            0,
            "epochs of epoch_size done before this run, which starts from their weights (pretrained): it "
            "trains the rest, and the learning rate goes on where they ended",
            low=0,
        ),
        "train_iterations": Key(0, "training steps, in place of epoch_size; 0: by epochs", low=0),
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
    }

    def plan(self):
        """One phase; its epoch is as many steps as the smallest domain fills."""
        config, task = self.config, self.task
        loaders = task.labelled(self.preparation, self.loaded_batch, joined=False)
        self.held_out = task.held_out(self.preparation, self.evaluation_batch(config), target=False)
        self.epoch = min(loader.steps_per_epoch for loader in loaders.values())
        self.first_step = config.pretrain_epoch_size * self.epoch
        if config.train_iterations:
            steps = evaluated = config.train_iterations
        else:
            left = config.epoch_size - config.pretrain_epoch_size
            if left < 1:
                raise UserError(
                    f"pretrain_epoch_size: {config.pretrain_epoch_size} epochs are done and epoch_size is "
                    f"{config.epoch_size}: nothing is left to train; raise epoch_size"
                )
            steps, evaluated = left * self.epoch, self.epoch
        self.phases = [Phase("train", steps, evaluated, loaders)]

    def prepare(self):
        """One update of the whole network."""
        config = self.config
        domains = len(self.phases[0].loaders) if config.batch_norm == "per_domain" else 1
        loss = SupervisedLoss(self.trained, config.label_smooth_factor, domains)
        self.add_update("train", loss, self.network_optimizers("network", config.lr_max))

    def train_step(self, phase, batch):
        """One update; returns loss, class_accuracy, lr and, where they exist, gradient_norm and scale."""
        rate = self.learning_rate(phase)
        self.set_learning_rates(self.updates["train"], rate)

        def inputs(part, number):
            images, labels = joined(part)
            masks = self.masks(len(labels), "dropout", phase.step, number, self.device.rank)
            return [images, labels, *masks]

        loss, (hits,), more = self.run(self.updates["train"], phase, batch, inputs)
        return {"loss": loss, "class_accuracy": hits, "lr": rate, **more}

    def learning_rate(self, phase):
        """The learning rate of `phase.step`: a pure function of the step."""
        config, done = self.config, self.first_step
        return warmup_and_decay(
            config.lr_decay_mode,
            done + phase.step,
            done + phase.steps,
            config.warmup_epochs * self.epoch,
            config.lr_init,
            config.lr_max,
            config.lr_end,
        )

    @staticmethod
    def accuracy_lines(top1, top5):
        """The lines that users of the published model grep, of the last domain: the one of interest."""
        if not top1:
            return []
        domain = list(top1)[-1]
        lines = [f"accuracy:{{'acc':{round(top1[domain], 6)}}}"]
        return lines + ([f"top-5 accuracy: {round(top5[domain], 6)}"] if domain in top5 else [])
