"""AdaMatch: semi-supervised learning and domain adaptation in one (Berthelot et al. 2022, arXiv 2106.04732).

One phase. Each step sees a weakly and a strongly augmented view of labelled source and of unlabelled target
images; the strong target views learn what is predicted for the weak ones. With `ema_decay`, as published, a
moving average of the weights is evaluated.
"""

import math

import mindspore as ms
import numpy as np

from model_utils import noise
from model_utils.key import Key
from src.data import augment
from src.losses.adamatch import AdaMatchLoss
from src.training import trainer
from src.training.contract import Phase


def ramp(step, steps):
    """Weight of the target loss (section 3.4): from 0 to 1 over the first half of `steps`, then 1."""
    return 0.5 - math.cos(min(math.pi, 2 * math.pi * step / max(1, steps))) / 2


class Method(trainer.Trainer):
    """One phase on a labelled source and an unlabelled target, both in two views."""

    DEFAULTS = {
        "network": "lenet",
        "source_dataset_name": "usps",
        "source_image_root": "data/usps",
        "target_dataset_name": "mnist",
        "target_image_root": "data/mnist",
        "validation_size": 0,
        "ema_decay": 0.999,
        "lr_schedule": "cosine",
        "weight_decay": 1e-3,
    }
    PER_DOMAIN = False
    KEYS = {
        "batch_size": Key(64, "source images per step and process; export.py: fixed batch size", low=1),
        "target_ratio": Key(1, "target images for each source image of a step; published: 3", low=1, high=16),
        "iterations": Key(3000, "training steps", low=1),
        "steps_per_epoch": Key(500, "steps between evaluations and checkpoints", low=1),
        "lr": Key(0.001, "learning rate (peak, if scheduled)", above=0),
        "target_weight": Key(1.0, "weight of the target loss after the first half of the steps", low=0),
        "relative_confidence": Key(
            0.9, "threshold of pseudo-labels as a share of the mean confidence on the source", above=0, high=1
        ),
        "strong_augment": Key(
            "affine+cutout",
            "digit sets: strong views; image folders: crops of at least a fifth and colours up to 0.5",
            choices=augment.STRONG,
        ),
    }

    def plan(self):
        """One phase, counted in steps."""
        config, task = self.config, self.task
        options = {"strong": config.strong_augment}
        loaders = task.labelled(self.preparation, self.loaded_batch, **options)
        loaders |= task.unlabelled(self.preparation, self.loaded_batch * config.target_ratio, **options)
        self.held_out = task.held_out(self.preparation, target=False)
        self.phases = [Phase("adapt", config.iterations, config.steps_per_epoch, loaders)]

    def prepare(self):
        """One update of the whole network."""
        loss = AdaMatchLoss(self.trained, self.config.relative_confidence)
        self.add_update("adapt", loss, self.network_optimizers("network", self.config.lr))

    def train_step(self, phase, batch):
        """One update; returns its losses, the share of pseudo-labels used, the accuracy and the rate."""
        config, update = self.config, self.updates["adapt"]
        rate = config.lr * self.factor(phase)
        self.set_learning_rates(update, rate)
        weight = config.target_weight * ramp(phase.step, phase.steps)

        def inputs(part, number):
            labels, counters = part["source"][1], self.counters(phase, number)
            names = ("source", "source_strong", "target", "target_strong")
            images = np.concatenate([part[name][0] for name in names])
            rng = noise.generator(config.seed, "interpolation", *counters)
            mixing = rng.random((2 * len(labels), len(self.task.classes)), np.float32)
            masks = self.masks(len(images), "dropout adapt", *counters)
            tensors = [ms.Tensor.from_numpy(array) for array in (images, labels, mixing)]
            return [*tensors, ms.Tensor(weight, ms.float32), *masks]

        total, scalars, more = self.run(update, phase, batch, inputs)
        names = ("class_loss", "pseudo_loss", "pseudo_share", "class_accuracy")
        named = dict(zip(names, scalars, strict=True))
        return {"loss": total, **named, "target_weight": weight, "lr": rate, **more}
