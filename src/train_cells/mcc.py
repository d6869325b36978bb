"""MCC: minimum class confusion (Jin et al. 2020, arXiv 1912.03699).

One phase: the class loss on labelled source images, plus the confusion of the classes predicted for
unlabelled target images. There is no adversary and no further network.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils.key import Key
from src.losses.adversarial import both_logits
from src.losses.classification import accuracy, smoothed_cross_entropy
from src.losses.confusion import class_confusion, information_loss
from src.training import trainer
from src.training.contract import Phase


class ConfusionLoss(nn.Cell):
    """Label-smoothed cross-entropy of N source images plus the weighted confusion of N target images.

    Inputs: images (2N, C, S, S), source rows first; labels (N,); dropout masks of the 2N rows.

    Args:
        network: images and masks -> logits.
        joint: whether both domains go through the network as one batch.
        config: `label_smooth_factor`, `mcc_weight`, `temperature`, `information_weight`.

    Returns the total and (class loss, confusion, information loss, class accuracy).
    """

    def __init__(self, network, joint, config):
        super().__init__(auto_prefix=False)
        self.network, self.joint = network, joint
        self.smoothing, self.weight = config.label_smooth_factor, config.mcc_weight
        self.temperature, self.information_weight = config.temperature, config.information_weight

    def construct(self, images, labels, *masks):
        source, target = both_logits(self.network, images, masks, labels.shape[0], self.joint)
        class_loss = smoothed_cross_entropy(source, labels, self.smoothing)
        confusion = class_confusion(target, self.temperature)
        information = ops.zeros_like(confusion)
        if self.information_weight > 0:
            information = information_loss(target)
        total = class_loss + self.weight * confusion + self.information_weight * information
        return total, (class_loss, confusion, information, accuracy(source, labels))


class Method(trainer.Trainer):
    """One phase on a labelled source and an unlabelled target."""

    DEFAULTS = {
        "network": "lenet",
        "source_dataset_name": "usps",
        "source_image_root": "data/usps",
        "target_dataset_name": "mnist",
        "target_image_root": "data/mnist",
        "validation_size": 0,
        "batch_norm": "joint",
        "lr_schedule": "one_cycle",
    }
    KEYS = {
        "batch_size": Key(64, "images per domain, step and process; export.py: fixed batch size", low=1),
        "iterations": Key(1500, "training steps", low=1),
        "steps_per_epoch": Key(500, "steps between evaluations and checkpoints", low=1),
        "lr": Key(0.001, "learning rate (peak, if scheduled)", above=0),
        "label_smooth_factor": Key(0.1, "share of each label spread over all classes", low=0, below=1),
        "mcc_weight": Key(1.0, "weight of the confusion of target predictions", low=0),
        "temperature": Key(2.5, "temperature of the softmax whose confusion is measured", above=0),
        "information_weight": Key(
            0.0, "weight of information maximisation on target predictions beside it; 0: none", low=0
        ),
    }

    def plan(self):
        """One phase, counted in steps."""
        config, task = self.config, self.task
        loaders = task.labelled(self.preparation, self.loaded_batch, joined=True)
        loaders |= task.unlabelled(self.preparation, self.loaded_batch)
        self.held_out = task.held_out(self.preparation, target=False)
        self.phases = [Phase("adapt", config.iterations, config.steps_per_epoch, loaders)]

    def prepare(self):
        """One update of the whole network."""
        config = self.config
        loss = ConfusionLoss(self.trained, config.batch_norm != "per_domain", config)
        self.add_update("adapt", loss, self.network_optimizers("network", config.lr))

    def train_step(self, phase, batch):
        """One update; returns its losses, accuracy and rate."""
        update, rate = self.updates["adapt"], self.config.lr * self.factor(phase)
        self.set_learning_rates(update, rate)

        def inputs(part, number):
            (source, labels), (target, _) = part["source"], part["target"]
            images = np.concatenate((source, target))
            masks = self.masks(len(images), "dropout adapt", *self.counters(phase, number))
            return [ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels), *masks]

        total, scalars, more = self.run(update, phase, batch, inputs)
        names = ("class_loss", "confusion", "information", "class_accuracy")
        return {"loss": total, **dict(zip(names, scalars, strict=True)), "lr": rate, **more}
