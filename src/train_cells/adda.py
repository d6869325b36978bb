"""ADDA: adversarial discriminative domain adaptation (Tzeng et al. 2017, arXiv 1702.05464).

Phase "source" trains the source network on labels. Then the target network starts as a copy of it, the
source network is frozen, and phase "adapt" trains the target network and a discriminator of class logits at
once: the discriminator tells source logits from target logits, the target network aims at the opposite.

`network` is what is trained in both phases: the source network first, from then on the target network. The
frozen copy is a cell of its own, `source_network`.
"""

import logging

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils import checkpoint
from model_utils.config import Key
from model_utils.device import gradient_reducer, jit
from model_utils.errors import UserError
from src import noise
from src.data import augment, pairs
from src.losses import accuracy, cross_entropy, prediction_entropy
from src.networks.adda import Discriminator, LeNet
from src.ops import accelerate
from src.optim import adam, set_learning_rate, uniquely_named
from src.schedules import ONE_CYCLE, reversal_strength, schedule
from src.train_cells import Phase, TrainCell

log = logging.getLogger("run")

SOURCE, WARM_UP, ADAPT = "source", "discriminator", "adapt"
SAMPLED = {"mnist": 2000, "usps": 1800}  # training images of protocol `sampled` (section 5.1 of the paper)
CHANNELS = 1
ADVERSARIAL_BETA1 = 0.5
TERMS = ("discriminator_loss", "mapping_loss", "class_loss", "entropy", "consistency", "domain_accuracy")

KEYS = {
    **pairs.keys("mnist", "data/mnist", "usps", "data/usps"),
    "split": Key("train", "split trained on; accuracy is always that of the test split", choices=("train",)),
    "protocol": Key(
        "full",
        "full: all training images; sampled: 2,000 of MNIST and 1,800 of USPS, drawn by seed",
        choices=("full", "sampled"),
    ),
    "validation_size": Key(0, "images held out of each domain's training split for figures", low=0),
    "model": Key("lenet", "network of both domains", choices=("lenet",)),
    "input_norm": Key(
        "none",
        "instance: each image to mean 0 and deviation 1; none: only [0, 1] to [-1, 1]",
        choices=("none", "instance"),
    ),
    "batch_size": Key(128, "images per domain, step and process; export.py: fixed batch size", low=1),
    "iterations": Key(10000, "steps of training the source network", low=0),
    "adversary_iterations": Key(10000, "adversarial steps; 0: source only", low=0),
    "discriminator_iterations": Key(0, "steps before them that train only the discriminator", low=0),
    "steps_per_epoch": Key(
        1000, "steps between evaluations and checkpoints (this method counts iterations, not epochs)", low=1
    ),
    "source_ckpt_file": Key("", "checkpoint or run folder of a trained source network, in place of training"),
    "solver": Key("adam", "optimizer of both phases", choices=("adam", "sgd")),
    "momentum": Key(0.99, "momentum of solver sgd", low=0, below=1),
    "lr": Key(0.001, "learning rate of source training (peak, if scheduled)", above=0),
    "adversary_lr": Key(0.0002, "learning rate of adversarial training (peak, if scheduled)", above=0),
    "lr_schedule": Key("constant", "learning rate over a phase", choices=("constant", ONE_CYCLE)),
    "weight_decay": Key(2.5e-5, "L2 penalty of source training", low=0, below=1),
    "mapping_weight": Key(1.0, "weight of the target network's adversarial loss", low=0),
    "class_weight": Key(
        0.0, "weight of the class loss on source images that the target network keeps", low=0
    ),
    "entropy_weight": Key(0.0, "weight (times λ) of the entropy of the target predictions", low=0),
    "consistency_weight": Key(
        0.0, "weight (times λ) of the loss of augmented target images against confident predictions", low=0
    ),
    "consistency_augment": Key("affine", "that augmentation", choices=augment.CHOICES[1:]),
    "confidence": Key(0.9, "probability from which a prediction counts as confident", low=0, below=1),
    "gamma": Key(10.0, "how fast λ(p) = 2/(1+exp(-gamma·p)) - 1 grows over adversarial training", low=0),
}

# Names that users of the published code know, and the keys they stand for.
ALIASES = {
    "dataset": "source_dataset_name",
    "output": "output_dir",
    "display": "log_interval",
    "snapshot": "save_checkpoint_steps",
}


def build_network(config):
    """Image -> logits network, untrained: float32 (N, 1, 28, 28) in [0, 1] -> (N, 10)."""
    return LeNet(config.input_norm)


def test_sets(config, device):
    """{"source": loader, "target": loader} over the test splits."""
    return pairs.test_sets(config, device, CHANNELS)


def build(config, device):
    """The train cell of a run."""
    return AddaTrainCell(config, device)


def draw(split, name, protocol, seed):
    """The training images a protocol allows.

    Args:
        split: all training images of data set `name`.
        protocol: "full" (all of them) or "sampled" (2,000 of MNIST, 1,800 of USPS, without replacement).
        seed: chooses the sample.

    Raises:
        UserError: the paper samples no such data set, or it has fewer images.
    """
    if protocol == "full":
        return split
    key = name.lower().replace("_", "").replace("-", "")
    if key not in SAMPLED:
        sizes = ", ".join(f"{known} {size}" for known, size in SAMPLED.items())
        raise UserError(
            f"protocol: sampled is not defined for {name} (only for {sizes}); use --protocol full"
        )
    count = len(split.labels)
    if count < SAMPLED[key]:
        raise UserError(
            f"protocol: sampled needs {SAMPLED[key]} training images of {name}, there are {count}; "
            "use --protocol full, or complete the data set"
        )
    chosen = np.sort(noise.generator(seed, f"protocol {key}").permutation(count)[: SAMPLED[key]])
    return type(split)(split.images[chosen], split.labels[chosen])


class SourceLoss(nn.Cell):
    """Cross-entropy of the class logits (nats, mean over the batch) and their accuracy."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, labels):
        logits = self.network(images)
        return cross_entropy(logits, labels), accuracy(logits, labels)


class DiscriminatorLoss(nn.Cell):
    """Cross-entropy of the domain logits over both batches (equation 7 of the paper), and their accuracy.

    Inputs: class logits of source and target images, (N, 10) each, that get no gradient; domains, int32
    (2N,), N zeros, then N ones.
    """

    def __init__(self, discriminator):
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator

    def construct(self, source_logits, target_logits, domains):
        rows = ops.stop_gradient(ops.concat((source_logits, target_logits)))
        logits = self.discriminator(rows)
        return cross_entropy(logits, domains), accuracy(logits, domains)


class WarmUpLoss(nn.Cell):
    """The discriminator's loss of one source and one target batch, both networks at rest."""

    def __init__(self, network, source_network, discriminator):
        super().__init__(auto_prefix=False)
        self.network, self.source_network = network, source_network
        self.loss = DiscriminatorLoss(discriminator)

    def construct(self, source, target, domains):
        return self.loss(self.source_network(source), self.network(target), domains)


class AdaptLoss(nn.Cell):
    """All losses of one simultaneous update.

    The discriminator's loss reaches only the discriminator. Everything else reaches only the target network:
    the mapping loss, i.e. the cross-entropy of the target's domain logits against "source" (equation 8), and
    where their weights are not 0 the class loss on source images, the entropy of the target predictions
    (Grandvalet & Bengio 2004) and the cross-entropy of strongly augmented target images against the confident
    predictions of the target images themselves (Sohn et al. 2020, arXiv 2001.07685).

    Inputs: source, target, strong: images (N, 1, 28, 28), `strong` being the augmented target; labels (N,);
    domains (2N,), zeros then ones; weights (4,): of mapping, class, entropy and consistency loss.

    Returns the total and the scalars named in TERMS.
    """

    def __init__(self, network, source_network, discriminator, config):
        super().__init__(auto_prefix=False)
        self.network, self.source_network, self.discriminator = network, source_network, discriminator
        self.discriminator_loss = DiscriminatorLoss(discriminator)
        self.use_class, self.use_entropy = config.class_weight > 0, config.entropy_weight > 0
        self.use_consistency, self.confidence = config.consistency_weight > 0, config.confidence

    def _forward(self, source, target, strong):
        """Logits of what is needed, target rows first, in one pass (there is no batch normalisation)."""
        rows = (target,)
        if self.use_class:
            rows = rows + (source,)
        if self.use_consistency:
            rows = rows + (strong,)
        return self.network(ops.concat(rows) if len(rows) > 1 else target)

    def _consistency(self, weak_logits, strong_logits):
        probabilities = ops.stop_gradient(ops.softmax(weak_logits, 1))
        confident = ops.cast(ops.amax(probabilities, 1) >= self.confidence, ms.float32)
        guess = ops.cast(ops.argmax(probabilities, 1), ms.int32)
        return ops.mean(confident * ops.cross_entropy(strong_logits, guess, reduction="none"))

    def construct(self, source, labels, target, strong, domains, weights):
        half = labels.shape[0]
        logits = self._forward(source, target, strong)
        target_logits = logits[:half]
        discriminator_loss, domain_accuracy = self.discriminator_loss(
            self.source_network(source), target_logits, domains
        )
        mapping_loss = cross_entropy(self.discriminator.frozen(target_logits), domains[:half])
        class_loss = entropy = consistency = ops.zeros_like(mapping_loss)
        if self.use_class:
            class_loss = cross_entropy(logits[half : 2 * half], labels)
        if self.use_entropy:
            entropy = prediction_entropy(target_logits)
        if self.use_consistency:
            consistency = self._consistency(target_logits, logits[-half:])
        terms = (mapping_loss, class_loss, entropy, consistency)
        total = discriminator_loss + weights[0] * terms[0] + weights[1] * terms[1]
        total = total + weights[2] * terms[2] + weights[3] * terms[3]
        return total, (discriminator_loss, *terms, domain_accuracy)


class AddaTrainCell(TrainCell):
    """Source training, then adaptation of a copy; between them, if asked for, the discriminator alone."""

    def __init__(self, config, device):
        self.config, self.device = config, device
        self._plan(*self._loaders())
        self.network, self.source_network = build_network(config), build_network(config)
        self.discriminator = Discriminator()
        for cell in (self.network, self.source_network, self.discriminator):
            accelerate(cell)
        # Cells of their own, not children of the network: without a prefix their names would collide.
        self.source_network.update_parameters_name("source_network.")
        self.discriminator.update_parameters_name("discriminator.")
        for weight in self.source_network.get_parameters():
            weight.requires_grad = False
        if config.source_ckpt_file and not config.resume:
            checkpoint.load_network(self.network, config.source_ckpt_file)
        self.optimizers = {
            SOURCE: self._optimizer(SOURCE, self.network, config.lr, 0.9, config.weight_decay),
            ADAPT: self._optimizer(ADAPT, self.network, config.adversary_lr, ADVERSARIAL_BETA1),
            WARM_UP: self._optimizer(WARM_UP, self.discriminator, config.adversary_lr, ADVERSARIAL_BETA1),
        }
        self.reducers = {
            name: gradient_reducer(optimizer.parameters, device)
            for name, optimizer in self.optimizers.items()
        }
        self._compile()

    def _loaders(self):
        config = self.config

        def select(split, side):
            return draw(split, getattr(config, f"{side}_dataset_name"), config.protocol, config.seed)

        return pairs.train_loaders(config, self.device, CHANNELS, select=select)

    def _plan(self, loaders, held_out):
        config, self.held_out = self.config, held_out
        epoch, source = config.steps_per_epoch, {"source": loaders["source"]}
        self.phases = [
            Phase(SOURCE, 0 if config.source_ckpt_file else config.iterations, epoch, source),
            Phase(WARM_UP, config.discriminator_iterations, epoch, loaders),
            Phase(ADAPT, config.adversary_iterations, epoch, loaders),
        ]
        if not sum(phase.steps for phase in self.phases):
            raise UserError("iterations, adversary_iterations: nothing to train; give one of them")
        self.domains = ms.Tensor(np.repeat([0, 1], config.batch_size), ms.int32)

    def _optimizer(self, name, cell, lr, beta1, weight_decay=0.0):
        weights, name = cell.trainable_params(), f"{self.config.solver}_{name}"
        if self.config.solver == "adam":
            return adam(name, weights, lr, weight_decay, beta1)
        momentum = nn.Momentum(weights, lr, self.config.momentum, weight_decay=weight_decay)
        return uniquely_named(momentum, name)

    def _compile(self):
        config, network, discriminator = self.config, self.network, self.discriminator
        of_network = ms.ParameterTuple(network.trainable_params())
        of_discriminator = ms.ParameterTuple(discriminator.trainable_params())
        self.network_size = len(of_network)
        self.source_grad = ms.value_and_grad(SourceLoss(network), None, of_network, has_aux=True)
        warm_up = WarmUpLoss(network, self.source_network, discriminator)
        self.warm_up_grad = ms.value_and_grad(warm_up, None, of_discriminator, has_aux=True)
        adapt = AdaptLoss(network, self.source_network, discriminator, config)
        self.adapt_grad = ms.value_and_grad(adapt, None, of_network + of_discriminator, has_aux=True)
        self._train_source = jit(self._source_update, config)
        self._train_discriminator = jit(self._warm_up_update, config)
        self._adapt = jit(self._adapt_update, config)
        self._evaluate = jit(self._validation_logits, config)

    # Jitted updates. Each returns scalars only.

    def _source_update(self, images, labels):
        (loss, class_accuracy), gradients = self.source_grad(images, labels)
        self.optimizers[SOURCE](self.reducers[SOURCE](gradients))
        return loss, class_accuracy

    def _warm_up_update(self, source, target, domains):
        (loss, domain_accuracy), gradients = self.warm_up_grad(source, target, domains)
        self.optimizers[WARM_UP](self.reducers[WARM_UP](gradients))
        return loss, domain_accuracy

    def _adapt_update(self, source, labels, target, strong, domains, weights):
        (total, terms), gradients = self.adapt_grad(source, labels, target, strong, domains, weights)
        self.optimizers[ADAPT](self.reducers[ADAPT](gradients[: self.network_size]))
        self.optimizers[WARM_UP](self.reducers[WARM_UP](gradients[self.network_size :]))
        return total, terms

    # What the loop calls.

    def start_phase(self, phase):
        """Before the first step after source training, fill the frozen source network.

        A run that resumes later than that has it from its checkpoint.
        """
        first = next((later for later in self.phases[1:] if later.steps), None)
        if phase is first and phase.step == 0:
            copy_weights(self.network, self.source_network)
            log.info("source network copied and frozen; test accuracies up to here are of source only")

    def train_step(self, phase, batch):
        """One update; returns the scalars of the log and of the curves."""
        rate = self._set_learning_rates(phase)
        (source, labels) = (ms.Tensor.from_numpy(part) for part in batch["source"])
        if phase.name == SOURCE:
            loss, class_accuracy = self._train_source(source, labels)
            return {"loss": loss, "class_accuracy": class_accuracy, "lr": rate}
        images = batch["target"][0]
        target = ms.Tensor.from_numpy(images)
        if phase.name == WARM_UP:
            loss, domain_accuracy = self._train_discriminator(source, target, self.domains)
            return {"loss": loss, "domain_accuracy": domain_accuracy, "lr": rate}
        strength = reversal_strength(phase.step / phase.steps, self.config.gamma)
        strong = self._strong(images, phase.step) if self.config.consistency_weight > 0 else target
        weights = self._weights(strength)
        total, terms = self._adapt(source, labels, target, strong, self.domains, weights)
        return {"loss": total, **dict(zip(TERMS, terms, strict=True)), "lambda": strength, "lr": rate}

    def _set_learning_rates(self, phase):
        config = self.config
        rate = config.lr if phase.name == SOURCE else config.adversary_lr
        if phase.name != WARM_UP:
            rate *= schedule(config.lr_schedule, phase.step, phase.steps)
        for name in (SOURCE,) if phase.name == SOURCE else (ADAPT, WARM_UP):
            set_learning_rate(self.optimizers[name], rate)
        return rate

    def _strong(self, images, step):
        rng = noise.generator(self.config.seed, "consistency", step, self.device.rank)
        return ms.Tensor.from_numpy(augment.build(self.config.consistency_augment)(images, rng))

    def _weights(self, strength):
        config = self.config
        ramped = (config.entropy_weight * strength, config.consistency_weight * strength)
        return ms.Tensor((config.mapping_weight, config.class_weight, *ramped), ms.float32)

    def state(self):
        """Networks and optimizers by name."""
        optimizers = {f"optimizer_{name}": optimizer for name, optimizer in self.optimizers.items()}
        networks = {"source_network": self.source_network, "discriminator": self.discriminator}
        return {"network": self.network, **networks, **optimizers}

    def features(self, images):
        """(N, 1, 28, 28) -> hidden layer of the network (N, 500)."""
        return self.network.features(images)

    # Validation: source classes and domains on held-out training images; never a target label.

    def _validation_logits(self, images):
        logits = self.network(images)
        frozen = self.source_network(images)
        return logits, self.discriminator(frozen), self.discriminator(logits)

    def validate(self, phase):
        """Class accuracy on held-out source images; from the second phase on, domain accuracy on both."""
        if self.held_out is None:
            return {}
        class_hits = domain_hits = count = 0
        for images, labels in self.held_out["source"]:
            logits, domain, _ = (t.asnumpy() for t in self._evaluate(ms.Tensor.from_numpy(images)))
            class_hits += (logits.argmax(1) == labels).sum()
            domain_hits += (domain.argmax(1) == 0).sum()
            count += len(labels)
        figures = {"class_accuracy": class_hits / count}
        if phase.name != SOURCE:
            for images, _ in self.held_out["target"]:
                domain = self._evaluate(ms.Tensor.from_numpy(images))[2].asnumpy()
                domain_hits += (domain.argmax(1) == 1).sum()
                count += len(images)
            figures["domain_accuracy"] = domain_hits / count
        return figures


def copy_weights(origin, copy):
    """Give cell `copy` the parameter values of `origin`, a cell of the same kind, bit for bit."""
    for before, after in zip(origin.get_parameters(), copy.get_parameters(), strict=True):
        ops.assign(after, before)  # in place: what is compiled already sees it, unlike after set_data
