"""The keys every experiment has. A method adds its recipe's keys in its own file (`KEYS`)."""

from model_utils.key import Key

COMMON = {
    "method": Key("dann", "training method: the name of a module in src/train_cells"),
    "experiment": Key("", "name in result.json; default: the configuration file's name", volatile=True),
    "output_dir": Key("outputs/dann", "folder a run writes into", path=True, volatile=True),
    "seed": Key(0, "seed of initial weights, data order, augmentation and dropout", low=0, high=2**31 - 1),
    # Device
    "device_target": Key(
        "auto",
        "auto takes Ascend, then GPU, then CPU, and logs which",
        choices=("auto", "Ascend", "GPU", "CPU"),
    ),
    "device_id": Key(0, "which device of its kind, for a run on one device", low=0, volatile=True),
    "mode": Key(
        "graph", "graph compiles the training step, pynative runs it op by op", choices=("graph", "pynative")
    ),
    "cpu_operator": Key(True, "on CPU: use the blocked-layout oneDNN operator where it can be built"),
    "sync_bn": Key(False, "several processes: batch normalisation over the batches of all of them"),
    # Data
    "eval_batch_size": Key(500, "images per evaluation step", low=1, volatile=True),
    # What a run logs and keeps
    "log_interval": Key(50, "steps between two logged steps", low=1, volatile=True),
    "eval_interval": Key(
        0, "steps between two evaluations while training; 0: after each epoch", low=0, volatile=True
    ),
    "save_checkpoint_steps": Key(0, "steps between two checkpoints; 0: by epochs", low=0, volatile=True),
    "save_checkpoint_epochs": Key(
        1, "epochs between two checkpoints, where they go by epochs", low=1, volatile=True
    ),
    "keep_checkpoint_max": Key(3, "checkpoints kept; the oldest is deleted first", low=1, volatile=True),
    "resume": Key(False, "continue from the newest good checkpoint of output_dir", volatile=True),
    "tensorboard": Key(True, "write TensorBoard events", volatile=True),
    "report": Key(
        False,
        "write report.html: examples, curves, features, predictions for the target, commands",
        volatile=True,
    ),
    "plot_features": Key(
        False, "draw a 2-D embedding of the features before and after training", volatile=True
    ),
    # ModelArts
    "enable_modelarts": Key(
        False, "run as a ModelArts job: copy data_url in, and output_dir out to train_url", volatile=True
    ),
    "data_url": Key(
        "", "ModelArts: where the data are, obs://bucket/folder or a folder", path=True, volatile=True
    ),
    "train_url": Key(
        "",
        "ModelArts: where output_dir is copied to, obs://bucket/folder or a folder",
        path=True,
        volatile=True,
    ),
    "local_data_path": Key(
        "/cache/data", "ModelArts: folder on this host that data_url is copied into", path=True, volatile=True
    ),
    # eval.py
    "ckpt_path": Key("", "eval.py: a checkpoint, or a run's output_dir", path=True, volatile=True),
    "result": Key("", "eval.py: write the accuracies to this JSON file", path=True, volatile=True),
    # export.py
    "ckpt_file": Key("", "export.py: a checkpoint, or a run's output_dir", path=True, volatile=True),
    "file_name": Key(
        "",
        "export.py: output without its ending; default: <experiment> in output_dir",
        path=True,
        volatile=True,
    ),
    "file_format": Key("MINDIR", "export.py: format", choices=("MINDIR", "ONNX", "AIR"), volatile=True),
}

# Names that earlier releases used for one of these keys; src/setup/earlier_names.py has all the others.
ALIASES = {"isModelArts": "enable_modelarts"}
