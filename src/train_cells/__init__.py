"""The contract between a method and the training loop, and how a method is found by its name.

A method is one module of this package. It holds the loss cells, a subclass of `TrainCell`, and

    KEYS: dict[str, Key]                      the recipe's configuration keys
    build_network(config) -> nn.Cell          image -> logits; what eval.py and export.py run
    test_sets(config, device) -> dict         {domain: loader over this process's share of the test split}
    build(config, device) -> TrainCell        everything a training run needs
    published_parts(network, config)          optional: {key: (cell, file)} of checkpoints in several files
    ALIASES: dict[str, str]                   optional: {published option name: key it stands for}
    accuracy_lines(top1, top5) -> list[str]   optional: lines an evaluation prints beside the common one, from
                                              {domain: accuracy}; top5, which is counted only for methods that
                                              have this function, is empty where there are no six classes

Nothing else in the repository knows how many methods there are.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil

from model_utils.errors import UserError


@dataclasses.dataclass
class Phase:
    """One stage of training, e.g. source-only pre-training.

    Attributes:
        name: shown in logs and stored in checkpoints.
        steps: how many training steps it takes.
        steps_per_epoch: how many of them make an epoch (logging, evaluation, checkpoints).
        loaders: {domain: loader}; `loader.batch(step)` gives that step's (images, labels), a pure
            function of the step, so that a resumed run needs no iterator state.
        step: the step being trained, 0-based; the loop sets it before `start_phase` and every `train_step`.
    """

    name: str
    steps: int
    steps_per_epoch: int
    loaders: dict
    step: int = 0

    def batch(self, step):
        """{domain: (images, labels)} of one step; labels are None where a method must not see them."""
        return {domain: loader.batch(step) for domain, loader in self.loaders.items()}


class TrainCell:
    """What the training loop drives. A plain class on purpose: an nn.Cell that owned both networks and
    optimizers would rename their parameters, and checkpoints would differ before and after training.
    """

    network = None  # nn.Cell, image -> logits: what eval.py and export.py run
    phases = ()  # list[Phase], trained in order

    def train_step(self, phase, batch):
        """One update from `batch`; returns scalar Tensors or floats by name, "loss" among them."""
        raise NotImplementedError

    def state(self):
        """{name: nn.Cell} of every network and optimizer: what a resumed run needs."""
        raise NotImplementedError

    def start_phase(self, phase):
        """Called before a phase's first step (`phase.step` is 0), and when a run resumes inside it (> 0)."""

    def validate(self, phase):
        """Scalars on held-out training data, by name; never anything that reads a target label."""
        return {}

    def features(self, images):
        """(N, C, H, W) float32 -> (N, D) features for --plot_features, or None if there are none."""
        return None

    def published_files(self):
        """{file name: nn.Cell} written beside the last checkpoint, under the names users know."""
        return {}

    def log_line(self, phase, values):
        """The plain line logged for a step: `values` holds what `train_step` returned, as floats."""
        shown = ", ".join(f"{name}: {value:.6f}" for name, value in values.items())
        epoch, step = divmod(phase.step, phase.steps_per_epoch)
        return f"{phase.name} epoch: {epoch}, [iter: {step + 1} / all {phase.steps_per_epoch}], {shown}"


def accuracy_lines(method, top1, top5):
    """The method's own lines about an evaluation, [] if it has none; see the top of this file."""
    module = find_method(method)
    return module.accuracy_lines(top1, top5) if hasattr(module, "accuracy_lines") else []


def method_names():
    """The methods that exist: the modules of this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find_method(name):
    """Import the module of method `name`; UserError that lists the methods if there is none."""
    names = method_names()
    if name not in names:
        nearest = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"method: {name!r} does not exist; {hint}methods: {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{name}")
