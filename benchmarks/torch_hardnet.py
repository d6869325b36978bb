"""HarDNet in PyTorch, written from the paper's description: what ours is compared with and timed against.

It shares no code and no table with src/networks/hardnet.py. Parameters have the authors' names, so that its
`state_dict()` looks like a published `.pth`.
"""

import torch
from torch import nn

# growth rates, layers of the blocks, widths behind the blocks, where the resolution is halved (block numbers)
_SMALL = ((16, 20, 64, 160), (4, 16, 8, 4), (96, 320, 640, 1024), (0, 1, 2))
_MIDDLE = ((14, 16, 20, 40, 160), (8, 16, 16, 16, 4), (128, 256, 320, 640, 1024), (0, 2, 3))
_LARGE = ((24, 24, 28, 36, 48, 256), (8, 16, 16, 16, 16, 4), (192, 256, 320, 480, 720, 1280), (0, 2, 4))

# body, first width, multiplier, depthwise separable, dropout at the end, dropout before the last 1x1
_NETWORKS = {
    "39ds": (_SMALL, 24, 1.6, True, 0.05, 0.0),
    "68ds": (_MIDDLE, 32, 1.7, True, 0.05, 0.0),
    "68": (_MIDDLE, 32, 1.7, False, 0.1, 0.0),
    "85": (_LARGE, 48, 1.7, False, 0.2, 0.1),
}


class _Convolution(nn.Sequential):
    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        self.add_module("conv", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False))
        self.add_module("norm", nn.BatchNorm2d(outputs))
        self.add_module("relu", nn.ReLU6(inplace=True))


class _Depthwise(nn.Sequential):
    def __init__(self, width, stride=1):
        super().__init__()
        self.add_module("dwconv", nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False))
        self.add_module("norm", nn.BatchNorm2d(width))


class _Separable(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.add_module("layer1", _Convolution(inputs, outputs, 1))
        self.add_module("layer2", _Depthwise(outputs))


class _Block(nn.Module):
    """Layer l (1-based) reads l-1, l-2, l-4, … as far as these powers of two divide l."""

    def __init__(self, inputs, growth, multiplier, count, separable):
        super().__init__()
        self.layers = nn.ModuleList()
        widths = {0: inputs}
        for layer in range(1, count + 1):
            sources = self._sources(layer)
            exact = growth
            for _ in sources[1:]:
                exact *= multiplier
            widths[layer] = 2 * (int(exact + 1) // 2)
            total = sum(widths[source] for source in sources)
            made = _Separable(total, widths[layer]) if separable else _Convolution(total, widths[layer], 3)
            self.layers.append(made)
        self.shown = [layer for layer in widths if layer % 2 or layer == count]
        self.width = sum(widths[layer] for layer in self.shown)

    @staticmethod
    def _sources(layer):
        sources, step = [], 1
        while layer % step == 0:
            sources.append(layer - step)
            step *= 2
        return sources

    def forward(self, x):
        made = [x]
        for number, layer in enumerate(self.layers, 1):
            made.append(layer(torch.cat([made[source] for source in self._sources(number)], 1)))
        return torch.cat([made[number] for number in self.shown], 1)


class TorchHarDNet(nn.Module):
    """(N, 3, H, W) -> logits (N, classes); `variant` is 39ds, 68ds, 68 or 85."""

    def __init__(self, variant, classes=1000):
        super().__init__()
        (growth, counts, behind, halved), first, multiplier, separable, last, inner = _NETWORKS[variant]
        width = 2 * first
        cells = [_Convolution(3, first, 3, 2), _Convolution(first, width, 1 if separable else 3)]
        cells.append(_Depthwise(width, 2) if separable else nn.MaxPool2d(3, 2, padding=1))
        for number, growth_rate in enumerate(growth):
            block = _Block(width, growth_rate, multiplier, counts[number], separable)
            width = behind[number]
            cells.append(block)
            if inner and number + 1 == len(growth):
                cells.append(nn.Dropout(inner))
            cells.append(_Convolution(block.width, width, 1))
            if number in halved:
                cells.append(_Depthwise(width, 2) if separable else nn.MaxPool2d(2, 2))
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(last), nn.Linear(width, classes))
        self.base = nn.ModuleList([*cells, nn.Sequential(*head)])

    def forward(self, x):
        for cell in self.base:
            x = cell(x)
        return x
