"""ResNet-18 in PyTorch (He et al. 2015, table 1), to compare MindCV's with and time it against.

Parameters have MindCV's names for the cells, and PyTorch's for what is in them.
"""

import torch
from torch import nn
from torch.nn import functional

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class _Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down_sample = None
        if stride > 1 or inputs != outputs:
            self.down_sample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.down_sample is None else self.down_sample(x)
        return functional.relu(y, inplace=True)


class TorchResNet18(nn.Module):
    """(N, 3, H, W) -> logits (N, classes)."""

    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        width = 64
        for number, outputs in enumerate((64, 128, 256, 512), 1):
            stride = 1 if number == 1 else 2
            setattr(
                self,
                f"layer{number}",
                nn.Sequential(_Block(width, outputs, stride), _Block(outputs, outputs, 1)),
            )
            width = outputs
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.classifier(x.mean((2, 3)))


def model(classes):
    """The network."""
    return TorchResNet18(classes)


def load(model, values):
    """Fill the model with {our parameter's name: array}."""
    state = {}
    for name, value in values.items():
        cell, kind = name.rsplit(".", 1)
        state[f"{cell}.{_NORM.get(kind, kind)}"] = torch.tensor(value)
    missing, extra = model.load_state_dict(state, strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing), (missing, extra)
