"""DANN: domain-adversarial training of neural networks (Ganin & Lempitsky 2015, arXiv 1409.7495)."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils.config import Key
from model_utils.device import gradient_reducer, jit
from model_utils.errors import UserError
from src import noise
from src.data import pairs
from src.evaluate import evaluating
from src.losses import GradientReversal, accuracy, cross_entropy, prediction_entropy
from src.networks.dann import DANN, FEATURE_MAP, HIDDEN, DomainClassifier
from src.ops import accelerate
from src.optim import adam, set_learning_rate
from src.schedules import ONE_CYCLE, reversal_strength, schedule
from src.train_cells import Phase, TrainCell

KEYS = {
    **pairs.keys("mnist", "data/mnist", "mnist_m", "data/mnist_m"),
    "batch_size": Key(64, "images per domain, step and process; export.py: fixed batch size", low=1),
    "n_pretrain_epochs": Key(100, "epochs of source-only training", low=0),
    "n_epoch": Key(100, "epochs of adversarial training", low=0),
    "steps_per_epoch": Key(0, "steps in an epoch; 0: as many as the smaller domain fills", low=0),
    "lr": Key(0.001, "learning rate of pre-training, and of both classifiers (peak, if scheduled)", above=0),
    "lr_backbone_s": Key(0.002, "learning rate of the backbone in adversarial training (peak)", above=0),
    "lr_schedule": Key("constant", "learning rate over a phase", choices=("constant", ONE_CYCLE)),
    "weight_decay": Key(1e-5, "L2 penalty of all weights", low=0, below=1),
    "dropout": Key(0.5, "dropout probability in backbone and class classifier", low=0, below=1),
    "dropout_kind": Key(
        "element",
        "what the backbone's dropout drops: single elements, or whole channels (Tompson et al. 2015)",
        choices=("element", "channel"),
    ),
    "adversary": Key(
        "reversal",
        "reversal: one step through a gradient reversal layer; alternate: discriminator and backbone in turn",
        choices=("reversal", "alternate"),
    ),
    "gamma": Key(10.0, "how fast λ(p) = lambda_max·(2/(1+exp(-gamma·p)) - 1) grows over the phase", low=0),
    "lambda_max": Key(1.0, "what λ grows towards: the adversary's weight in the backbone", low=0),
    "input_norm": Key(
        "none",
        "instance: each image to mean 0 and deviation 1 per channel; none: only [0, 1] to [-1, 1]",
        choices=("none", "instance"),
    ),
    "joint_batch": Key(False, "batch normalisation over source and target together, not each for itself"),
    "entropy_weight": Key(0.0, "weight (times λ) of the entropy of the target predictions", low=0),
    "backbone_ckpt_file": Key("", "eval.py: checkpoint of the backbone (best_backbone_t.ckpt)"),
    "classifier_ckpt_file": Key("", "eval.py: checkpoint of the classifier (best_class_classifier.ckpt)"),
}


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


class PretrainLoss(nn.Cell):
    """Source-only training: cross-entropy of the class logits (nats, mean over the batch)."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.backbone, self.classifier = network.backbone, network.class_classifier

    def construct(self, images, labels, keep_map, keep_hidden):
        logits = self.classifier(self.backbone(images, keep_map), keep_hidden)
        return cross_entropy(logits, labels), accuracy(logits, labels)


def both_features(backbone, images, keep_map, half, joint):
    """Features of `half` source rows, then of the target rows; with `joint`, from one batch."""
    if joint:
        return backbone(images, keep_map)
    source = backbone(images[:half], keep_map[:half])
    return ops.concat((source, backbone(images[half:], keep_map[half:])))


class AdversarialLoss(nn.Cell):
    """Class loss, domain loss and target entropy of one source and one target batch.

    Inputs: images (2N, 3, 28, 28), source rows first; labels (N,); dropout masks for the 2N rows;
    `reverse`, the scalar Tensor that the domain loss's gradient is multiplied by (negated) on its way into
    the backbone; `weights` (2,), the factors of the domain loss and of the target entropy in the total.
    With `fool` the domain labels are inverted: the generator's loss of the alternating adversary.

    Returns the total and (class loss, domain loss source + target, entropy, class and domain accuracy).
    """

    def __init__(self, network, domain_classifier, joint, use_entropy, fool=False):
        super().__init__(auto_prefix=False)
        self.backbone, self.classifier = network.backbone, network.class_classifier
        self.domain_classifier = domain_classifier
        self.reversal = GradientReversal()
        self.joint, self.use_entropy, self.fool = joint, use_entropy, fool

    def _logits(self, features, keep_hidden, half):
        """(source logits, target logits); the target's only where something reads them."""
        if not self.use_entropy:
            return self.classifier(features[:half], keep_hidden[:half]), None
        if self.joint:
            logits = self.classifier(features, keep_hidden)
            return logits[:half], logits[half:]
        source = self.classifier(features[:half], keep_hidden[:half])
        return source, self.classifier(features[half:], keep_hidden[half:])

    def construct(self, images, labels, domains, keep_map, keep_hidden, reverse, weights):
        half = labels.shape[0]
        features = both_features(self.backbone, images, keep_map, half, self.joint)
        source_logits, target_logits = self._logits(features, keep_hidden, half)
        class_loss = cross_entropy(source_logits, labels)
        domain_logits = self.domain_classifier(self.reversal(features, reverse))
        wanted = 1 - domains if self.fool else domains
        # The mean over 2N rows is half the sum of the two domains' means; the paper adds them.
        domain_loss = 2.0 * cross_entropy(domain_logits, wanted)
        entropy = prediction_entropy(target_logits) if self.use_entropy else ops.zeros_like(class_loss)
        total = class_loss + weights[0] * domain_loss + weights[1] * entropy
        class_accuracy = accuracy(source_logits, labels)
        return total, (class_loss, domain_loss, entropy, class_accuracy, accuracy(domain_logits, domains))


class DiscriminatorLoss(nn.Cell):
    """The alternating adversary's discriminator step: domain loss on features that get no gradient."""

    def __init__(self, network, domain_classifier, joint):
        super().__init__(auto_prefix=False)
        self.backbone, self.domain_classifier, self.joint = network.backbone, domain_classifier, joint

    def construct(self, images, domains, keep_map):
        features = both_features(self.backbone, images, keep_map, domains.shape[0] // 2, self.joint)
        logits = self.domain_classifier(ops.stop_gradient(features))
        return 2.0 * cross_entropy(logits, domains), accuracy(logits, domains)


class DannTrainCell(TrainCell):
    """Pre-training on the source, then adversarial training on source and target."""

    def __init__(self, config, device):
        if config.batch_size < 2:
            raise UserError(
                "batch_size: batch normalisation needs at least 2 images in training; choose a larger one"
            )
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

    def _plan(self, loaders):
        config = self.config
        epoch = config.steps_per_epoch or min(loader.steps_per_epoch for loader in loaders.values())
        self.phases = [
            Phase("pretrain", config.n_pretrain_epochs * epoch, epoch, {"source": loaders["source"]}),
            Phase("adapt", config.n_epoch * epoch, epoch, loaders),
        ]
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
        reversal = config.adversary == "reversal"
        loss = AdversarialLoss(self.network, self.domain_classifier, joint, use_entropy, fool=not reversal)
        trained = generator_weights + self._weights("domain_classifier") if reversal else generator_weights
        self.adversarial_grad = ms.value_and_grad(loss, None, trained, has_aux=True)
        self.discriminator_grad = ms.value_and_grad(
            DiscriminatorLoss(self.network, self.domain_classifier, joint),
            None,
            self._weights("domain_classifier"),
            has_aux=True,
        )
        self.sizes = {name: len(part.trainable_params()) for name, part in parts.items()}
        self._pretrain = jit(self._pretrain_update, config)
        self._reverse = jit(self._reversal_update, config)
        self._generate = jit(self._generator_update, config)
        self._discriminate = jit(self._discriminator_update, config)
        self._evaluate = jit(self._validation_logits, config)

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

    def _reversal_update(self, images, labels, domains, keep_map, keep_hidden, reverse, weights):
        (total, scalars), gradients = self.adversarial_grad(
            images, labels, domains, keep_map, keep_hidden, reverse, weights
        )
        count = self.sizes["backbone"] + self.sizes["class_classifier"]
        self._apply_generator(gradients[:count])
        self._apply_discriminator(gradients[count:])
        return total, scalars

    def _generator_update(self, images, labels, domains, keep_map, keep_hidden, reverse, weights):
        (total, scalars), gradients = self.adversarial_grad(
            images, labels, domains, keep_map, keep_hidden, reverse, weights
        )
        self._apply_generator(gradients)
        return total, scalars

    def _discriminator_update(self, images, domains, keep_map):
        (loss, domain_accuracy), gradients = self.discriminator_grad(images, domains, keep_map)
        self._apply_discriminator(gradients)
        return loss, domain_accuracy

    # What the loop calls.

    def train_step(self, phase, batch):
        """One update; returns the scalars of `log_line` and of the curves."""
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

    def _masks(self, phase, rows):
        rng = noise.generator(self.config.seed, f"dropout {phase.name}", phase.step, self.device.rank)
        channel = self.config.dropout_kind == "channel"
        shapes = ((rows, FEATURE_MAP[0], 1, 1) if channel else (rows, *FEATURE_MAP), (rows, HIDDEN))
        return [ms.Tensor.from_numpy(noise.keep_mask(rng, shape, self.config.dropout)) for shape in shapes]

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
        if self.config.adversary == "reversal":
            weights = ms.Tensor([1.0, entropy], ms.float32)
            reverse = ms.Tensor(strength, ms.float32)
            total, scalars = self._reverse(*arguments, reverse, weights)
        else:
            discriminator_loss, domain_accuracy = self._discriminate(images, self.domains, keep_map)
            # The generator's own (inverted) domain loss is weighted here; nothing is reversed.
            weights = ms.Tensor([strength, entropy], ms.float32)
            total, scalars = self._generate(*arguments, ms.Tensor(-1.0, ms.float32), weights)
            scalars = (scalars[0], discriminator_loss, scalars[2], scalars[3], domain_accuracy)
        names = ("class_loss", "domain_loss", "entropy", "class_accuracy", "domain_accuracy")
        return {"loss": total, **dict(zip(names, scalars, strict=True))}

    def state(self):
        """Networks and optimizers by name."""
        optimizers = {f"optimizer_{name}": optimizer for name, optimizer in self.optimizers.items()}
        return {"network": self.network, "domain_classifier": self.domain_classifier, **optimizers}

    def published_files(self):
        """The two files that earlier users of this model know."""
        return {
            "best_backbone_t.ckpt": self.network.backbone,
            "best_class_classifier.ckpt": self.network.class_classifier,
        }

    def features(self, images):
        """(N, 3, 28, 28) -> backbone features (N, 800)."""
        return self.network.backbone(images)

    # Validation: source classes and domains on held-out training images; never a target label.

    def _validation_logits(self, images):
        features = self.network.backbone(images)
        logits = self.network.class_classifier(features)
        return logits, self.domain_classifier(features)

    def validate(self, phase):
        """Class loss and accuracy on held-out source images, domain loss and accuracy on both."""
        if self.held_out is None:
            return {}
        sums = np.zeros(6)
        with evaluating(*self.parts.values()):
            for domain, side in enumerate(("source", "target")):
                for images, labels in self.held_out[side]:
                    logits, domain_logits = (
                        t.asnumpy() for t in self._evaluate(ms.Tensor.from_numpy(images))
                    )
                    sums += _held_out_sums(logits, labels, domain_logits, domain)
        class_loss, class_hits, class_count, domain_loss, domain_hits, count = sums
        figures = {"class_loss": class_loss / class_count, "class_accuracy": class_hits / class_count}
        if phase.name == "adapt":
            figures["domain_loss"] = 2 * domain_loss / count
            figures["domain_accuracy"] = domain_hits / count
        return figures

    def log_line(self, phase, values):
        """The line users of the published model grep; docs/architecture.md says what each term is."""
        if phase.name == "pretrain":
            return super().log_line(phase, {"err_class": values["class_loss"]})
        epoch, step = divmod(phase.step, phase.steps_per_epoch)
        domain, rest = values["domain_loss"], values["class_loss"] + values["entropy"]
        return (
            f"epoch: {epoch}, [iter: {step + 1} / all {phase.steps_per_epoch}],  "
            f"err_D_domain: {domain:.6f}, err_G_domain: {rest:.6f},err_sum:{domain + rest:.6f}"
        )


def _held_out_sums(logits, labels, domain_logits, domain):
    """(class loss, class hits, class count, domain loss, domain hits, count), summed over a batch."""
    count = len(domain_logits)
    domain_loss = -_log_softmax(domain_logits)[:, domain].sum()
    domain_hits = (domain_logits.argmax(1) == domain).sum()
    if domain == 1:
        return np.array([0, 0, 0, domain_loss, domain_hits, count], float)
    class_loss = -_log_softmax(logits)[np.arange(count), labels].sum()
    return np.array(
        [class_loss, (logits.argmax(1) == labels).sum(), count, domain_loss, domain_hits, count], float
    )


def _log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
