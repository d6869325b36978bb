"""Names that the documents of the published models and earlier releases use, and what takes their place here.

docs/earlier_names.md shows them all, beside the published commands. A name either stands for a key of ours
(its values are converted where they have other names), or is gone: then some values say what happens anyway
and are accepted, and any other is answered by one line.
"""

import dataclasses
import os

from model_utils.errors import UserError
from model_utils.key import FALSE, TRUE, Alias
from model_utils.keys import ALIASES

# The configuration of each published model, for hints.
RECIPES = {
    "hardnet": "configs/hardnet85_imagenet.yaml",
    "adda": "configs/adda_usps_mnist.yaml",
    "masf": "configs/masf_pacs.yaml",
    "dann": "config.yaml",
}


@dataclasses.dataclass(frozen=True)
class Gone:
    """A published name that has no counterpart.

    Attributes:
        answer: the end of the line that answers it: what takes its place, and what to type.
        accepted: values, as text in lower case, that say what happens anyway.
        programs: where every value is accepted.
    """

    answer: str
    accepted: tuple = ()
    programs: tuple = ()

    def check(self, name, value, where, program):
        """UserError unless the value changes nothing."""
        if str(value).lower() not in self.accepted and program not in self.programs:
            raise UserError(f"{name} ({where}): {self.answer}")


def folder_of(value):
    """The folder of a checkpoint's path, or the folder itself: `save_checkpoint_path` was given as either."""
    text = str(value)
    return (os.path.dirname(text) or ".") if text.endswith(".ckpt") else text


def renamed(names):
    """A function that exchanges the values in `names` and leaves the others to the key's own check."""
    return lambda value: names.get(str(value).lower(), value)


PRECISION_MODES = {
    "force_fp32": "O0",
    "must_keep_origin_dtype": "O0",
    "allow_mix_precision": "O2",
    "force_fp16": "O3",
}

# Of every method.
COMMON = {
    **ALIASES,
    "class_num": "num_classes",
    "pre_ckpt_path": "pretrained",
    "bvlc_path": "pretrained",
    "model_root": "output_dir",
    "save_checkpoint_path": Alias("output_dir", folder_of),
    "imageSize": "image_size",
    "momentum_rate": "momentum",
    "lr_decay_mode": Alias("lr_decay_mode", renamed({"steps": "step"})),
    "Linear": Gone(
        "the size of the first dense layer follows from the network; leave it out", accepted=("800",)
    ),
    "save_checkpoint": Gone(
        "checkpoints are always written; --keep_checkpoint_max 1 keeps only the last one", accepted=TRUE
    ),
    "distribute": Gone(
        "a script starts several processes: bash scripts/run_distribute_train.sh DATASET_PATH "
        "RANK_TABLE_FILE on Ascend, bash scripts/run_distribute_train_gpu.sh N DEVICE_IDS DATASET_PATH on "
        "GPU; one process is --distribute false",
        accepted=FALSE,
    ),
    "dataset_type": Gone(
        "image folders are recognised by themselves; give their folder with --dataset_path",
        accepted=("imagenet", "imagenet2012"),
    ),
    "config_path": Gone("a configuration is given with --config FILE: --config configs/dann_best.yaml"),
}

_MASF = {
    "dataroot": "domains_image_root",
    "logdir": "output_dir",
    "WEIGHTS_PATH": "pretrained",
    "precision_mode": Alias("amp_level", PRECISION_MODES),
}

# Of one method.
BY_METHOD = {
    "dann": {
        "init_learning_rate": "lr",
        "epoch": "n_epoch",
        "pre_model_path": "pretrained",
        "source_dataset_path": "source_image_root",
        "target_dataset_path": "target_image_root",
    },
    "adda": {
        "weights": "source_ckpt_file",
        "gpu": "device_id",
        "src_dataset": "source_dataset_name",
        "tgt_dataset": "target_dataset_name",
        "split": Gone(
            "training reads the training split; evaluate with python eval.py --ckpt_path FOLDER",
            accepted=("train",),
            programs=("eval.py", "eval_onnx.py"),
        ),
        "adversary_relu": Gone("the discriminator always has ReLU; leave it out", accepted=TRUE),
        "stepsize": Gone("learning rates follow --lr_schedule, constant or one_cycle"),
        "num_epochs_pre": Gone("source training is counted in steps: --iterations N"),
        "num_epochs": Gone("adaptation is counted in steps: --adversary_iterations N"),
        "d_learning_rate": Gone("target network and discriminator have one rate: --adversary_lr RATE"),
        "c_learning_rate": Gone("target network and discriminator have one rate: --adversary_lr RATE"),
    },
    "masf": _MASF,
    "deepall": _MASF,
}

# Names that every method understands, but only the documents of one model use: with no method chosen, that
# one is meant.
OWNERS = {
    "class_num": "hardnet",
    "pre_ckpt_path": "hardnet",
    "distribute": "hardnet",
    "dataset_type": "hardnet",
    "bvlc_path": "masf",
}


def _table(method, own):
    return {**COMMON, **BY_METHOD.get(method, {}), **own}


def aliases(method, own):
    """{earlier name: key it stands for, or an Alias} of a method, whose own ALIASES are `own`."""
    return {name: key for name, key in _table(method, own).items() if not isinstance(key, Gone)}


def gone(method, own):
    """{earlier name: Gone} of a method."""
    return {name: answer for name, answer in _table(method, own).items() if isinstance(answer, Gone)}


def method_of(name):
    """The method whose documents use `name`, or None."""
    return next((method for method, names in BY_METHOD.items() if name in names), None)


def advice(method):
    """What to type to choose a method, in words."""
    recipe = f" or --config {RECIPES[method]}" if method in RECIPES else ""
    return f"add --method {method}{recipe}"


def check_owner(given, method):
    """With no method chosen, UserError for a name that belongs to another published model than `method`."""
    for name in given:
        owner = OWNERS.get(name, method)
        if owner != method:
            raise UserError(
                f"{name} (command line): it belongs to the published model {owner}, and no model was chosen; "
                f"add --config {RECIPES[owner]}"
            )
