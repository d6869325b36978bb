"""What a method defines: the contract of src/train_cells/<method>.py with the trainer and the loop."""

import dataclasses

from src.evaluation.evaluate import held_out_accuracies


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


class Contract:
    """What the trainer, the loop, eval.py and export.py ask of a method.

    A method sets KEYS, DEFAULTS and ALIASES, and overrides `plan`, `prepare` and `train_step`, and further
    methods as needed. `trainer.Trainer` derives from this class and has the attributes, such as `evaluator`.
    """

    KEYS = {}  # configuration keys of this method alone
    DEFAULTS = {}  # {key of every method: this method's default}
    ALIASES = {}  # {name that users of the published code know: key it stands for, or an Alias}
    LEAST_SOURCES = 1  # labelled domains that the method needs
    PUBLISHED_PARTS = {}  # {configuration key of a part's checkpoint: name that earlier releases gave it}
    COUNTS_TOP5 = False  # whether evaluations count hits among the five largest logits
    OWN_STEP = ()  # keys of every method that do not apply to this one's step
    INSTEAD = {}  # {key of every method that does not apply to this one: the method's own in its place}
    PER_DOMAIN = True  # whether its step can normalise each domain by itself: batch_norm per_domain
    GOES_ON_WITH = None  # key of a checkpoint whose network, with its preparation, training goes on with
    SEES_TARGET = True  # whether unlabelled target images may be looked at
    ON_IMAGES = ()  # keys of this method that change images within a step: not with cache_features

    def plan(self):
        """Set `phases`, and perhaps `held_out`, from `task`, before any network is built."""
        raise NotImplementedError

    def prepare(self):
        """Add parts and updates; `network` and `trained` exist."""
        raise NotImplementedError

    def train_step(self, phase, batch):
        """One update from `batch`; returns scalar Tensors or floats by name, "loss" among them."""
        raise NotImplementedError

    def begin_phase(self, phase):
        """Called before a phase's first step (`phase.step` is 0), and when a run resumes inside it (> 0)."""

    def validate(self, phase):
        """Scalars on held-out training data, by name; never anything that reads a target label.

        Unless overridden, {"held_out_<domain>_accuracy"} of each source that holds images out.
        """
        return held_out_accuracies(self.evaluator, self.held_out_sources)

    @staticmethod
    def known_classes(config):
        """The names of the classes, where they do not follow from labelled sources; else None."""
        return None

    @staticmethod
    def evaluation_batch(config):
        """Images per evaluation step."""
        return config.eval_batch_size

    def published_files(self):
        """{file name: nn.Cell} written beside the last checkpoint, under the names users know."""
        return {}

    @staticmethod
    def published_parts(network, config):
        """{configuration key: (cell, file given)} of checkpoints in several files, as earlier releases wrote
        them.
        """
        return {}

    @staticmethod
    def accuracy_lines(top1, top5):
        """Lines an evaluation prints beside the common one, from {domain: accuracy}."""
        return []

    def log_line(self, phase, values):
        """The plain line logged for a step: `values` holds what `train_step` returned, as floats."""
        shown = ", ".join(f"{name}: {value:.6f}" for name, value in values.items())
        epoch, step = divmod(phase.step, phase.steps_per_epoch)
        return f"{phase.name} epoch: {epoch}, [iter: {step + 1} / all {phase.steps_per_epoch}], {shown}"
