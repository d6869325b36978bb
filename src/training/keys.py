"""The configuration keys that every method's training has."""

from model_utils.key import Key
from src.training.precision import LEVELS
from src.training.schedules import RATE_MODES


def keys():
    """The keys of every method's training."""
    return {
        "optimizer": Key("adam", "SGD with momentum, or Adam", choices=("momentum", "adam")),
        "momentum": Key(0.9, "momentum of optimizer momentum", low=0, below=1),
        "weight_decay": Key(1e-5, "L2 penalty of the weights", low=0, below=1),
        "weight_decay_on": Key(
            "weights",
            "weights: not on biases and batch normalisations; all: on every parameter",
            choices=("weights", "all"),
        ),
        "lr_schedule": Key(
            "constant", "learning rate over a phase: constant, one_cycle, or cosine to 0", choices=RATE_MODES
        ),
        "backbone_lr_factor": Key(
            1.0, "learning rate of the backbone as a share of the others'", low=0, high=1
        ),
        "amp_level": Key(
            "O0",
            "float16 in training: O0 nowhere, O1 in convolutions and dense layers, O2 in all but batch "
            "normalisation, O3 everywhere; weights, evaluation and export stay float32",
            choices=LEVELS,
        ),
        "loss_scale": Key(
            1024.0, "factor of the loss at O1 to O3 (dynamic: at first); not used at O0", low=1
        ),
        "loss_scale_mode": Key(
            "static",
            "dynamic: gradients that overflow are skipped and halve the scale, 1000 good steps double it",
            choices=("static", "dynamic"),
        ),
        "gradient_accumulation": Key(1, "batches whose gradients are averaged for one step", low=1),
        "clip_grad_norm": Key(0.0, "largest Euclidean norm of all gradients together; 0: no limit", low=0),
        "validator_images": Key(
            500,
            "unlabelled target images that rules of selection look at in each evaluation; 0: none",
            low=0,
            volatile=True,
        ),
        "adapt_batch_norm": Key(
            False,
            "before each evaluation, batch normalisations that are trained get the statistics of unlabelled "
            "target images (AdaBN)",
        ),
        "cache_features": Key(
            False,
            "with freeze_backbone: compute the backbone's features of every image once, keep them in "
            "feature_folder, and train on them",
        ),
        "feature_views": Key(
            2, "with cache_features: augmented views of each training image beside the plain one", low=0
        ),
        "feature_folder": Key(
            "",
            "where features are kept, for all runs on the same images and network; empty: folder features "
            "beside output_dir",
            path=True,
            volatile=True,
        ),
        "ema_decay": Key(0.0, "decay of the average of weights that is evaluated; 0: none", low=0, below=1),
    }
