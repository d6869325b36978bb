"""Boot file of a ModelArts training job: what the platform passes becomes `train.py --enable_modelarts true`.

    python modelarts_entry.py --data_url obs://bucket/data [--train_url obs://bucket/runs/1] [--key value …]

`--data_url` alone is enough. Options that train.py does not know, such as --num_gpus and --init_method, are
the platform's own: they are named and not used. docs/modelarts.md has the steps for one device and for eight.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import sys

from model_utils import cli, config


def translated(argv):
    """(options of train.py, names that were left out) of the platform's command line."""
    from src.setup import settings as experiment

    given = config.read_arguments(argv)
    shown = {name: given.pop(name) for name in ("help", "version", "config") if name in given}
    known = experiment.known_names({**given, **shown})
    left_out = [name for name in given if name not in known]
    kept = {name: value for name, value in {**shown, **given}.items() if name not in left_out}
    if not {"enable_modelarts", "isModelArts"} & kept.keys():
        kept["enable_modelarts"] = "true"
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in kept.items()]
    return options, left_out


def main():
    """The command."""
    import train

    options, left_out = translated(sys.argv[1:])
    if left_out:
        print(f"not used, because train.py has no such option: {', '.join(f'--{name}' for name in left_out)}")
    print(f"+ python train.py {' '.join(options)}", flush=True)
    sys.argv = ["train.py", *options]
    return train.main()


if __name__ == "__main__":
    cli.run(main)
