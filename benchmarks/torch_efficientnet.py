"""EfficientNet-Lite in PyTorch, written from the paper's table, to compare ours with and time it against.

It shares no code and no table with src/networks/efficientnet_lite.py. Parameters have the published file's
names.
"""

import torch
from torch import nn
from torch.nn import functional

# kernel, input channels, output channels, expansion, stride of every block
_BLOCKS = [
    (3, 32, 16, 1, 1),
    (3, 16, 24, 6, 2), (3, 24, 24, 6, 1),
    (5, 24, 40, 6, 2), (5, 40, 40, 6, 1),
    (3, 40, 80, 6, 2), (3, 80, 80, 6, 1), (3, 80, 80, 6, 1),
    (5, 80, 112, 6, 1), (5, 112, 112, 6, 1), (5, 112, 112, 6, 1),
    (5, 112, 192, 6, 2), (5, 192, 192, 6, 1), (5, 192, 192, 6, 1), (5, 192, 192, 6, 1),
    (3, 192, 320, 6, 1),
]  # fmt: skip
_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each group


class _SameConv2d(nn.Conv2d):
    """Padded as TensorFlow pads: the output is ceil(input / stride), what is odd goes right and below."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x):
        total = []
        for side, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            total.append(max(0, (-(-side // stride) - 1) * stride + kernel - side))
        height, width = total
        if height == width and height % 2 == 0:
            return functional.conv2d(x, self.weight, None, self.stride, height // 2, 1, self.groups)
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(functional.pad(x, padding))


def _norm(width):
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class _MBConv(nn.Module):
    def __init__(self, kernel, inputs, outputs, expansion, stride):
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _SameConv2d(inputs, width, 1), _norm(width)
        self._depthwise_conv, self._bn1 = _SameConv2d(width, width, kernel, stride, width), _norm(width)
        self._project_conv, self._bn2 = _SameConv2d(width, outputs, 1), _norm(outputs)
        self.expands, self.residual = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        if self.expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)), inplace=True)
        y = functional.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class TorchEfficientNetLite(nn.Module):
    """(N, 3, H, W) -> logits (N, classes), without dropout."""

    def __init__(self, classes=1000, blocks=_BLOCKS):
        super().__init__()
        self._conv_stem, self._bn0 = _SameConv2d(3, 32, 3, 2), _norm(32)
        self._blocks = nn.ModuleList([_MBConv(*row) for row in blocks])
        self._conv_head, self._bn1 = _SameConv2d(blocks[-1][2], 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x):
        x = functional.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)), inplace=True)
        return self._fc(x.mean((2, 3)))


def model(classes):
    """The smallest network."""
    return TorchEfficientNetLite(classes)


def load(model, values):
    """Fill the model with {our parameter's name: array}."""
    from src.networks.efficientnet_lite import published_name

    state = {published_name(name): torch.tensor(value) for name, value in values.items()}
    missing, extra = model.load_state_dict(state, strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing), (missing, extra)


def blocks_of(state):
    """The rows of a published file, as in _BLOCKS; a group begins where the output channels change."""
    rows, group, outputs = [], 0, 16
    while f"_blocks.{len(rows)}._project_conv.weight" in state:
        name = f"_blocks.{len(rows)}"
        depthwise = state[f"{name}._depthwise_conv.weight"].shape
        inputs, (new, wide) = (outputs if rows else 32), state[f"{name}._project_conv.weight"].shape[:2]
        first = bool(rows) and new != outputs
        group, outputs = group + first, new
        rows.append((depthwise[-1], inputs, new, wide // inputs, _STRIDES[group] if first else 1))
    return rows
