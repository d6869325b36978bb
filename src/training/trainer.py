"""What every method's training needs: networks, optimizers, masks, mixed precision, accumulation, averages,
state.

A method is a subclass of `Trainer` in src/train_cells/<method>.py. It says which parts it trains, in which
phases, from which roles of the data, with which losses: contract.py lists what it defines. The loop (loop.py)
drives it.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils import noise
from model_utils.errors import UserError
from src import networks
from src.evaluation.evaluate import Evaluator
from src.networks import _initial
from src.networks.heads import Precomputed
from src.networks.pretrained import load_initial
from src.ops import accelerate
from src.training import batches, checks, optim, precision
from src.training.adapted_statistics import BATCH as ADAPTED_BATCH
from src.training.adapted_statistics import AdaptedStatistics
from src.training.averaging import Average
from src.training.batch_norm import set_frozen
from src.training.contract import Contract
from src.training.feature_cache import FeatureCache
from src.training.schedules import schedule
from src.training.update import Update

OF_BACKBONE = "_backbone"  # ending of the name of an optimizer that updates the backbone alone


class Trainer(Contract):
    """The base of every method: what the training loop drives.

    See `Contract` for what a method defines. It is a plain class on purpose: an nn.Cell that owned both
    networks and optimizers would rename their parameters, and checkpoints would differ before and after
    training.

    Args:
        config: the resolved configuration.
        device: `model_utils.device.Device`; gradients are averaged over its ranks.
        task: `src.data.tasks.Task`: the domains, by role.

    Attributes:
        network: `networks.Classifier`, images -> logits: what is evaluated. With `cache_features` it takes
            features in place of images, as everything else here does then.
        whole: `networks.Classifier`, images -> logits: what is saved. It is `network`, or with
            `cache_features` the frozen backbone followed by `network`.
        trained: what gradients are taken through: `network` itself, a float16 tree over the same weights, or
            with `ema_decay` a network of its own, whose average `network` is.
        phases: list of Phase, trained in order.
        held_out: None, or {name: TestLoader} of what is held out of training (`Task.held_out`).
        parts: {name: nn.Cell} of further networks that the method trains (`add_part`).
        updates: {name: Update}, the gradient steps (`add_update`).
        evaluator: counts what `network` predicts; compiled once for tests and held-out images.
    """

    def __init__(self, config, device, task):
        self.config, self.device, self.task = config, device, task
        checks.refuse_keys(self)
        self.phases, self.parts, self.updates, self.averages = [], {}, {}, []
        self.held_out = self.cache = None
        self.plan()
        self.network = self.whole = networks.build(config, len(task.classes))
        _initial.draw(self.network, config)
        load_initial(self.network, config, task.classes)
        if config.freeze_backbone:
            freeze(self.network.backbone)
        self.cache = self._feature_cache()
        checks.check_batch(self)
        self.dynamic = config.amp_level != "O0" and config.loss_scale_mode == "dynamic"
        self.all_finite = True  # whether the gradients of the step's updates have been so far
        self.loss_scale = precision.LossScale(config.loss_scale if config.amp_level != "O0" else 1.0)
        self.trained = self._trained_network()
        self.evaluator = Evaluator(self.network, config, device, self.COUNTS_TOP5)
        self.prepare()
        self.adapted = None
        if config.adapt_batch_norm:
            if not any(phase.steps and "target" in phase.loaders for phase in self.phases):
                raise UserError(
                    f"adapt_batch_norm: method {config.method} does not see the target in any step; leave "
                    "it out"
                )
            loader = self.seen(task.blind_target(self.preparation, ADAPTED_BATCH))
            self.adapted = AdaptedStatistics(self.network, loader, config)

    # What the loop calls beside those.

    def test_sets(self):
        """{name: TestLoader} of the test images, this rank's share; see `Task.test`."""
        loaders = self.task.test(self.preparation, self.evaluation_batch(self.config))
        return {name: self.seen(loader) for name, loader in loaders.items()}

    def ready(self):
        """Called once the weights are those that training begins, or goes on, with."""
        if self.cache:
            self.cache.fill()

    def adapt_statistics(self, phase):
        """With `adapt_batch_norm`: give `network` the batch statistics of the target; before evaluations."""
        if self.adapted is not None and "target" in phase.loaders:
            self.adapted.renew()

    def start_phase(self, phase):
        """Put every network into training mode, except frozen parts; then prepare the phase.

        MindSpore's cells start in evaluation mode, in which batch norm neither uses nor gathers batch
        statistics, and a compiled step keeps the mode it was compiled in.
        """
        self.network.set_train(True)
        for cell in self.state().values():
            if not isinstance(cell, nn.Optimizer):
                cell.set_train(True)
        self.freeze_statistics(self.trained)
        self.begin_phase(phase)

    def state(self):
        """{name: nn.Cell} of every network and optimizer: what a resumed run needs."""
        trained = {} if self.trained is self.network else {"trained": self.trained}
        optimizers = {}
        for update in self.updates.values():
            optimizers |= {f"optimizer_{name}": optimizer for name, optimizer in update.optimizers.items()}
        return {
            "network": self.whole,
            **trained,
            **self.parts,
            **optimizers,
            "loss_scale": self.loss_scale,
        }

    def features(self, images):
        """(N, C, S, S) -> features (N, feature_size) of `network`, for --plot_features."""
        return self.network.features(images)

    # What methods use.

    @property
    def preparation(self):
        """How images are prepared for the network."""
        return networks.preparation(self.config)

    def add_part(self, name, cell):
        """Register a network of the method's own; its parameters are called `<name>.…`. Returns the cell."""
        for parameter in cell.get_parameters():
            parameter.name = f"{name}.{parameter.name}"
        _initial.draw(cell, self.config)
        self.parts[name] = self._as_trained(cell)
        return self.parts[name]

    @property
    def held_out_sources(self):
        """`held_out` without the target, whose labels are not known: {} if nothing is held out."""
        return {name: loader for name, loader in (self.held_out or {}).items() if name != "target"}

    def class_shares(self):
        """Each class's share of the labelled training images of the first phase: float (K,); None without."""
        loaders = self.phases[0].loaders.values()
        labels = [loader.labels for loader in loaders if loader.labels is not None and not loader.numbered]
        if not labels:
            return None
        counts = np.bincount(np.concatenate(labels), minlength=len(self.task.classes))
        return counts / counts.sum()

    def new_network(self, **options):
        """A further network like `network`, with weights of its own. options: of `networks.build`."""
        if self.cache:
            options["backbone"] = Precomputed(self.whole.backbone)
        network = networks.build(self.config, len(self.task.classes), **options)
        if self.config.freeze_backbone:
            freeze(network.backbone)
        return network

    def seen(self, loader):
        """The loader that gives `network` what it takes, for a loader of images: itself, or with
        `cache_features` one of their features, which `ready` fills.
        """
        return self.cache.loader(loader) if self.cache else loader

    def augmented(self, function, images, rng):
        """Images as the network gets them, after `function`, an augmentation of values in [0, 1].

        function: of src/data/augment.py; None changes nothing.
        """
        if function is None:
            return images
        prepared = self.network.preparation
        return prepared.normalise(function(prepared.original(images), rng))

    def weights(self, *names, network=None):
        """ParameterTuple of what is trained of "backbone", "head" (with the bottleneck), or parts by name.

        network: whose backbone and head; `trained` if not given.
        """
        network = self.trained if network is None else network
        own = {"backbone": [network.backbone], "head": [network.head]}
        if network.neck is not None:
            own["head"].insert(0, network.neck)
        cells = [cell for name in names for cell in (own.get(name) or [self.parts[name]])]
        return ms.ParameterTuple([p for cell in cells for p in cell.trainable_params()])

    def add_update(self, name, loss, optimizers, added=None):
        """Register a gradient step; see `Update`.

        Args:
            name: of the update.
            loss: nn.Cell, inputs -> (total, scalars).
            optimizers: {name: optimizer}, in the order of their parameters in the gradient; one that another
                update has may be given again.
            added: None, or what adds further gradients, see `Update`.
        """
        self.updates[name] = Update(self, loss, optimizers, added)
        return self.updates[name]

    def new_optimizer(self, name, weights, rate, **changes):
        """An optimizer as configured; None if nothing is trained. changes: beta1, weight_decay."""
        return optim.build(self.config, name, weights, rate, **changes)

    def network_optimizers(self, name, rate, network=None, **changes):
        """{name: optimizer} of the whole network, or with another rate for the backbone one of each part.

        network: `trained` if not given. changes: of `new_optimizer`.
        """
        network = self.trained if network is None else network
        if self.config.backbone_lr_factor == 1.0:
            weights = ms.ParameterTuple(network.trainable_params())
            return {name: self.new_optimizer(name, weights, rate, **changes)}
        backbone = f"{name}{OF_BACKBONE}"
        return {
            part: self.new_optimizer(part, self.weights(of, network=network), rate, **changes)
            for part, of in ((backbone, "backbone"), (name, "head"))
        }

    def set_learning_rates(self, update, rate):
        """Set the learning rate of an update's optimizers; a backbone's own one gets its share of it."""
        for name, optimizer in update.optimizers.items():
            slower = self.config.backbone_lr_factor if name.endswith(OF_BACKBONE) else 1.0
            optim.set_learning_rate(optimizer, rate * slower)

    def factor(self, phase):
        """Factor of the learning rate at `phase.step`, by `lr_schedule`."""
        return schedule(self.config.lr_schedule, phase.step, phase.steps)

    def counters(self, phase, number):
        """Counters for random numbers: step, rank, and the part of the step if gradients are accumulated."""
        return (phase.step, self.device.rank, *([number] if number else []))

    def masks(self, rows, stream, *counters, network=None):
        """The dropout masks of one pass over `rows` images, a list of Tensors in the order of
        `Classifier.masks`.

        stream, counters: what they are drawn for, and when (see model_utils/noise.py).
        network: whose masks; `trained` if not given.
        """
        network = self.trained if network is None else network
        if not network.masks:
            return []
        rng = noise.generator(self.config.seed, stream, *counters)
        drawn = {}
        for position in network.draw_order:
            shape, rate = network.masks[position]
            drawn[position] = ms.Tensor.from_numpy(noise.keep_mask(rng, (rows, *shape), rate))
        return [drawn[position] for position in range(len(network.masks))]

    def steps_before(self, phase):
        """Training steps of the phases before this one."""
        names = [known.name for known in self.phases]
        return sum(known.steps for known in self.phases[: names.index(phase.name)])

    def run(self, update, phase, batch, inputs, goes_on=False):
        """One step of `update`, in parts where gradients are accumulated; returns its scalars by position.

        inputs: function (batch, number of the part) -> list of input Tensors of the update's loss.
        goes_on: whether another update follows in the same step. Averages and a dynamic loss scale count
            the step once, with its last update; it is skipped where gradients of any of them overflowed.

        Returns:
            (total, scalars, values): the loss, the scalars that it returned, and gradient norm and loss scale
            by name.
        """
        parts = batches.parts(batch, self.config.gradient_accumulation)
        scale = float(self.loss_scale.scale) if self.dynamic else 1.0  # of this step, before it is adjusted
        total, scalars, norm, finite = update.step(
            [inputs(part, number) for number, part in enumerate(parts)], self.loss_scale
        )
        if self.dynamic:
            self.all_finite = bool(finite) and self.all_finite
        values = {}
        if goes_on:
            return total, scalars, values
        skipped = self.dynamic and self.loss_scale.account(self.all_finite, phase.step)
        self.all_finite = True
        if self.dynamic:
            values |= {"scale": scale, "skipped": float(self.loss_scale.skipped)}
        if self.config.clip_grad_norm > 0 and not skipped:
            values["gradient_norm"] = norm
        if not skipped:
            for average in self.averages:
                average.update(self.steps_before(phase) + phase.step)
        return total, scalars, values

    @property
    def smallest_batch(self):
        """Images that a batch normalisation sees at least."""
        return self.config.batch_size

    @property
    def loaded_batch(self):
        """Images that a loader gives a step: batch_size times gradient_accumulation."""
        return self.config.batch_size * self.config.gradient_accumulation

    # Inside.

    def _feature_cache(self):
        """The FeatureCache, and everything that takes images turned to features; None without one."""
        config, whole = self.config, self.whole
        if not config.cache_features:
            return None
        if not config.freeze_backbone:
            raise UserError(
                "cache_features: only a frozen backbone always gives the same features; add "
                "--freeze_backbone true, or leave cache_features out"
            )
        accelerate(whole.backbone)
        self.cache = FeatureCache(config, self.device, whole)
        self.network = self.new_network()
        optim.copy_weights(whole.head, self.network.head)
        if whole.neck is not None:
            optim.copy_weights(whole.neck, self.network.neck)
        whole.neck, whole.head = self.network.neck, self.network.head
        for phase in self.phases:
            phase.loaders = {name: self.seen(loader) for name, loader in phase.loaders.items()}
        if self.held_out:
            self.held_out = {name: self.seen(loader) for name, loader in self.held_out.items()}
        return self.cache

    def _trained_network(self):
        config, network = self.config, self.network
        if not config.ema_decay and config.amp_level == "O0":
            accelerate(network)
            return network
        trained = self.new_network()
        if config.ema_decay:
            for own, other in zip(trained.get_parameters(), network.get_parameters(), strict=True):
                ops.assign(own, other)
                own.requires_grad = other.requires_grad
            # A network of its own: without a prefix its names would collide with the averaged one's.
            trained.prefix_names("trained.")
            self.averages.append(Average(trained, network, config.ema_decay, config))
        else:
            precision.share_parameters(network, trained)
        accelerate(network)
        return self._as_trained(trained)

    def _as_trained(self, cell):
        """`cell`, changed in place to compute as training does: by the CPU operators, or in float16."""
        if self.config.amp_level == "O0":
            accelerate(cell)
            return cell
        return precision.lower(cell, self.config.amp_level)

    def freeze_statistics(self, network):
        """Put the parts that `freeze_backbone` and `batch_norm: frozen` freeze into evaluation mode."""
        if self.config.freeze_backbone:
            network.backbone.set_train(False)
        elif self.config.batch_norm == "frozen":
            set_frozen(network.backbone)


def freeze(cell):
    """Leave a cell's parameters out of training."""
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
