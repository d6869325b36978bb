"""ADDA: adversarial discriminative domain adaptation (Tzeng et al. 2017, arXiv 1702.05464).

Phase "source" trains the source network on labels. Then the target network starts as a copy of it, the
source network is frozen, and phase "adapt" trains the target network and a discriminator of class logits at
once: the discriminator tells source logits from target logits, the target network is trained to make them
alike.

`network` is what is trained in both phases: the source network first, from then on the target network. The
frozen copy is a network of its own, `source_network`; it stays in evaluation mode, so that its batch
normalisations keep the statistics that source training has left.
"""

import logging

import mindspore as ms
import numpy as np
from mindspore import ops

from model_utils import checkpoint, noise
from model_utils.device import broadcast_parameters, jit
from model_utils.errors import UserError
from model_utils.key import Alias, Key
from src.data import augment
from src.evaluation import held_out
from src.evaluation.evaluate import evaluating
from src.losses.adversarial import PretrainLoss
from src.losses.mapping import TERMS, AdaptLoss, Discriminator, WarmUpLoss
from src.training import trainer
from src.training.batch_norm import has_batch_norm
from src.training.contract import Phase
from src.training.optim import copy_weights
from src.training.run_folder import check_same_classes
from src.training.schedules import reversal_strength

log = logging.getLogger("run")

SOURCE, WARM_UP, ADAPT = "source", "discriminator", "adapt"
ADVERSARIAL_BETA1 = 0.5


class Method(trainer.Trainer):
    """Source training, then adaptation of a copy; between them, if asked for, the discriminator alone."""

    DEFAULTS = {
        "network": "lenet",
        "source_dataset_name": "mnist",
        "source_image_root": "data/mnist",
        "target_dataset_name": "usps",
        "target_image_root": "data/usps",
        "validation_size": 0,
        "batch_norm": "per_domain",
        "momentum": 0.99,
        "weight_decay": 2.5e-5,
        "weight_decay_on": "all",
    }
    KEYS = {
        "batch_size": Key(128, "images per domain, step and process; export.py: fixed batch size", low=1),
        "iterations": Key(10000, "steps of training the source network", low=0),
        "adversary_iterations": Key(10000, "adversarial steps; 0: source only", low=0),
        "discriminator_iterations": Key(0, "steps before them that train only the discriminator", low=0),
        "steps_per_epoch": Key(
            1000,
            "steps between evaluations and checkpoints (this method counts iterations, not epochs)",
            low=1,
        ),
        "source_ckpt_file": Key(
            "", "checkpoint or run folder of a trained source network, in place of training", path=True
        ),
        "lr": Key(0.001, "learning rate of source training (peak, if scheduled)", above=0),
        "adversary_lr": Key(0.0002, "learning rate of adversarial training (peak, if scheduled)", above=0),
        "mapping_weight": Key(1.0, "weight of the target network's adversarial loss", low=0),
        "mapping_rows": Key(
            "target",
            "target: the adversarial loss is the mean over target images; both: over source and target "
            "images, as the authors have it, with half of that gradient",
            choices=("target", "both"),
        ),
        "class_weight": Key(
            0.0, "weight of the class loss on source images that the target network keeps", low=0
        ),
        "entropy_weight": Key(0.0, "weight (times λ) of the entropy of the target predictions", low=0),
        "consistency_weight": Key(
            0.0,
            "weight (times λ) of the loss of augmented target images against confident predictions",
            low=0,
        ),
        "consistency_augment": Key(
            "affine", "augmentation of the target images in that loss", choices=augment.CHOICES[1:]
        ),
        "confidence": Key(0.9, "probability from which a prediction counts as confident", low=0, below=1),
        "gamma": Key(10.0, "how fast λ(p) = 2/(1+exp(-gamma·p)) - 1 grows over adversarial training", low=0),
    }
    ON_IMAGES = ("consistency_weight",)
    # Names that users of the published code know, and the keys they stand for.
    ALIASES = {
        "dataset": "source_dataset_name",
        "output": "output_dir",
        "display": "log_interval",
        "snapshot": "save_checkpoint_steps",
        "model": "network",
        "solver": Alias("optimizer", {"adam": "adam", "sgd": "momentum"}),
    }

    def plan(self):
        """Source training, discriminator alone, adaptation; phases are counted in iterations."""
        config, task = self.config, self.task
        source = task.labelled(self.preparation, self.loaded_batch, joined=True)
        both = {**source, **task.unlabelled(self.preparation, self.loaded_batch)}
        self.held_out = task.held_out(self.preparation)
        epoch = config.steps_per_epoch
        self.phases = [
            Phase(SOURCE, 0 if config.source_ckpt_file else config.iterations, epoch, source),
            Phase(WARM_UP, config.discriminator_iterations, epoch, both),
            Phase(ADAPT, config.adversary_iterations, epoch, both),
        ]
        if not sum(phase.steps for phase in self.phases):
            raise UserError("iterations, adversary_iterations: nothing to train; give one of them")
        self.domains = ms.Tensor(np.repeat([0, 1], config.batch_size), ms.int32)

    def prepare(self):
        """Frozen source network, discriminator, and three optimizers: new ones for adaptation."""
        config, network = self.config, self.trained
        if config.source_ckpt_file and not config.resume:
            self._load_source()
        frozen = self.add_part("source_network", self.new_network())
        for weight in frozen.get_parameters():
            weight.requires_grad = False
        discriminator = self.add_part("discriminator", Discriminator(len(self.task.classes)))
        fresh = {"beta1": ADVERSARIAL_BETA1, "weight_decay": 0.0}
        source = self.network_optimizers(SOURCE, config.lr)
        adapt = self.network_optimizers(ADAPT, config.adversary_lr, **fresh)
        of_discriminator = {
            WARM_UP: self.new_optimizer(WARM_UP, self.weights("discriminator"), config.adversary_lr, **fresh)
        }
        self.add_update(SOURCE, PretrainLoss(network), source)
        self.add_update(WARM_UP, WarmUpLoss(network, frozen, discriminator), of_discriminator)
        weights = {
            "class": config.class_weight,
            "entropy": config.entropy_weight,
            "consistency": config.consistency_weight,
        }
        use = [name for name, weight in weights.items() if weight > 0]
        # Without batch normalisation one pass gives the same as several, in less time.
        joint = config.batch_norm == "joint" or not has_batch_norm(network)
        if config.mapping_rows == "both":
            use.append("source rows")
        loss = AdaptLoss((network, frozen, discriminator), joint, use, config.confidence)
        self.add_update(ADAPT, loss, {**adapt, **of_discriminator})
        self._evaluate = jit(self._validation_logits, config)

    def _load_source(self):
        """The network of `source_ckpt_file`, whose classes must be those of the data."""
        key = "source_ckpt_file"
        path, meta = checkpoint.load_network(self.whole, self.config.source_ckpt_file)
        names = checkpoint.class_names(meta, path)
        check_same_classes(names, self.task.classes, path, key, "give the source that it was trained on")
        copy_weights(self.network, self.trained)

    def begin_phase(self, phase):
        """Before the first step after source training, fill the frozen source network.

        A run that resumes later than that has it from its checkpoint.
        """
        self.parts["source_network"].set_train(False)
        if phase.name == WARM_UP:  # the discriminator learns alone: the target network's statistics rest, too
            self.trained.set_train(False)
        first = next((later for later in self.phases[1:] if later.steps), None)
        if phase is first and phase.step == 0:
            # Each rank has gathered running statistics of its own, and what is frozen keeps them for good.
            broadcast_parameters([self.network], self.device, statistics_only=True)
            copy_weights(self.network, self.parts["source_network"])
            copy_weights(self.network, self.trained)  # with ema_decay a network of its own
            log.info("source network copied and frozen; test accuracies up to here are of source only")

    def train_step(self, phase, batch):
        """One update; returns the scalars of the log and of the curves."""
        rate = self._set_learning_rates(phase)
        update = self.updates[phase.name]
        if phase.name == SOURCE:
            loss, (accuracy,), more = self.run(update, phase, batch, self._source_inputs(phase))
            return {"loss": loss, "class_accuracy": accuracy, "lr": rate, **more}
        if phase.name == WARM_UP:
            loss, (accuracy,), more = self.run(update, phase, batch, self._warm_up_inputs)
            return {"loss": loss, "domain_accuracy": accuracy, "lr": rate, **more}
        strength = reversal_strength(phase.step / phase.steps, self.config.gamma)
        total, terms, more = self.run(update, phase, batch, self._adapt_inputs(phase, strength))
        return {"loss": total, **dict(zip(TERMS, terms, strict=True)), "lambda": strength, "lr": rate, **more}

    def _source_inputs(self, phase):
        def inputs(part, number):
            images, labels = part["source"]
            masks = self.masks(len(labels), "dropout source", *self.counters(phase, number))
            return [ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels), *masks]

        return inputs

    def _warm_up_inputs(self, part, number):
        source, target = (ms.Tensor.from_numpy(part[side][0]) for side in held_out.SIDES)
        return [source, target, self.domains]

    def _adapt_inputs(self, phase, strength):
        config = self.config
        ramped = (config.entropy_weight * strength, config.consistency_weight * strength)
        weights = ms.Tensor((config.mapping_weight, config.class_weight, *ramped), ms.float32)

        def inputs(part, number):
            (source, labels), (images, _) = (part[side] for side in held_out.SIDES)
            source, labels = ms.Tensor.from_numpy(source), ms.Tensor.from_numpy(labels)
            strong = target = ms.Tensor.from_numpy(images)
            if config.consistency_weight > 0:
                rng = noise.generator(config.seed, "consistency", *self.counters(phase, number))
                function = augment.build(config.consistency_augment)
                strong = ms.Tensor.from_numpy(self.augmented(function, images, rng))
            return [source, labels, target, strong, self.domains, weights]

        return inputs

    def _set_learning_rates(self, phase):
        config = self.config
        rate = config.lr if phase.name == SOURCE else config.adversary_lr
        if phase.name != WARM_UP:
            rate *= self.factor(phase)
        self.set_learning_rates(self.updates[phase.name], rate)
        return rate

    # Validation: source classes and domains on held-out training images; never a target label.

    def _validation_logits(self, images):
        logits = self.network(images)
        frozen = ops.cast(self.parts["source_network"](images), ms.float32)
        discriminator = self.parts["discriminator"]
        return logits, discriminator(frozen), discriminator(logits)

    def validate(self, phase):
        """Class figures on held-out source images; from the second phase on, domain figures on both."""

        def forward(images, side):
            logits, of_source, of_target = self._evaluate(images)
            return logits, of_source if side == "source" else of_target

        with evaluating(self.network, *self.parts.values()):
            return held_out.figures(forward, self.held_out, phase.name != SOURCE)
