"""DANN: domain-adversarial training of neural networks (Ganin & Lempitsky 2015, arXiv 1409.7495).

Three phases: pre-training on the source, adversarial training, and, if asked for, self-training on the
    target: after DIRT-T (Shu et al. 2018, arXiv 1802.08735: refinement without the adversary),
    self-ensembling (French et al. 2018, arXiv 1706.05208: averaged teacher that normalises by target batches,
    confidence threshold) and FixMatch (Sohn et al. 2020, arXiv 2001.07685: the teacher sees the image as it
    is, the student a strong augmentation). Options of later papers are off by default.
"""

import mindspore as ms
import numpy as np

from model_utils import noise
from model_utils.device import broadcast_parameters, jit
from model_utils.errors import UserError
from model_utils.key import FALSE, TRUE, Alias, Key
from src.data import augment
from src.evaluation import held_out
from src.evaluation.evaluate import evaluating
from src.losses.adversarial import AdversarialLoss, Conditioning, DiscriminatorLoss, PretrainLoss
from src.losses.consistency import KINDS, ClassThresholds
from src.losses.self_training import StudentLoss
from src.losses.virtual_adversarial import VirtualAdversary
from src.networks.heads import DomainHead
from src.training import trainer
from src.training.averaging import Average, Trainable
from src.training.contract import Phase
from src.training.optim import copy_weights, set_learning_rate
from src.training.schedules import reversal_strength

# The averaged teacher starts from a trained network, so its average need not be short at first (Average).
STEPS_BEFORE = 1000


class Method(trainer.Trainer):
    """Pre-training on the source, adversarial training on both domains, self-training on both."""

    DEFAULTS = {
        "network": "dann",
        "source_dataset_name": "mnist",
        "source_image_root": "data/mnist",
        "target_dataset_name": "mnist_m",
        "target_image_root": "data/mnist_m",
        "validation_size": 1000,
        "batch_norm": "per_domain",
        "weight_decay_on": "all",
        "lr_schedule": "one_cycle",
    }
    KEYS = {
        "batch_size": Key(64, "images per domain, step and process; export.py: fixed batch size", low=1),
        "n_pretrain_epochs": Key(0, "epochs of source-only training", low=0),
        "n_epoch": Key(20, "epochs of adversarial training", low=0),
        "steps_per_epoch": Key(0, "steps in an epoch; 0: as many as the smaller domain fills", low=0),
        "lr": Key(
            0.001, "learning rate of pre-training, and of both classifiers (peak, if scheduled)", above=0
        ),
        "lr_backbone_s": Key(0.002, "learning rate of the backbone in adversarial training (peak)", above=0),
        "adversary": Key(
            "reversal",
            "reversal: one step through a gradient reversal layer; alternate: discriminator and backbone in "
            "turn",
            choices=("reversal", "alternate"),
        ),
        "gamma": Key(
            10.0, "how fast λ(p) = lambda_max·(2/(1+exp(-gamma·p)) - 1) grows over the phase", low=0
        ),
        "lambda_max": Key(1.0, "what λ grows towards: the adversary's weight in the backbone", low=0),
        "entropy_weight": Key(0.0, "weight (times λ) of the entropy of the target predictions", low=0),
        "conditional": Key(
            False,
            "the discriminator sees features joined with class predictions (CDAN); adversary reversal only",
        ),
        "vat_weight": Key(
            0.0,
            "weight (times λ) of virtual adversarial training on the target, in adversarial training",
            low=0,
        ),
        "vat_radius": Key(1.0, "length of its moves: Euclidean, in units of the network's input", above=0),
        "n_refine_epochs": Key(0, "epochs of self-training on the target after adversarial training", low=0),
        "lr_refine": Key(0.003, "learning rate of self-training (peak, if scheduled)", above=0),
        "refine_dropout": Key(0.2, "dropout probability of the student in self-training", low=0, below=1),
        "strong_augment": Key("none", "augmentation of the student's target images", choices=augment.STRONG),
        "teacher_decay": Key(0.99, "the teacher keeps this share of itself in a step", above=0, below=1),
        "pseudo_kind": Key(
            "hard",
            "the student learns the teacher's class, its distribution, or that by squared distance",
            choices=KINDS,
        ),
        "pseudo_weight": Key(1.0, "weight of the pseudo-labels beside the source's labels", low=0),
        "pseudo_threshold": Key(0.9, "the teacher's least probability for a pseudo-label", above=0, high=1),
        "pseudo_portion": Key(
            0.0,
            "share of each class's pseudo-labels to use (class-balanced thresholds); 0: pseudo_threshold for "
            "all",
            low=0,
            below=1,
        ),
        "backbone_ckpt_file": Key(
            "", "eval.py: checkpoint of the backbone (best_backbone_t.ckpt)", path=True
        ),
        "classifier_ckpt_file": Key(
            "", "eval.py: checkpoint of the classifier (best_class_classifier.ckpt)", path=True
        ),
    }
    ON_IMAGES = ("strong_augment", "vat_weight")
    ALIASES = {
        "joint_batch": Alias(
            "batch_norm",
            {**dict.fromkeys(TRUE, "joint"), **dict.fromkeys(FALSE, "per_domain")},
        )
    }

    PUBLISHED_PARTS = {
        "backbone_ckpt_file": "best_backbone_t.ckpt",
        "classifier_ckpt_file": "best_class_classifier.ckpt",
    }

    @staticmethod
    def published_parts(network, config):
        """{configuration key: (cell, file given)} of the two-file checkpoints of earlier releases."""
        return {
            "backbone_ckpt_file": (network.backbone, config.backbone_ckpt_file),
            "classifier_ckpt_file": (network.head, config.classifier_ckpt_file),
        }

    def plan(self):
        """Source-only pre-training, adversarial training, self-training: the phases that have epochs."""
        config, task = self.config, self.task
        if config.conditional and config.adversary != "reversal":
            raise UserError("conditional: needs adversary reversal; set one of the two otherwise")
        loaders = task.labelled(self.preparation, self.loaded_batch, joined=True)
        loaders |= task.unlabelled(self.preparation, self.loaded_batch)
        self.held_out = task.held_out(self.preparation)
        epoch = config.steps_per_epoch or min(loader.steps_per_epoch for loader in loaders.values())
        self.phases = [
            Phase("pretrain", config.n_pretrain_epochs * epoch, epoch, {"source": loaders["source"]}),
            Phase("adapt", config.n_epoch * epoch, epoch, loaders),
        ]
        if config.n_refine_epochs:
            self.phases.append(Phase("refine", config.n_refine_epochs * epoch, epoch, loaders))
        self.domains = ms.Tensor(np.repeat([0, 1], config.batch_size), ms.int32)

    def prepare(self):
        """Domain classifier, three optimizers, and the updates of the phases."""
        config, network = self.config, self.trained
        domain_classifier = self.add_part("domain_classifier", DomainHead(network.feature_size))
        self.optimizers = {
            name: self.new_optimizer(name, self.weights(part), config.lr)
            for name, part in (
                ("backbone", "backbone"),
                ("class_classifier", "head"),
                ("domain_classifier", "domain_classifier"),
            )
        }
        discriminator = {"domain_classifier": self.optimizers["domain_classifier"]}
        generator = {name: self.optimizers[name] for name in ("backbone", "class_classifier")}
        joint, self.reversal = config.batch_norm == "joint", config.adversary == "reversal"
        self.conditioning = None
        if config.conditional:
            self.conditioning = Conditioning(config.seed, network.feature_size, len(self.task.classes))
        self.add_update("pretrain", PretrainLoss(network), generator)
        loss = AdversarialLoss(
            network,
            domain_classifier,
            joint,
            config.entropy_weight > 0,
            not self.reversal,
            self.conditioning,
        )
        self.smoothness = None
        if config.vat_weight > 0:
            weights = ms.ParameterTuple([*self.weights("backbone"), *self.weights("head")])
            self.smoothness = VirtualAdversary(network, weights, config.vat_radius)
        self.add_update(
            "adapt", loss, {**generator, **discriminator} if self.reversal else generator, self.smoothness
        )
        if not self.reversal:
            loss = DiscriminatorLoss(network, domain_classifier, joint)
            self.add_update("discriminate", loss, discriminator)
        self._validated = jit(self._validation_logits, config)
        if config.n_refine_epochs:
            self._prepare_refinement()

    def _prepare_refinement(self):
        config = self.config
        student = self.new_network(dropout=config.refine_dropout)
        self.student = self.add_part("student", student)
        self.strong = augment.build(config.strong_augment)
        thresholds = None
        if config.pseudo_portion > 0:
            classes = len(self.task.classes)
            thresholds = ClassThresholds(classes, config.pseudo_portion, config.pseudo_threshold)
            thresholds.update_parameters_name("thresholds.")
            self.parts["thresholds"] = thresholds
        copy_weights(self.network, student)
        self.teaching = Average(Trainable(student), Trainable(self.network), config.teacher_decay, config)
        loss = StudentLoss(
            student,
            self.network,
            config.pseudo_weight,
            config.pseudo_kind,
            config.pseudo_threshold,
            thresholds,
        )
        self.add_update("refine", loss, self.network_optimizers("student", config.lr_refine, student))

    def begin_phase(self, phase):
        """The network of adversarial training becomes the teacher; the student starts as its copy."""
        if phase.name == "refine":
            self.freeze_statistics(self.student)
            self.freeze_statistics(self.network)
            self.averages.clear()  # from here on `network` follows the student, not `trained`
            if phase.step == 0:
                copy_weights(self.network, self.student)

    def train_step(self, phase, batch):
        """One update; returns the scalars of `log_line` and of the curves."""
        if phase.name == "refine":
            return self._refine_step(phase, batch)
        rates = self._set_learning_rates(phase)
        if phase.name == "pretrain":
            return {**self._pretrain_step(phase, batch), **rates}
        progress = phase.step / max(1, phase.steps)
        strength = self.config.lambda_max * reversal_strength(progress, self.config.gamma)
        return {**self._adapt_step(phase, batch, strength), **rates, "lambda": strength}

    def _set_learning_rates(self, phase):
        config, factor = self.config, self.factor(phase)
        backbone = config.lr_backbone_s if phase.name == "adapt" else config.lr
        backbone *= config.backbone_lr_factor
        for name, optimizer in self.optimizers.items():
            if optimizer is not None:
                set_learning_rate(optimizer, (backbone if name == "backbone" else config.lr) * factor)
        return {"lr": config.lr * factor, "lr_backbone": backbone * factor}

    def _pretrain_step(self, phase, batch):
        def inputs(part, number):
            images, labels = part["source"]
            masks = self.masks(len(labels), "dropout pretrain", *self.counters(phase, number))
            return [ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels), *masks]

        loss, (accuracy,), more = self.run(self.updates["pretrain"], phase, batch, inputs)
        return {"loss": loss, "class_loss": loss, "class_accuracy": accuracy, **more}

    def _adapt_step(self, phase, batch, strength):
        entropy = ms.Tensor([1.0, self.config.entropy_weight * strength], ms.float32)
        reverse = ms.Tensor(strength, ms.float32)
        if not self.reversal:
            # The generator's own (inverted) domain loss is weighted here; nothing is reversed.
            entropy = ms.Tensor([strength, self.config.entropy_weight * strength], ms.float32)
            reverse = ms.Tensor(-1.0, ms.float32)
        common = {}

        def shared(part, number):
            """Images of both domains, and masks: the same for discriminator and generator."""
            if number not in common:
                images = np.concatenate((part["source"][0], part["target"][0]))
                masks = self.masks(len(images), "dropout adapt", *self.counters(phase, number))
                common[number] = ms.Tensor.from_numpy(images), masks
            return common[number]

        def of_discriminator(part, number):
            images, masks = shared(part, number)
            return [images, self.domains, *masks[: self.trained.split]]

        def of_generator(part, number):
            images, masks = shared(part, number)
            labels = ms.Tensor.from_numpy(part["source"][1])
            probe = self._probe(phase, part["target"][0], strength, number)
            return [images, labels, self.domains, reverse, entropy, *masks, *probe]

        if not self.reversal:
            update = self.updates["discriminate"]
            discriminator = self.run(update, phase, batch, of_discriminator, goes_on=True)
        total, scalars, more = self.run(self.updates["adapt"], phase, batch, of_generator)
        if not self.reversal:
            scalars = (scalars[0], discriminator[0], *scalars[2:4], *discriminator[1], *scalars[5:])
        names = ("class_loss", "domain_loss", "entropy", "class_accuracy", "domain_accuracy", "smoothness")
        return {"loss": total, **dict(zip(names[: len(scalars)], scalars, strict=True)), **more}

    def _probe(self, phase, target, strength, number):
        """[target images, random start, weight] of virtual adversarial training; [] if that is off."""
        if self.smoothness is None:
            return []
        counters = self.counters(phase, number)
        rng = noise.generator(self.config.seed, f"virtual adversary {phase.name}", *counters)
        start = rng.standard_normal(target.shape, np.float32)
        weight = ms.Tensor(self.config.vat_weight * strength, ms.float32)
        return [ms.Tensor.from_numpy(target), ms.Tensor.from_numpy(start), weight]

    def _refine_step(self, phase, batch):
        rate = self.config.lr_refine * self.factor(phase)
        self.set_learning_rates(self.updates["refine"], rate)

        def inputs(part, number):
            (source, labels), (seen, _) = part["source"], part["target"]
            counters = self.counters(phase, number)
            rng = noise.generator(self.config.seed, "strong", *counters)
            target = self.augmented(self.strong, seen, rng)
            tensors = [ms.Tensor.from_numpy(array) for array in (source, labels, target, seen)]
            return [*tensors, *self.masks(2 * len(labels), "dropout refine", *counters, network=self.student)]

        total, scalars, more = self.run(self.updates["refine"], phase, batch, inputs)
        self.teaching.update(phase.step + STEPS_BEFORE)
        if "thresholds" in self.parts:
            # Each rank has moved them by its own images, and a checkpoint holds those of rank 0.
            broadcast_parameters([self.parts["thresholds"]], self.device)
        names = ("class_loss", "pseudo_loss", "pseudo_share", "class_accuracy")
        return {"loss": total, **dict(zip(names, scalars, strict=True)), "lr": rate, **more}

    # Validation, files and lines.

    def _validation_logits(self, images):
        features = self.network.features(images)
        logits = self.network.classify(features)
        seen = features if self.conditioning is None else self.conditioning(features, logits)
        return logits, self.parts["domain_classifier"](seen)

    def validate(self, phase):
        """Class loss and accuracy on held-out source images, domain loss and accuracy on both domains."""
        with evaluating(self.network, self.parts["domain_classifier"]):
            return held_out.figures(
                lambda images, side: self._validated(images), self.held_out, phase.name == "adapt"
            )

    def published_files(self):
        """The two files that earlier users of this model know; none where a bottleneck would be missing."""
        if self.whole.neck is not None:
            return {}
        return {
            "best_backbone_t.ckpt": self.whole.backbone,
            "best_class_classifier.ckpt": self.whole.head,
        }

    def log_line(self, phase, values):
        """The line users of the published model grep; docs/architecture.md says what each term is."""
        if phase.name == "pretrain":
            return super().log_line(phase, {"err_class": values["class_loss"]})
        if phase.name == "refine":
            shown = {"err_class": values["class_loss"], "err_pseudo": values["pseudo_loss"]}
            return super().log_line(phase, {**shown, "pseudo_share": values["pseudo_share"]})
        epoch, step = divmod(phase.step, phase.steps_per_epoch)
        domain, rest = values["domain_loss"], values["class_loss"] + values["entropy"]
        return (
            f"epoch: {epoch}, [iter: {step + 1} / all {phase.steps_per_epoch}],  "
            f"err_D_domain: {domain:.6f}, err_G_domain: {rest:.6f},err_sum:{domain + rest:.6f}"
        )
