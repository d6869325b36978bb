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
from mindspore import ops

from model_utils import checkpoint, noise
from model_utils.device import gradient_reducer, jit
from model_utils.errors import UserError
from src.data import augment, pairs
from src.networks.adda import Discriminator, LeNet
from src.ops import accelerate
from src.train_cells import Phase, TrainCell
from src.train_cells._adda_keys import ALIASES, KEYS  # noqa: F401 - part of a method's interface
from src.train_cells._adda_losses import TERMS, AdaptLoss, SourceLoss, WarmUpLoss
from src.training.optim import adam, momentum, set_learning_rate
from src.training.schedules import reversal_strength, schedule

log = logging.getLogger("run")

SOURCE, WARM_UP, ADAPT = "source", "discriminator", "adapt"
SAMPLED = {"mnist": 2000, "usps": 1800}  # training images of protocol `sampled` (section 5.1 of the paper)
CHANNELS = 1
ADVERSARIAL_BETA1 = 0.5


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
        return momentum(name, weights, lr, self.config.momentum, weight_decay)

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
