"""SHOT: source hypothesis transfer (Liang et al. 2020, arXiv 2002.08546): adaptation without source images.

A network that was trained elsewhere goes on with unlabelled target images alone. Its class head, the
hypothesis, stays as it is. Backbone and bottleneck learn predictions that are certain for each image and
diverse over all of them (eq. 3), and pseudo-labels that are made anew at intervals: each image gets the class
whose centroid in feature space lies nearest (eq. 4 to 7).
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from scipy.special import softmax

from model_utils import checkpoint
from model_utils.device import broadcast_parameters
from model_utils.errors import UserError
from model_utils.key import Key
from src.losses.classification import cross_entropy
from src.losses.confusion import information_loss
from src.training import trainer
from src.training.contract import Phase
from src.training.trainer import freeze


def centroid_labels(features, probabilities, rounds=2):
    """The class of the nearest centroid (eq. 4 to 7): int32 (N,).

    Args:
        features: float (N, D).
        probabilities: float (N, K), rows sum to 1: how strongly each image counts for each centroid.
        rounds: times that labels are found; after the first, they take the place of the probabilities.

    Distance is one minus the cosine, with a constant 1 added to each feature as in the authors' program. A
    class that no image is predicted to have gets none.
    """
    features = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], 1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    shares = probabilities.astype(np.float64)
    there = np.bincount(shares.argmax(1), minlength=shares.shape[1]) > 0
    for _ in range(rounds):
        centroids = shares.T @ features / (shares.sum(0)[:, None] + 1e-8)
        norms = np.linalg.norm(centroids, axis=1)
        similarity = features @ centroids.T / np.maximum(norms, 1e-12)
        labels = np.where(there, similarity, -np.inf).argmax(1)
        shares = np.eye(shares.shape[1])[labels]
    return labels.astype(np.int32)


class TargetLoss(nn.Cell):
    """Information loss of target predictions plus the weighted cross-entropy of their pseudo-labels.

    Inputs: images (N, C, S, S), pseudo-labels int32 (N,), dropout masks. Returns the total and (information
    loss, pseudo-label loss).
    """

    def __init__(self, network, weight, information_weight):
        super().__init__(auto_prefix=False)
        self.network, self.weight, self.information_weight = network, weight, information_weight

    def construct(self, images, labels, *masks):
        logits = ops.cast(self.network(images, *masks), ms.float32)
        information, cost = information_loss(logits), cross_entropy(logits, labels)
        return self.information_weight * information + self.weight * cost, (information, cost)


class PseudoLabels(nn.Cell):
    """One label for each target image; part of a checkpoint, so that a resumed run goes on with the same."""

    def __init__(self, count):
        super().__init__(auto_prefix=False)
        self.labels = ms.Parameter(ms.Tensor(np.zeros(count, np.int32)), name="labels", requires_grad=False)


class Method(trainer.Trainer):
    """One phase on an unlabelled target; source domains, where given, are only tested on."""

    LEAST_SOURCES = 0
    GOES_ON_WITH = "pretrained"
    OWN_STEP = ("adapt_batch_norm",)  # pseudo-labels are found with the statistics that training has left
    DEFAULTS = {
        "network": "lenet",
        "target_dataset_name": "",
        "optimizer": "momentum",
        "weight_decay": 1e-3,
        "backbone_lr_factor": 0.1,
        "lr_schedule": "cosine",
    }
    KEYS = {
        "batch_size": Key(64, "target images per step and process; export.py: fixed batch size", low=1),
        "iterations": Key(1000, "training steps", low=1),
        "steps_per_epoch": Key(500, "steps between evaluations and checkpoints", low=1),
        "lr": Key(0.01, "learning rate of the bottleneck (peak, if scheduled)", above=0),
        "information_weight": Key(1.0, "weight of information maximisation", low=0),
        "pseudo_weight": Key(0.3, "weight of the pseudo-labels", low=0),
        "pseudo_interval": Key(100, "steps after which pseudo-labels are made anew", low=1),
    }

    @staticmethod
    def known_classes(config):
        """The names of the classes, out of the checkpoint that training goes on with.

        In a run that is resumed that is its own newest one: what it began with may be gone.

        Raises:
            UserError: it is not given, can't be read, or does not name its classes.
        """
        path = config.pretrained
        if path.lower() in ("", "auto", "none"):
            raise UserError(
                "pretrained: method shot goes on with a trained network; give its run folder or checkpoint"
            )
        if config.resume and checkpoint.listed(config.output_dir):
            path = config.output_dir
        names = checkpoint.class_names(checkpoint.stored_meta(path), path)
        if names is None:
            raise UserError(
                f"pretrained: {path} does not name its classes; train it anew with this release, which does"
            )
        return names

    def plan(self):
        """One phase, counted in steps."""
        config, task = self.config, self.task
        loaders = task.unlabelled(self.preparation, self.loaded_batch, numbered=True)
        self.every = task.blind_target(self.preparation, self.evaluation_batch(config), numbered=True)
        self.phases = [Phase("adapt", config.iterations, config.steps_per_epoch, loaders)]

    def prepare(self):
        """Freeze the class head; one update of the rest."""
        config = self.config
        freeze(self.network.head)
        freeze(self.trained.head)
        if not self.trained.trainable_params():
            raise UserError(
                "freeze_backbone: nothing is left to train, because the class head stays as it is, too; go "
                "on with a network that has a bottleneck, or leave freeze_backbone out"
            )
        self.every = self.seen(self.every)
        self.pseudo = self.add_part("pseudo", PseudoLabels(self.every.count))
        loss = TargetLoss(self.trained, config.pseudo_weight, config.information_weight)
        self.add_update("adapt", loss, self.network_optimizers("network", config.lr))

    def train_step(self, phase, batch):
        """One update; returns its losses and the rate."""
        update, rate = self.updates["adapt"], self.config.lr * self.factor(phase)
        self.set_learning_rates(update, rate)
        if phase.step % self.config.pseudo_interval == 0:
            self._label_anew()
        labels = self.pseudo.labels.asnumpy()

        def inputs(part, number):
            images, places = part["target"]
            masks = self.masks(len(images), "dropout adapt", *self.counters(phase, number))
            return [ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels[places]), *masks]

        total, (information, cost), more = self.run(update, phase, batch, inputs)
        return {"loss": total, "information": information, "pseudo_loss": cost, "lr": rate, **more}

    def _label_anew(self):
        features, logits, places = self.evaluator.predictions(self.every)
        labels = self.pseudo.labels.asnumpy().copy()
        labels[places] = centroid_labels(features, softmax(logits, axis=1))
        ops.assign(self.pseudo.labels, ms.Tensor(labels))
        broadcast_parameters([self.pseudo], self.device)
