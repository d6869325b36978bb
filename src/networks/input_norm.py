"""Images in [0, 1] to the input of the digit networks, inside the network."""

from mindspore import nn, ops

from model_utils.key import Key

KEYS = {
    "input_norm": Key(
        "none",
        "instance: each image to mean 0 and deviation 1 per channel; none: only [0, 1] to [-1, 1]; "
        "unit: [0, 1] as it is",
        choices=("none", "instance", "unit"),
    ),
}


class InputNorm(nn.Cell):
    """Images in [0, 1] -> network input, inside the network so that an exported model needs no recipe.

    Args:
        kind: "none" maps [0, 1] to [-1, 1]; "unit" leaves [0, 1] as it is; "instance" subtracts each image's
            mean and divides by its standard deviation, per channel (Ulyanov et al. 2016, arXiv 1607.08022,
            without affine part).

    Inputs and outputs: float32 (N, C, H, W).
    """

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def construct(self, images):
        if self.kind == "unit":
            return images
        if self.kind == "none":
            return images * 2.0 - 1.0
        centred = images - ops.mean(images, (2, 3), True)
        variance = ops.mean(centred * centred, (2, 3), True)
        return centred / ops.sqrt(variance + 1e-4)
