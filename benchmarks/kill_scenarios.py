"""The runs that benchmarks/kill_drill.py kills."""

import dataclasses
import sys

from benchmarks import ends
from model_utils import checkpoint

EVERY_STEP = {"save_checkpoint_steps": 1, "eval_interval": 10**9, "tensorboard": "false", "log_interval": 1}
SWEEP_SPACE = "lr: {low: 0.001, high: 0.01, log: true}\nmcc_weight: [0.5, 1.0]\n"


@dataclasses.dataclass
class Scenario:
    """A run to be killed: its configuration, keys and steps; `processes` of it, or a sweep of such runs."""

    name: str
    config: str
    steps: int
    keys: dict = dataclasses.field(default_factory=dict)
    processes: int = 1
    trials: int = 0

    def words(self, folder):
        """The command of one start in a folder."""
        keys = {
            "config": self.config,
            "device_target": "CPU",
            **EVERY_STEP,
            **self.keys,
            "output_dir": folder,
        }
        if self.keys.get("cache_features"):
            keys["feature_folder"] = folder / "features"
        if self.trials:
            space = folder.parent / "space.yaml"
            space.write_text(SWEEP_SPACE, encoding="utf-8")
            keys |= {"space": space, "trials": self.trials}
            del keys["log_interval"]
            return [sys.executable, "sweep.py", *options(keys)]
        if checkpoint.listed(folder):  # killed before its first checkpoint it starts again
            keys["resume"] = "true"
        if self.processes == 1:
            return [sys.executable, "train.py", *options(keys)]
        return ["bash", "scripts/run_train_cpu.sh", str(self.processes), *options(keys)]

    def end(self, folder):
        """All that a finished run leaves, to be compared; see benchmarks/ends.py."""
        return (ends.of_sweep if self.trials else ends.of_run)(folder, self.steps)


def scenarios(data, mode="graph"):
    """Every Scenario. data: a folder for the images of HarDNet. mode: the key, of all runs."""
    tiny = "tests/tiny/{}.yaml"
    dann = {"n_pretrain_epochs": 1, "n_epoch": 1, "steps_per_epoch": 12}
    cached = {"freeze_backbone": "true", "cache_features": "true", "pretrained": "none", "iterations": 24}
    adda = {"iterations": 10, "discriminator_iterations": 4, "adversary_iterations": 10}
    hardnet = {"epoch_size": 8, "dataset_path": data}
    masf = {"train_iterations": 24, "meta_order": "first"}
    found = [
        Scenario("dann", tiny.format("dann"), 24, dann),
        Scenario("kept features", tiny.format("mcc"), 24, cached),
        Scenario("dann, 2 processes", tiny.format("dann"), 24, dann, processes=2),
        Scenario("sweep", tiny.format("mcc"), 4, trials=2),
        Scenario("masf", tiny.format("masf"), 24, masf),
        Scenario("adda", tiny.format("adda"), 24, adda),
        Scenario("hardnet", tiny.format("hardnet"), 24, hardnet),
        Scenario("kept features, 2 processes", tiny.format("mcc"), 24, cached, processes=2),
        Scenario("masf, 2 processes", tiny.format("masf"), 24, masf, processes=2),
    ]
    return [dataclasses.replace(one, keys={**one.keys, "mode": mode}) for one in found]


def options(keys):
    """{'lr': 1} -> ['--lr=1']."""
    return [f"--{name}={value}" for name, value in keys.items()]
