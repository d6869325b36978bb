"""The configuration keys of DANN: the published recipe, then options, which are off by default."""

from model_utils.key import Key
from src.data import pairs
from src.train_cells import _dann_refine
from src.training.schedules import ONE_CYCLE

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
    "conditional": Key(
        False,
        "the discriminator sees features joined with class predictions (CDAN); adversary reversal only",
    ),
    "vat_weight": Key(
        0.0,
        "weight (times λ) of virtual adversarial training on the target, in adversarial training",
        low=0,
    ),
    "vat_radius": Key(1.0, "length of its moves: Euclidean, in units of intensity", above=0),
    **_dann_refine.KEYS,
    "backbone_ckpt_file": Key("", "eval.py: checkpoint of the backbone (best_backbone_t.ckpt)"),
    "classifier_ckpt_file": Key("", "eval.py: checkpoint of the classifier (best_class_classifier.ckpt)"),
}
