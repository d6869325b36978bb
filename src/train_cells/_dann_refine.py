"""DANN's third phase: self-training on the target. A student learns labelled source images and the teacher's
pseudo-labels of target images; the teacher is the moving average of the student, and what is evaluated.

After DIRT-T (Shu et al. 2018, arXiv 1802.08735: refinement without the adversary), self-ensembling (French et
al. 2018, arXiv 1706.05208: averaged teacher that normalises by target batches, confidence threshold) and
FixMatch (Sohn et al. 2020, arXiv 2001.07685: the teacher sees the image as it is, the student a strong
augmentation).
"""

import mindspore as ms
from mindspore import nn, ops

from model_utils import noise
from model_utils.device import gradient_reducer, jit
from model_utils.key import Key
from src.data.augment import STRONG, build
from src.losses.classification import accuracy, cross_entropy
from src.losses.consistency import KINDS, ClassThresholds, pseudo_label_loss, pseudo_labels
from src.ops import accelerate
from src.training.averaging import Average
from src.training.optim import adam, set_learning_rate
from src.training.schedules import schedule

KEYS = {
    "n_refine_epochs": Key(0, "epochs of self-training on the target after adversarial training", low=0),
    "lr_refine": Key(0.003, "learning rate of self-training (peak, if scheduled)", above=0),
    "refine_dropout": Key(0.2, "dropout probability of the student in self-training", low=0, below=1),
    "strong_augment": Key("none", "augmentation of the student's target images", choices=STRONG),
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
        "share of each class's pseudo-labels to use (class-balanced thresholds); 0: pseudo_threshold for all",
        low=0,
        below=1,
    ),
}

# The averaged teacher starts from a trained network: nothing has to be forgotten fast, see Average.update.
STEPS_BEFORE = 1000


class StudentLoss(nn.Cell):
    """Cross-entropy of N labelled source images plus `weight` times the cost of N pseudo-labels.

    Inputs: source and target images (N, 3, 28, 28); labels (N,); the teacher's logits (N, 10), pseudo-labels
    (N,) and which of them are chosen (N,); dropout masks of 2N rows, source first.
    Returns the total and (class loss, pseudo-label loss, class accuracy).
    """

    def __init__(self, network, weight, kind):
        super().__init__(auto_prefix=False)
        self.backbone, self.classifier = network.backbone, network.class_classifier
        self.weight, self.kind = weight, kind

    def construct(self, source, labels, target, teacher_logits, classes, chosen, keep_map, keep_hidden):
        half = labels.shape[0]
        source_logits = self.classifier(self.backbone(source, keep_map[:half]), keep_hidden[:half])
        target_logits = self.classifier(self.backbone(target, keep_map[half:]), keep_hidden[half:])
        class_loss = cross_entropy(source_logits, labels)
        cost = pseudo_label_loss(target_logits, teacher_logits, classes, chosen, self.kind)
        return class_loss + self.weight * cost, (class_loss, cost, accuracy(source_logits, labels))


class _Weights:
    """The weights of a network without its running statistics, which are the teacher's own."""

    def __init__(self, network):
        self.get_parameters = network.trainable_params


class Refinement:
    """Student, optimizer and updates of the phase; `teacher` is the network that DANN has trained.

    The teacher stays in training mode: it normalises by the target batch it sees, and its running statistics,
    which evaluation uses, become those of the target (adaptive batch normalisation, Li et al. 2016,
    arXiv 1603.04779).

    Args:
        teacher, student: networks of the same kind.
        config, device: as resolved and set up.
        masks: function (phase, rows, drop) -> dropout masks of the step, see DannTrainCell.
    """

    def __init__(self, teacher, student, config, device, masks):
        self.teacher, self.student = teacher, student
        self.config, self.device, self.masks = config, device, masks
        accelerate(student)
        student.update_parameters_name("student.")
        self.augment = build(config.strong_augment)
        self.thresholds = None
        if config.pseudo_portion > 0:
            self.thresholds = ClassThresholds(10, config.pseudo_portion, config.pseudo_threshold)
            self.thresholds.update_parameters_name("thresholds.")
        self._assign(student, teacher)
        self.average = Average(_Weights(student), _Weights(teacher), config.teacher_decay, config)
        weights = ms.ParameterTuple(student.trainable_params())
        self.optimizer = adam("adam_student", weights, config.lr_refine, config.weight_decay)
        self.reducer = gradient_reducer(self.optimizer.parameters, device)
        loss = StudentLoss(student, config.pseudo_weight, config.pseudo_kind)
        self.gradients = ms.value_and_grad(loss, None, weights, has_aux=True)
        self._update = jit(self._updated, config)

    @staticmethod
    def _assign(network, other):
        for mine, its in zip(network.get_parameters(), other.get_parameters(), strict=True):
            ops.assign(mine, its)

    def state(self):
        """{name: cell} of what the phase adds to a checkpoint."""
        added = {"student": self.student, "optimizer_student": self.optimizer}
        return added if self.thresholds is None else {**added, "thresholds": self.thresholds}

    def start(self, phase):
        """The student starts as the network that the adversarial phase has left."""
        if phase.step == 0:
            self._assign(self.student, self.teacher)

    def _chosen(self, logits):
        if self.thresholds is None:
            return pseudo_labels(logits, self.config.pseudo_threshold)
        return pseudo_labels(logits, self.thresholds(logits))

    def _updated(self, seen, source, labels, target, keep_map, keep_hidden):
        logits = self.teacher(seen)
        classes, chosen = self._chosen(logits)
        (total, scalars), gradients = self.gradients(
            source, labels, target, logits, classes, chosen, keep_map, keep_hidden
        )
        self.optimizer(self.reducer(gradients))
        return total, scalars, ops.mean(chosen)

    def step(self, phase, batch):
        """One update of the student, then of the teacher; returns scalars by name."""
        (source, labels), (seen, _) = batch["source"], batch["target"]
        rate = self.config.lr_refine * schedule(self.config.lr_schedule, phase.step, phase.steps)
        set_learning_rate(self.optimizer, rate)
        target = seen
        if self.augment is not None:
            target = self.augment(
                seen, noise.generator(self.config.seed, "strong", phase.step, self.device.rank)
            )
        tensors = [ms.Tensor.from_numpy(array) for array in (seen, source, labels, target)]
        masks = self.masks(phase, 2 * len(labels), self.config.refine_dropout)
        total, (class_loss, cost, class_accuracy), chosen = self._update(*tensors, *masks)
        self.average.update(phase.step + STEPS_BEFORE)
        return {
            "loss": total,
            "class_loss": class_loss,
            "pseudo_loss": cost,
            "pseudo_share": chosen,
            "class_accuracy": class_accuracy,
            "lr": rate,
        }
