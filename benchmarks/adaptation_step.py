"""Training step of DANN on photographs with HarDNet-39DS, ours against PyTorch's, alternating in one run.

    python -m benchmarks.adaptation_step [--network hardnet39ds] [--size 160] [--batch 16]

The adversarial step of configs/dann_photos.yaml: backbone, a bottleneck of 256, class head, gradient reversal
and domain classifier, one Adam update, on as many images of each of two domains. Both sides start from the
same weights, get the same random images and use as many threads. Prints the median of each, the ratio of
medians, and the losses of the first steps. Needs PyTorch (CPU), which the project itself does not.
"""

import argparse

import numpy as np

from benchmarks import positive, report
from model_utils import cli

CLASSES, BOTTLENECK, STRENGTH, LR = 10, 256, 0.5, 1e-3
VARIANTS = ("39ds", "68ds", "68", "85")


def arrays(options):
    """A source and a target batch (N, 3, S, S) of normal random numbers, and labels (N,)."""
    rng = np.random.default_rng(0)
    shape = (options.batch, 3, options.size, options.size)
    source, target = (rng.standard_normal(shape, np.float32) for _ in range(2))
    return source, rng.integers(0, CLASSES, options.batch).astype(np.int32), target


def our_side(options):
    """({part: {parameter's name: its array}}, function that makes one update and returns its loss)."""
    from src.data.tasks import open_task
    from src.setup import settings as experiment
    from src.setup.place import set_up
    from src.train_cells import find_method

    given = {
        "config": "configs/dann_photos.yaml",
        "device_target": "CPU",
        "network": options.network,
        "image_size": options.size,
        "batch_size": options.batch,
        "bottleneck": BOTTLENECK,
        "pretrained": "none",
        # Both domains' images are replaced by random ones; these are there without a download.
        "source_dataset_name": "demo_digits",
        "target_dataset_name": "demo_photos",
        "validation_size": 0,
        "lr_schedule": "constant",
        "backbone_lr_factor": 1,
        "weight_decay": 0,
    }
    settings = experiment.load([f"--{name}={value}" for name, value in given.items()])
    place = set_up(settings)
    print("; ".join(place.notes))
    cell = find_method("dann")(settings, place, open_task(settings, place))
    phase = next(phase for phase in cell.phases if phase.name == "adapt")
    cell.start_phase(phase)
    parts = {"network": cell.trained, "domains": cell.parts["domain_classifier"]}
    values = {
        part: {p.name: p.asnumpy().copy() for p in network.get_parameters()}
        for part, network in parts.items()
    }
    source, labels, target = arrays(options)
    batch = {"source": (source, labels), "target": (target, None)}
    # The strength of the reversal is the step's own elsewhere; here it stays, as PyTorch's does.
    return values, lambda: float(cell._adapt_step(phase, batch, STRENGTH)["loss"])


def torch_side(values, options):
    """The same update in PyTorch, from the weights of `our_side`."""
    import torch

    from benchmarks.torch_dann import PhotoStep
    from src.ops import _library

    torch.set_num_threads(_library.threads())
    update = PhotoStep(options.network.removeprefix("hardnet"), CLASSES, BOTTLENECK, LR)
    update.load(values)
    source, labels, target = arrays(options)
    tensors = torch.from_numpy(source), torch.from_numpy(labels).long(), torch.from_numpy(target)
    return lambda: update(*tensors, STRENGTH)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=[f"hardnet{v}" for v in VARIANTS], default="hardnet39ds")
    parser.add_argument("--size", type=positive, default=160, help="side of the images (default 160)")
    parser.add_argument("--batch", type=positive, default=16, help="images of each domain (default 16)")
    parser.add_argument("--rounds", type=positive, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--steps", type=positive, default=1, help="steps of a round (default 1)")
    options = parser.parse_args()
    values, ours = our_side(options)
    sides = {"ours": ours, "PyTorch": torch_side(values, options)}
    n, size = options.batch, options.size
    name = f"DANN step, {options.network}, {n} + {n} images of {size}x{size}"
    report.side_by_side(name, sides, options)


if __name__ == "__main__":
    cli.run(main)
