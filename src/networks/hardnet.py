"""HarDNet, the Harmonic DenseNet (Chao et al. 2019, arXiv 1909.00948): four variants from one table.

Children and parameters are called as in the authors' published networks (`base.3.layers.0.conv.weight`), with
MindSpore's names of a batch normalisation's parameters, so that src/pth2ckpt.py maps weights by name.
"""

import dataclasses
from collections import OrderedDict

from mindspore import nn, ops

from model_utils.errors import UserError, shortened
from src import networks
from src.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from src.ops.twice_differentiable import max_pool

SMALLEST = 32  # pixels: five layers halve them


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        separable: depthwise separable: 1x1 + depthwise 3x3 convolutions, strided depthwise ones for pooling.
        stem: output channels of the two convolutions before the blocks.
        growth: each block's growth rate k.
        multiplier: m, by which a layer grows for each link beyond its first.
        layers: each block's number of layers.
        channels: output channels of the 1x1 convolution behind each block.
        down: whether the resolution is halved behind that.
        dropout: probability before the classifier.
        block_dropout: probability between the last block and its 1x1 convolution.
    """

    separable: bool
    stem: tuple
    growth: tuple
    multiplier: float
    layers: tuple
    channels: tuple
    down: tuple
    dropout: float
    block_dropout: float = 0.0


_BODY_68 = {
    "growth": (14, 16, 20, 40, 160),
    "multiplier": 1.7,
    "layers": (8, 16, 16, 16, 4),
    "channels": (128, 256, 320, 640, 1024),
    "down": (True, False, True, True, False),
}

VARIANTS = {
    "39ds": Variant(
        separable=True,
        stem=(24, 48),
        growth=(16, 20, 64, 160),
        multiplier=1.6,
        layers=(4, 16, 8, 4),
        channels=(96, 320, 640, 1024),
        down=(True, True, True, False),
        dropout=0.05,
    ),
    "68ds": Variant(separable=True, stem=(32, 64), **_BODY_68, dropout=0.05),
    "68": Variant(separable=False, stem=(32, 64), **_BODY_68, dropout=0.1),
    "85": Variant(
        separable=False,
        stem=(48, 96),
        growth=(24, 24, 28, 36, 48, 256),
        multiplier=1.7,
        layers=(8, 16, 16, 16, 16, 4),
        channels=(192, 256, 320, 480, 720, 1280),
        down=(True, False, True, False, True, False),
        dropout=0.2,
        block_dropout=0.1,
    ),
}


def infer_variant(values, path):
    """The variant that an archive's first layers belong to."""
    stem = values.get("base.0.conv.weight")
    first = 0 if stem is None else stem.shape[0]
    separable = "base.2.dwconv.weight" in values
    for name, row in VARIANTS.items():
        if (row.stem[0], row.separable) == (first, separable):
            return name
    raise UserError(f"{path} is no HarDNet of {', '.join(VARIANTS)}: it has {shortened(sorted(values), 3)}")


def block_plan(in_channels, growth, multiplier, layers):
    """The wiring of a harmonic block: [(links, input channels, output channels)] of its layers 1, 2, …

    Layer l reads the layers l - 2^n for every 2^n that divides l, nearest first; layer 0 is the input.
    It has k·m^(links - 1) channels, rounded to even (section 3.2 of the paper).
    """
    widths, plan = [in_channels], []
    for layer in range(1, layers + 1):
        steps = [2**n for n in range(layer.bit_length()) if layer % 2**n == 0]
        width = growth * multiplier ** (len(steps) - 1)
        width = int(int(width + 1) / 2) * 2
        links = tuple(layer - step for step in steps)
        plan.append((links, sum(widths[link] for link in links), width))
        widths.append(width)
    return plan


def _conv_norm(name, conv, relu):
    """Convolution, batch normalisation and, with `relu`, ReLU6: one operator on a CPU (src/ops)."""
    norm = nn.BatchNorm2d(conv.out_channels, eps=1e-5, momentum=0.9)
    cells = [(name, conv), ("norm", norm)] + ([("relu", nn.ReLU6())] if relu else [])
    return nn.SequentialCell(OrderedDict(cells))


def conv_layer(in_channels, out_channels, kernel=3, stride=1):
    """Convolution without bias + BN + ReLU6, padded by half the kernel."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, pad_mode="pad", padding=kernel // 2)
    return _conv_norm("conv", conv, relu=True)


def depthwise_layer(channels, stride=1):
    """Depthwise 3x3 convolution + BN, no activation."""
    conv = nn.Conv2d(channels, channels, 3, stride, pad_mode="pad", padding=1, group=channels)
    return _conv_norm("dwconv", conv, relu=False)


def separable_layer(in_channels, out_channels):
    """1x1 convolution + BN + ReLU6, then depthwise 3x3 + BN."""
    layers = [("layer1", conv_layer(in_channels, out_channels, 1)), ("layer2", depthwise_layer(out_channels))]
    return nn.SequentialCell(OrderedDict(layers))


class PaddedMaxPool(nn.Cell):
    """Max-pooling 3x3, stride 2, padding 1, for inputs >= 0, such as ReLU6's.

    There a border of zeros and one of -inf give the same maxima, and the same gradients in front of a ReLU6,
    which passes none where its output is 0. MindSpore's own padded pooling pools three-dimensionally.
    """

    def __init__(self, twice=False):
        super().__init__()
        self.pad = ops.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        self.pool = max_pool(3, 2, twice)

    def construct(self, x):
        return self.pool(self.pad(x))


class HarmonicBlock(nn.Cell):
    """Layers wired as `block_plan` says; (N, C, H, W) -> odd layers and the last, (N, out_channels, H, W)."""

    def __init__(self, in_channels, growth, multiplier, layers, separable):
        super().__init__()
        plan = block_plan(in_channels, growth, multiplier, layers)
        layer = separable_layer if separable else conv_layer
        self.links = tuple(links for links, _, _ in plan)
        self.layers = nn.CellList([layer(inputs, outputs) for _, inputs, outputs in plan])
        self.kept = tuple(number for number in range(1, layers + 1) if number % 2 == 1 or number == layers)
        self.out_channels = sum(plan[number - 1][2] for number in self.kept)

    def construct(self, x):
        outputs = (x,)
        for index, layer in enumerate(self.layers):
            inputs = ()
            for link in self.links[index]:
                inputs += (outputs[link],)
            outputs += (layer(inputs[0] if len(inputs) == 1 else ops.concat(inputs, 1)),)
        kept = ()
        for number in self.kept:
            kept += (outputs[number],)
        return ops.concat(kept, 1)


class Backbone(nn.Cell):
    """float32 (N, 3, H, W) -> pooled features (N, feature_size); H and W at least 32, usually 224.

    Images are normalised by ImageNet's mean and deviation per channel, as the published weights want them.

    Args:
        variant: "39ds", "68ds", "68" or "85".
        size: side of the images, from which the shape of the block's dropout mask follows.
        twice: whether gradients of gradients will be asked for.

    Attributes:
        variant: what it was built with.
        masks: the block's dropout mask, (block channels, H / 32, W / 32), of variant "85".
        head_dropout: probability before the classifier.
    """

    def __init__(self, variant, size=224, twice=False):
        super().__init__()
        row = VARIANTS[variant]
        cells = [conv_layer(3, row.stem[0], 3, stride=2)]
        cells.append(conv_layer(*row.stem, 1 if row.separable else 3))
        cells.append(depthwise_layer(row.stem[1], stride=2) if row.separable else PaddedMaxPool(twice))
        width, self.block_dropout_at = row.stem[1], -1
        for number, channels in enumerate(row.channels):
            growth, layers = row.growth[number], row.layers[number]
            block = HarmonicBlock(width, growth, row.multiplier, layers, row.separable)
            cells.append(block)
            if row.block_dropout and number == len(row.channels) - 1:
                self.block_dropout_at = len(cells)
                cells.append(nn.Identity())  # the published networks count the dropout layer
            cells.append(conv_layer(block.out_channels, channels, 1))
            if row.down[number]:
                cells.append(depthwise_layer(channels, stride=2) if row.separable else max_pool(2, 2, twice))
            width = channels
        self.base = nn.CellList(cells)
        self.variant, self.feature_size, self.head_dropout = variant, width, row.dropout
        side = -(-size // 4) // 8  # the stem halves twice and rounds up, the pools three times and down
        self.masks = (((block.out_channels, side, side), row.block_dropout),) if row.block_dropout else ()

    def construct(self, images, keep_block=None):
        """`keep_block`: inverted-dropout mask from `model_utils.noise.keep_mask`, or None."""
        x = images
        for index, cell in enumerate(self.base):
            if index == self.block_dropout_at and keep_block is not None:
                x = x * keep_block
            x = cell(x)
        return ops.mean(x, (2, 3))


class Family(networks.Family):
    """Networks `hardnet39ds`, `hardnet68ds`, `hardnet68` and `hardnet85`.

    The initialisation is the one the authors trained from, PyTorch's default: He-uniform with a = √5.
    """

    variants = tuple(VARIANTS)
    weights_from = "https://ping-chao.com/hardnet/"
    head_draws_first = True

    def preparation(self, variant, config):
        return Preparation(
            224, crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_scale_min=0.35, flip=True
        )

    def backbone(self, variant, config, preparation, twice=False):
        networks.check_least(f"hardnet{variant}", preparation, SMALLEST)
        return Backbone(variant, preparation.size, twice)

    def read_published(self, variant, path, network):
        from src.networks import _hardnet_weights

        return _hardnet_weights.read(path, network)
