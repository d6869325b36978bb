"""Training step of HarDNet, ours against PyTorch's, alternating in one run: python -m benchmarks.hardnet_step

Forward, backward and SGD with momentum and weight decay, both sides from the same weights on the same images,
with as many threads each. Prints the median of each, the ratio of medians, how far the losses of the first
steps are apart, and the peak memory of each side, in a process of its own. `--plain` adds MindSpore's own
operators, in another process, because oneDNN's instruction set is chosen once per process. `--inference`
times the forward pass in evaluation mode instead. Needs PyTorch (CPU), which the project itself does not.
"""

import argparse
import json
import statistics
import sys

import numpy as np

from benchmarks import positive, report
from benchmarks.measure import Other, resident, timed
from model_utils import cli

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 6e-5
CLASSES, WARM_UP = 10, 3
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def arrays(options, seed=0):
    """Images (N, 3, S, S) as float32 and labels (N,) as int32."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((options.batch, 3, options.size, options.size), np.float32)
    return images, rng.integers(0, CLASSES, options.batch).astype(np.int32)


def hardnet(variant, size, classes):
    """The untrained network of a variant, for images of `size` x `size`."""
    from src import networks
    from src.setup import settings

    given = ["--method=hardnet", f"--variant={variant}", f"--image_size={size}"]
    return networks.build(settings.load(given), classes)


def our_side(options):
    """(network, function that makes one step of ours and returns its loss)."""
    import mindspore as ms

    from benchmarks.cells import ClassifierStep, Evaluation
    from src import ops

    ms.set_device("CPU")
    print(ops.prepare(), file=sys.stderr)
    ms.set_seed(0)
    network = hardnet(options.variant, options.size, CLASSES)
    network.set_train(not options.inference)
    ops.accelerate(network)
    images, labels = map(ms.Tensor, arrays(options))
    if options.inference:
        evaluation = Evaluation(network)
        return network, lambda: float(evaluation.step(images)[0, 0])
    training = ClassifierStep(network, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
    return network, lambda: float(training.step(images, labels))


def torch_side(options, network=None):
    """The same step in PyTorch, from the weights of `network`, or of its own."""
    import torch

    from benchmarks.torch_hardnet import TorchHarDNet
    from src.ops import _library

    torch.set_num_threads(_library.threads())
    model = TorchHarDNet(options.variant, CLASSES).train(not options.inference)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # masks differ; without any, the losses can be compared
    if network is not None:
        load(model, network)
    images, labels = map(torch.from_numpy, arrays(options))
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )

    def train():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels.long())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def infer():
        with torch.inference_mode():
            return float(model(images)[0, 0])

    return infer if options.inference else train


def load(model, network):
    """Copy our weights into the PyTorch model: only norms and classifier are named differently."""
    import torch

    values = {}
    for parameter in network.get_parameters():
        stem, kind = parameter.name.rsplit(".", 1)
        stem = f"base.{len(network.backbone.base)}.3" if stem == "classifier" else stem
        values[f"{stem}.{NORM.get(kind, kind)}"] = torch.from_numpy(parameter.asnumpy().copy())
    missing, extra = model.load_state_dict(values, strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing), (missing, extra)


def serve(options):
    """A process of its own: every line on standard input is answered by the milliseconds of some steps.

    The first answer is its memory: [before the network is built, peak] in megabytes.
    """
    if options.serve == "torch":
        import torch  # noqa: F401
    else:
        import mindspore  # noqa: F401
    before = resident("VmRSS")
    step = torch_side(options) if options.serve == "torch" else our_side(options)[1]
    timed(step, WARM_UP)
    print(json.dumps([before, resident("VmHWM")]), flush=True)
    for _ in sys.stdin:
        print(json.dumps(timed(step, options.steps)), flush=True)


def other_process(side, options, **environment):
    """One that runs `serve`; its first answer is its memory."""
    words = ["-m", "benchmarks.hardnet_step", "--serve", side]
    words += ["--variant", options.variant, "--size", str(options.size), "--batch", str(options.batch)]
    words += ["--steps", str(options.steps), *(["--inference"] if options.inference else [])]
    return Other(words, **environment)


def peak_memory(side, options):
    """(before the network is built, peak) in megabytes, of a process that makes a few steps."""
    other = other_process(side, options)
    other.close()
    return other.first


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=("39ds", "68ds", "68", "85"), default="39ds")
    parser.add_argument("--size", type=positive, default=128, help="side of the images (default 128)")
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--rounds", type=positive, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--steps", type=positive, default=3, help="steps of a round (default 3)")
    parser.add_argument("--inference", action="store_true", help="the forward pass in evaluation mode")
    parser.add_argument("--plain", action="store_true", help="also MindSpore's own operators")
    parser.add_argument("--serve", choices=("ours", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options)

    memory = {side: peak_memory(side, options) for side in ("ours", "torch")}
    network, ours = our_side(options)
    theirs = torch_side(options, network)
    sides = {"ours": lambda: timed(ours, options.steps), "PyTorch": lambda: timed(theirs, options.steps)}
    losses = np.array([(ours(), theirs()) for _ in range(WARM_UP)])
    plain = None
    if options.plain:
        plain = other_process("ours", options, DA_CPU_OPS="0")
        sides["plain"] = plain.ask
    rounds = [[measure() for measure in sides.values()] for _ in range(options.rounds)]
    medians = dict(zip(sides, map(statistics.median, zip(*rounds, strict=True)), strict=True))

    what = "inference" if options.inference else "training step"
    name = f"HarDNet-{options.variant} {what}, {options.batch} images of {options.size}x{options.size}"
    print(f"median of {options.rounds} alternating rounds of {options.steps} steps")
    report.ratio(name, medians["ours"], medians["PyTorch"], "ms")
    if "plain" in medians:
        report.figure(f"{name}, plain operators", f"{medians['plain']:.1f}", "ms")
        report.figure(f"{name}, plain operators : PyTorch", f"{medians['plain'] / medians['PyTorch']:.2f}")
    value = "logit" if options.inference else "loss"
    shown = ", ".join(f"{a:.5f} {b:.5f}" for a, b in losses)
    print(f"{value} of the first {WARM_UP} steps, ours and PyTorch's: {shown}")
    for side, (before, peak) in memory.items():
        report.figure(f"{name}, peak memory, {side}", f"{peak:.0f}", "MB")
        print(f"  {peak - before:.0f} MB of it after the imports")
    if plain is not None:
        _, peak = plain.first
        plain.close()
        report.figure(f"{name}, peak memory, plain operators", f"{peak:.0f}", "MB")
    return None


if __name__ == "__main__":
    cli.run(main)
