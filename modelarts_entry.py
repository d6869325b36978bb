"""Boot file of a ModelArts training job: what the platform passes becomes `train.py --enable_modelarts true`.

    python modelarts_entry.py --data_url obs://bucket/data [--train_url obs://bucket/runs/1] [--key value …]

`--data_url` alone is enough. Options that train.py does not know, such as --num_gpus and --init_method, are
the platform's own: they are named and not used. A job on several devices runs this file once for each device;
the one of device 0 starts a process on every device of the rank table. docs/modelarts.md has the steps.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import os
import sys

from model_utils import cli, config

FORM = "RANK_TABLE_FILE=@rank_table"


def translated(argv):
    """(options of train.py, names that were left out) of the platform's command line."""
    from model_utils.launch import OWN_OPTIONS
    from src.setup import settings as experiment

    given = config.read_arguments(argv)
    known = {*experiment.known_names(given), *OWN_OPTIONS, "config", "help", "version"}
    left_out = [name for name in given if name not in known]
    kept = {name: value for name, value in given.items() if name in known}
    if not {"enable_modelarts", "isModelArts"} & kept.keys():
        kept["enable_modelarts"] = True
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in kept.items()]
    return options, left_out


def main():
    """The command."""
    from model_utils import launch

    options, left_out = translated(sys.argv[1:])
    if left_out:
        names = ", ".join(f"--{name}" for name in left_out)
        print(f"not used, because train.py has no such option: {names}", flush=True)
    arguments = ["--program", "train.py", "--target", "auto", "--name", "modelarts_entry.py"]
    if int(os.environ.get("RANK_SIZE") or 1) == 1:
        return launch.main([*arguments, "--", *options])
    if os.environ.get("ASCEND_DEVICE_ID", "0") != "0":
        print("nothing to do here: the process of device 0 starts those of all devices")
        return 0
    return launch.main([*arguments, "--form", FORM, "--", os.environ.get("RANK_TABLE_FILE", ""), *options])


if __name__ == "__main__":
    cli.run(main)
