"""DANN: domain-adversarial training of neural networks (Ganin & Lempitsky 2015, arXiv 1409.7495).

Three phases: pre-training on the source, adversarial training, and, if asked for, self-training on the target
(src/train_cells/_dann_refine.py). Options of later papers are off by default; src/train_cells/_dann_keys.py
lists them.
"""

import mindspore as ms
import numpy as np

from model_utils import noise
from model_utils.device import gradient_reducer, jit
from model_utils.errors import UserError
from src.data import pairs
from src.losses.virtual_adversarial import VirtualAdversary, add_scaled
from src.networks.dann import DANN, FEATURE_MAP, FEATURES, HIDDEN, DomainClassifier
from src.ops import accelerate
from src.train_cells import Phase, TrainCell, _dann_keys, _dann_refine
from src.train_cells._dann_losses import AdversarialLoss, Conditioning, DiscriminatorLoss, PretrainLoss
from src.train_cells._dann_validation import Validation
from src.training.optim import adam, set_learning_rate
from src.training.schedules import reversal_strength, schedule

KEYS = _dann_keys.KEYS


def build_network(config):
    """Image -> logits network, untrained: float32 (N, 3, 28, 28) in [0, 1] -> (N, 10)."""
    return DANN(config.input_norm)


def published_parts(network, config):
    """{configuration key: (cell, file given)} of the two-file checkpoints of earlier releases."""
    return {
        "backbone_ckpt_file": (network.backbone, config.backbone_ckpt_file),
        "classifier_ckpt_file": (network.class_classifier, config.classifier_ckpt_file),
    }


def test_sets(config, device):
    """{"source": loader, "target": loader} over the test splits."""
    return pairs.test_sets(config, device)


def build(config, device):
    """The train cell of a run."""
    return DannTrainCell(config, device)


class DannTrainCell(TrainCell):
    """Pre-training on the source, adversarial training on both domains, self-training on both."""

    def __init__(self, config, device):
        if config.batch_size < 2:
            raise UserError(
                "batch_size: batch normalisation needs at least 2 images in training; choose a larger one"
            )
        if config.conditional and config.adversary != "reversal":
            raise UserError("conditional: needs adversary reversal; set one of the two otherwise")
        self.config, self.device = config, device
        loaders, self.held_out = pairs.train_loaders(config, device)
        self._plan(loaders)
        self.network = build_network(config)
        self.domain_classifier = DomainClassifier()
        accelerate(self.network)
        accelerate(self.domain_classifier)
        self.parts = {
            "backbone": self.network.backbone,
            "class_classifier": self.network.class_classifier,
            "domain_classifier": self.domain_classifier,
        }
        # Its own cell, not a child of the network: without a prefix its names would collide with others.
        self.domain_classifier.update_parameters_name("domain_classifier.")
        self.optimizers = {
            name: adam(f"adam_{name}", part.trainable_params(), config.lr, config.weight_decay)
            for name, part in self.parts.items()
        }
        self.reducers = {
            name: gradient_reducer(optimizer.parameters, device)
            for name, optimizer in self.optimizers.items()
        }
        self._compile()
        self.refinement = None
        if config.n_refine_epochs:
            self.refinement = _dann_refine.Refinement(
                self.network, build_network(config), config, device, self._masks
            )

    def _plan(self, loaders):
        config = self.config
        epoch = config.steps_per_epoch or min(loader.steps_per_epoch for loader in loaders.values())
        self.phases = [
            Phase("pretrain", config.n_pretrain_epochs * epoch, epoch, {"source": loaders["source"]}),
            Phase("adapt", config.n_epoch * epoch, epoch, loaders),
        ]
        if config.n_refine_epochs:
            self.phases.append(Phase("refine", config.n_refine_epochs * epoch, epoch, loaders))
        half = config.batch_size
        self.domains = ms.Tensor(np.repeat([0, 1], half), ms.int32)

    def _compile(self):
        config, joint = self.config, self.config.joint_batch
        parts = self.parts
        generator_weights = self._weights("backbone", "class_classifier")
        self.pretrain_grad = ms.value_and_grad(
            PretrainLoss(self.network), None, generator_weights, has_aux=True
        )
        use_entropy = config.entropy_weight > 0
        self.reversal = config.adversary == "reversal"
        self.conditioning = Conditioning(config.seed, FEATURES) if config.conditional else None
        loss = AdversarialLoss(
            self.network, self.domain_classifier, joint, use_entropy, not self.reversal, self.conditioning
        )
        trained = (
            generator_weights + self._weights("domain_classifier") if self.reversal else generator_weights
        )
        self.adversarial_grad = ms.value_and_grad(loss, None, trained, has_aux=True)
        self.discriminator_grad = ms.value_and_grad(
            DiscriminatorLoss(self.network, self.domain_classifier, joint),
            None,
            self._weights("domain_classifier"),
            has_aux=True,
        )
        self.smoothness = None
        if config.vat_weight > 0:
            self.smoothness = VirtualAdversary(self.network, generator_weights, config.vat_radius)
        self.sizes = {name: len(part.trainable_params()) for name, part in parts.items()}
        self._pretrain = jit(self._pretrain_update, config)
        self._adversarial = jit(self._adversarial_update, config)
        self._discriminate = jit(self._discriminator_update, config)
        self.validation = Validation(self.network, self.domain_classifier, self.conditioning, config)

    def _weights(self, *names):
        return ms.ParameterTuple([p for name in names for p in self.parts[name].trainable_params()])

    # Jitted updates. Each returns scalars only.

    def _apply_generator(self, gradients):
        split = self.sizes["backbone"]
        self.optimizers["backbone"](self.reducers["backbone"](gradients[:split]))
        self.optimizers["class_classifier"](self.reducers["class_classifier"](gradients[split:]))

    def _apply_discriminator(self, gradients):
        self.optimizers["domain_classifier"](self.reducers["domain_classifier"](gradients))

    def _pretrain_update(self, images, labels, keep_map, keep_hidden):
        (loss, class_accuracy), gradients = self.pretrain_grad(images, labels, keep_map, keep_hidden)
        self._apply_generator(gradients)
        return loss, class_accuracy

    def _smooth(self, total, scalars, gradients, images, start, weight):
        """Add virtual adversarial training on the target rows, unless its random `start` is None."""
        if start is None:
            return total, scalars, gradients
        cost, added = self.smoothness.loss_and_gradients(images[start.shape[0] :], start)
        return total + weight * cost, (*scalars, cost), add_scaled(gradients, weight, added)

    def _adversarial_update(
        self, images, labels, domains, keep_map, keep_hidden, reverse, weights, start, smooth
    ):
        """Of the generator; with the reversal layer the discriminator's gradients come along."""
        (total, scalars), gradients = self.adversarial_grad(
            images, labels, domains, keep_map, keep_hidden, reverse, weights
        )
        count = self.sizes["backbone"] + self.sizes["class_classifier"]
        total, scalars, of_generator = self._smooth(total, scalars, gradients[:count], images, start, smooth)
        self._apply_generator(of_generator)
        if self.reversal:
            self._apply_discriminator(gradients[count:])
        return total, scalars

    def _discriminator_update(self, images, domains, keep_map):
        (loss, domain_accuracy), gradients = self.discriminator_grad(images, domains, keep_map)
        self._apply_discriminator(gradients)
        return loss, domain_accuracy

    # What the loop calls.

    def start_phase(self, phase):
        """Hand the network over to self-training when that begins."""
        if phase.name == "refine":
            self.refinement.start(phase)

    def train_step(self, phase, batch):
        """One update; returns the scalars of `log_line` and of the curves."""
        if phase.name == "refine":
            return self.refinement.step(phase, batch)
        rates = self._set_learning_rates(phase)
        if phase.name == "pretrain":
            return {**self._pretrain_step(phase, batch), **rates}
        progress = phase.step / max(1, phase.steps)
        strength = self.config.lambda_max * reversal_strength(progress, self.config.gamma)
        return {**self._adapt_step(phase, batch, strength), **rates, "lambda": strength}

    def _set_learning_rates(self, phase):
        config = self.config
        factor = schedule(config.lr_schedule, phase.step, phase.steps)
        backbone = config.lr_backbone_s if phase.name == "adapt" else config.lr
        rates = {"backbone": backbone, "class_classifier": config.lr, "domain_classifier": config.lr}
        for name, rate in rates.items():
            set_learning_rate(self.optimizers[name], rate * factor)
        return {"lr": config.lr * factor, "lr_backbone": backbone * factor}

    def _masks(self, phase, rows, drop=None):
        """Dropout masks of the step: of the backbone's feature map, and of the classifier's hidden layer."""
        drop = self.config.dropout if drop is None else drop
        rng = noise.generator(self.config.seed, f"dropout {phase.name}", phase.step, self.device.rank)
        channel = self.config.dropout_kind == "channel"
        shapes = ((rows, FEATURE_MAP[0], 1, 1) if channel else (rows, *FEATURE_MAP), (rows, HIDDEN))
        return [ms.Tensor.from_numpy(noise.keep_mask(rng, shape, drop)) for shape in shapes]

    def _pretrain_step(self, phase, batch):
        images, labels = batch["source"]
        tensors = ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels)
        loss, class_accuracy = self._pretrain(*tensors, *self._masks(phase, len(labels)))
        return {"loss": loss, "class_loss": loss, "class_accuracy": class_accuracy}

    def _adapt_step(self, phase, batch, strength):
        (source, labels), (target, _) = batch["source"], batch["target"]
        images = ms.Tensor.from_numpy(np.concatenate((source, target)))
        labels = ms.Tensor.from_numpy(labels)
        keep_map, keep_hidden = self._masks(phase, len(images))
        entropy = self.config.entropy_weight * strength
        arguments = (images, labels, self.domains, keep_map, keep_hidden)
        probe = self._probe(phase, target.shape, strength)
        if self.reversal:
            weights = ms.Tensor([1.0, entropy], ms.float32)
            reverse = ms.Tensor(strength, ms.float32)
            total, scalars = self._adversarial(*arguments, reverse, weights, *probe)
        else:
            discriminator_loss, domain_accuracy = self._discriminate(images, self.domains, keep_map)
            # The generator's own (inverted) domain loss is weighted here; nothing is reversed.
            weights = ms.Tensor([strength, entropy], ms.float32)
            total, scalars = self._adversarial(*arguments, ms.Tensor(-1.0, ms.float32), weights, *probe)
            scalars = (scalars[0], discriminator_loss, *scalars[2:4], domain_accuracy, *scalars[5:])
        names = ("class_loss", "domain_loss", "entropy", "class_accuracy", "domain_accuracy", "smoothness")
        return {"loss": total, **dict(zip(names[: len(scalars)], scalars, strict=True))}

    def _probe(self, phase, shape, strength):
        """(random start, weight) of virtual adversarial training; (None, None) if that is off.

        Two arguments of the compiled step: a tuple would be a constant to the graph compiler, and every
        step would compile anew.
        """
        if self.smoothness is None:
            return None, None
        rng = noise.generator(
            self.config.seed, f"virtual adversary {phase.name}", phase.step, self.device.rank
        )
        start = rng.standard_normal(shape, np.float32)
        return ms.Tensor.from_numpy(start), ms.Tensor(self.config.vat_weight * strength, ms.float32)

    def state(self):
        """Networks and optimizers by name."""
        optimizers = {f"optimizer_{name}": optimizer for name, optimizer in self.optimizers.items()}
        refinement = self.refinement.state() if self.refinement else {}
        return {
            "network": self.network,
            "domain_classifier": self.domain_classifier,
            **optimizers,
            **refinement,
        }

    def published_files(self):
        """The two files that earlier users of this model know."""
        return {
            "best_backbone_t.ckpt": self.network.backbone,
            "best_class_classifier.ckpt": self.network.class_classifier,
        }

    def features(self, images):
        """(N, 3, 28, 28) -> backbone features (N, 800)."""
        return self.network.backbone(images)

    def validate(self, phase):
        """Class loss and accuracy on held-out source images, domain loss and accuracy on both domains."""
        return self.validation.figures(self.held_out, with_domains=phase.name == "adapt")

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
