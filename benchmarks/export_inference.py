"""The exported ONNX file against PyTorch, alternating in one run: python -m benchmarks.export_inference

For each variant: a network with random weights and running statistics is exported (free batch) and run by
onnxruntime; the same weights in the PyTorch network are run in evaluation mode without gradients ("eager").
Both take images of 224 x 224 in memory and as many threads. Prints how far their logits are apart, the median
milliseconds of each, and how many times as fast the exported file is. Needs PyTorch (CPU), which the project
itself does not.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import positive, report
from benchmarks.hardnet_step import hardnet, load
from benchmarks.measure import timed
from model_utils import cli
from model_utils.errors import UserError

VARIANTS = ("39ds", "68ds", "68", "85")
CLASSES, WARM_UP = 1000, 2
TOLERANCE = 1e-4  # of the logits, relative to the largest


def our_network(variant, size):
    """A HarDNet in evaluation mode whose batch normalisations do something."""
    import mindspore as ms

    ms.set_seed(0)
    network, rng = hardnet(variant, size, CLASSES).set_train(False), np.random.default_rng(0)
    ranges = {"gamma": (0.8, 1.2), "beta": (-0.3, 0.3)}
    ranges |= {"moving_mean": (-0.3, 0.3), "moving_variance": (0.3, 0.6)}
    for parameter in network.get_parameters():
        low, high = ranges.get(parameter.name.rsplit(".", 1)[-1], (None, None))
        if low is not None:
            values = rng.uniform(low, high, parameter.shape).astype(np.float32)
            ms.ops.assign(parameter, ms.Tensor(values))
    return network


def onnx_side(network, options):
    """Function float32 images (N, 3, S, S) -> logits: `network` exported, in onnxruntime."""
    import onnxruntime

    from src.exported.exporting import export

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    # Its threads would go on waiting busily for a while, at the other side's cost.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        compared = arrays(2, options.size)
        path, difference = export(network, compared, Path(folder) / "network", "ONNX")
        print(f"  exported, {difference:.1e} from MindSpore's logits, {path.stat().st_size / 1e6:.1f} MB")
        session = onnxruntime.InferenceSession(
            path.read_bytes(), session_options, providers=["CPUExecutionProvider"]
        )
    return lambda images: session.run(None, {"images": images})[0]


def torch_side(network, options):
    """The same function of the PyTorch network with the weights of `network`."""
    import torch

    from benchmarks.torch_hardnet import TorchHarDNet

    torch.set_num_threads(options.threads)
    model = TorchHarDNet(network.backbone.variant, network.classes).eval()
    load(model, network)

    def run(images):
        with torch.no_grad():
            return model(torch.from_numpy(images)).numpy()

    return run


def arrays(batch, size):
    """Random images (N, 3, S, S), float32."""
    return np.random.default_rng(batch).standard_normal((batch, 3, size, size), np.float32)


def measured(ours, theirs, batch, options):
    """Median (milliseconds of ours, of theirs) a batch, over alternating rounds.

    Raises:
        UserError: the logits differ, so that there is nothing to compare.
    """
    images = arrays(batch, options.size)
    left, right = ours(images), theirs(images)
    apart = np.abs(left - right).max() / np.abs(right).max()
    if not apart <= TOLERANCE:
        raise UserError(f"the logits of both sides are {apart:.1e} apart, relative to the largest")
    steps = max(1, options.images // batch)
    for run in (ours, theirs):
        timed(lambda run=run: run(images), WARM_UP)
    sides = [lambda run=run: timed(lambda: run(images), steps) for run in (ours, theirs)]
    rounds = [[side() for side in sides] for _ in range(options.rounds)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--batches", nargs="+", type=positive, default=(1, 16))
    parser.add_argument("--size", type=positive, default=224, help="side of the images (default 224)")
    parser.add_argument("--rounds", type=positive, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--images", type=positive, default=16, help="images of a round (default 16)")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    import mindspore as ms

    from src import ops

    ops.tune_plain()
    ms.set_device("CPU")
    print(
        f"{options.threads} threads, median of {options.rounds} alternating rounds of {options.images} images"
    )
    for variant in options.variants:
        print(f"HarDNet-{variant}")
        network = our_network(variant, options.size)
        ours, theirs = onnx_side(network, options), torch_side(network, options)
        for batch in options.batches:
            own, other = measured(ours, theirs, batch, options)
            name = f"HarDNet-{variant} inference, batch {batch}"
            report.figure(f"{name}, exported", f"{own:.1f}", "ms")
            report.figure(f"{name}, PyTorch eager", f"{other:.1f}", "ms")
            report.figure(f"{name}, PyTorch : exported", f"{other / own:.2f}")


if __name__ == "__main__":
    cli.run(main)
