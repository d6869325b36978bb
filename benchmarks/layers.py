"""Forward and backward time of single convolutions: with the CPU operator, without it, and in PyTorch.

    python -m benchmarks.layers [--rounds 5] [--only NAME …]

Each round times the three in turn on the same data; the table shows medians over the rounds and their ratios.
"Without" runs in a process of its own, because oneDNN's instruction set is chosen once per process.
Needs PyTorch (CPU), which the project itself does not.
"""

import argparse
import dataclasses
import json
import sys
import time

import numpy as np

from benchmarks import positive
from benchmarks.measure import Other
from model_utils import cli


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution and the input it gets: (N, C, H, W); `first` wants no gradient of the input."""

    shape: tuple
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    group: int = 1
    first: bool = False


LAYERS = {
    "conv 3x3 64->128": Layer((16, 64, 32, 32), 128, 3, padding=1),
    "AlexNet conv2 5x5 96->256, 2 groups": Layer((16, 96, 27, 27), 256, 5, padding=2, group=2),
    "depthwise 3x3, 128 channels, stride 1": Layer((16, 128, 32, 32), 128, 3, padding=1, group=128),
    "depthwise 3x3, 128 channels, stride 2": Layer((16, 128, 32, 32), 128, 3, 2, 1, group=128),
    "1x1 128->256": Layer((16, 128, 32, 32), 256, 1),
    "DANN conv1 5x5 3->64": Layer((128, 3, 28, 28), 64, 5, first=True),
    "DANN conv2 5x5 64->50": Layer((128, 64, 12, 12), 50, 5),
}


def arrays(layer):
    """x, weight, bias and the output's gradient as float32 arrays."""
    rng = np.random.default_rng(0)
    side = (layer.shape[2] + 2 * layer.padding - layer.kernel) // layer.stride + 1
    weight = (layer.outputs, layer.shape[1] // layer.group, layer.kernel, layer.kernel)
    shapes = (layer.shape, weight, weight[:1], (layer.shape[0], layer.outputs, side, side))
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def mindspore_runner(layer):
    """A function that runs the layer once, forward and backward, compiled; returns loss and gradients."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from benchmarks.cells import WeightedSum
    from src import ops

    x, weight, bias, gradient = arrays(layer)
    conv = nn.Conv2d(
        layer.shape[1],
        layer.outputs,
        layer.kernel,
        layer.stride,
        "pad",
        layer.padding,
        group=layer.group,
        has_bias=True,
    )
    conv.weight.set_data(Tensor(weight))
    conv.bias.set_data(Tensor(bias))
    ops.accelerate(conv)
    step = WeightedSum(conv, input_gradient=not layer.first).step
    inputs = Tensor(x), Tensor(gradient)

    def run():
        results = step(*inputs)
        results[0].asnumpy()  # waits until all are there
        return results

    assert ms.get_context("device_target") == "CPU"
    return run


def torch_runner(layer):
    """The same in PyTorch."""
    import torch

    x, weight, bias, gradient = (torch.tensor(array) for array in arrays(layer))
    for leaf in (weight, bias):
        leaf.requires_grad_()
    x.requires_grad_(not layer.first)
    wanted = (weight, bias) if layer.first else (weight, bias, x)

    def run():
        y = torch.nn.functional.conv2d(
            x, weight, bias, stride=layer.stride, padding=layer.padding, groups=layer.group
        )
        return [y, *torch.autograd.grad(y, wanted, gradient)]

    return run


def milliseconds(run):
    """Median over as many runs as fit into about half a second, three at least, after one to warm up."""
    run()
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def serve_plain():
    """The process without the operator: a layer's name on standard input, its time on standard output."""
    from src import ops

    line = ops.prepare()
    runners = {}
    print(json.dumps(line), flush=True)
    for request in sys.stdin:
        name = request.strip()
        if name not in runners:
            runners[name] = mindspore_runner(LAYERS[name])
        print(json.dumps(milliseconds(runners[name])), flush=True)


def largest_difference(ours, theirs):
    """Of all gradients, relative to each one's largest magnitude; the first entries are loss and output."""
    pairs = [(a.asnumpy(), b.detach().numpy()) for a, b in zip(ours[1:], theirs[1:], strict=True)]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=5, help="alternating rounds per layer (default 5)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(LAYERS), help="these layers only")
    parser.add_argument("--serve-plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_plain:
        return serve_plain()

    import torch

    from src import ops
    from src.ops import _library

    print(ops.prepare())
    torch.set_num_threads(_library.threads())
    plain = Other(["-m", "benchmarks.layers", "--serve-plain"], DA_CPU_OPS="0")
    print(f"without: {plain.first}\nPyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    heads = f"{'with':>9}{'without':>9}{'PyTorch':>9}{'with:PyT.':>10}{'difference':>12}"
    print(f"{'forward + backward, ms':40}{heads}")
    for name in options.only or LAYERS:
        ours, theirs = mindspore_runner(LAYERS[name]), torch_runner(LAYERS[name])
        difference = largest_difference(ours(), theirs())
        times = np.array(
            [[milliseconds(ours), plain.ask(name), milliseconds(theirs)] for _ in range(options.rounds)]
        )
        a, b, c = np.median(times, axis=0)
        print(f"{name:40}{a:9.1f}{b:9.1f}{c:9.1f}{a / c:10.2f}{difference:12.1e}", flush=True)
    plain.close()
    return None


if __name__ == "__main__":
    cli.run(main)
