"""Training step of a network of photographs, ours against PyTorch's, alternating in one run.

    python -m benchmarks.network_step --network efficientnet_lite0 [--inference] [--size 224] [--batch 32]
    python -m benchmarks.network_step --network mindcv/resnet18 --size 128

Forward, backward and SGD with momentum and weight decay, both sides from the same weights on the same images,
with as many threads each; `--inference` times the forward pass in evaluation mode instead. EfficientNet has
its published weights. Prints the median of each, the ratio of medians, and how far the losses (or logits) of
the first steps are apart. Needs PyTorch (CPU), which the project itself does not.
"""

import argparse
import importlib

import numpy as np

from benchmarks import positive, report
from model_utils import cli

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 6e-5
CLASSES = 1000
THEIRS = {  # network: module of its PyTorch side, with model(classes) and load(model, values)
    "efficientnet_lite0": "benchmarks.torch_efficientnet",
    "mindcv/resnet18": "benchmarks.torch_resnet",
}


def arrays(options):
    """Images (N, 3, S, S) as float32 and labels (N,) as int32."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((options.batch, 3, options.size, options.size), np.float32)
    return images, rng.integers(0, CLASSES, options.batch).astype(np.int32)


def our_network(name):
    """The Classifier, with the weights that ship with a dependency where there are some."""
    import mindspore as ms

    from src import networks

    ms.set_seed(0)
    family, variant = networks.find(name)
    preparation = family.preparation(variant, None)
    backbone = family.backbone(variant, None, preparation)
    head = family.head(backbone, CLASSES, None)
    network = networks.Classifier(backbone, None, head, preparation, family)
    values = family.packaged(variant)
    for parameter in network.get_parameters() if values else ():
        parameter.set_data(ms.Tensor(values[parameter.name]))
    return network


def our_side(network, options):
    """A function that makes one step and returns its loss, or a logit."""
    import mindspore as ms

    from benchmarks.cells import ClassifierStep, Evaluation
    from src import ops

    ops.accelerate(network)
    network.set_train(not options.inference)
    images, labels = map(ms.Tensor, arrays(options))
    if options.inference:
        evaluation = Evaluation(network)
        return lambda: evaluation.step(images).asnumpy().ravel()[:1000].max()
    training = ClassifierStep(network, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
    return lambda: float(training.step(images, labels))


def torch_side(values, options):
    """The same in PyTorch, from the weights {our name: array}."""
    import torch

    from src.ops import _library

    torch.set_num_threads(_library.threads())
    theirs = importlib.import_module(THEIRS[options.network])
    model = theirs.model(CLASSES).train(not options.inference)
    theirs.load(model, values)
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
            return model(images).numpy().ravel()[:1000].max()

    return infer if options.inference else train


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=THEIRS, default="efficientnet_lite0")
    parser.add_argument("--size", type=positive, default=224, help="side of the images (default 224)")
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--rounds", type=positive, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--steps", type=positive, default=1, help="steps of a round (default 1)")
    parser.add_argument("--inference", action="store_true", help="the forward pass in evaluation mode")
    options = parser.parse_args()
    import mindspore as ms

    from src import ops

    ms.set_device("CPU")
    print(ops.prepare())
    network = our_network(options.network)
    values = {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}
    sides = {"ours": our_side(network, options), "PyTorch": torch_side(values, options)}
    what = "inference" if options.inference else "training step"
    name = f"{options.network} {what}, {options.batch} images of {options.size}x{options.size}"
    report.side_by_side(name, sides, options, "largest logit" if options.inference else "loss")


if __name__ == "__main__":
    cli.run(main)
