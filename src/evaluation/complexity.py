"""Parameters, multiply-accumulates and memory traffic of a network: `python -m src.evaluation.complexity`."""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import dataclasses

import mindspore as ms
import numpy as np
from mindspore import nn

from src.evaluation.evaluate import evaluating
from src.ops import plain


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Costs of one image.

    Attributes:
        parameters: trainable values.
        macs: multiply-accumulates of all convolutions and dense layers, additions of a bias not counted.
        cio: input plus output elements of all convolutions, the HarDNet paper's measure of memory traffic
            (Chao et al. 2019, arXiv 1909.00948, section 3.1).
    """

    parameters: int
    macs: int
    cio: int


def complexity(network, size):
    """Count what `network` does to one image, by running it on one.

    Args:
        network: nn.Cell, images (N, C, H, W) -> anything; run in evaluation mode, then as it was.
        size: side of a square image of 3 channels, or (channels, height, width).
    """
    shape = (3, size, size) if isinstance(size, int) else tuple(size)
    totals = {"macs": 0, "cio": 0}

    def count(cell, inputs, output):
        weight = cell.weight.shape
        # Each output element takes one multiply-accumulate for every weight that it is made with.
        totals["macs"] += output.size * int(np.prod(weight[1:]))
        if isinstance(cell, nn.Conv2d):
            totals["cio"] += inputs[0].size + output.size

    cells = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.Conv2d | nn.Dense)]
    with plain(network), evaluating(network):
        handles = [cell.register_forward_hook(count) for cell in cells]
        try:
            network(ms.Tensor(np.zeros((1, *shape), np.float32)))
        finally:
            for handle in handles:
                handle.remove()
    return Complexity(sum(p.size for p in network.trainable_params()), totals["macs"], totals["cio"])


def main():
    """Print the table of the HarDNet variants at 224 x 224, 1000 classes."""
    from src import networks
    from src.networks.hardnet import VARIANTS
    from src.ops import tune_plain
    from src.setup import settings

    tune_plain()
    ms.set_device("CPU")
    print(f"{'HarDNet':8} {'parameters':>12} {'GMAC':>7} {'CIO, million':>13}")
    for variant in VARIANTS:
        config = settings.load(["--method=hardnet", f"--variant={variant}"])
        cost = complexity(networks.build(config, 1000), 224)
        print(f"{variant:8} {cost.parameters:12,} {cost.macs / 1e9:7.3f} {cost.cio / 1e6:13.2f}")


if __name__ == "__main__":
    from model_utils.cli import run

    run(main)
