"""The configuration keys of ADDA: the published recipe, then options, which are off by default."""

from model_utils.key import Key
from src.data import augment, pairs
from src.training.schedules import ONE_CYCLE

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
