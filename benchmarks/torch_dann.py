"""DANN's network and reversal step in PyTorch, written from the paper: what our step is timed against.

`TorchStep` is the step on digits, `PhotoStep` that on photographs with HarDNet.
"""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_hardnet import TorchHarDNet

# Where PyTorch keeps a layer's arrays, by our names.
PLACES = {"weight": 0, "gamma": 0, "bias": 1, "beta": 1, "moving_mean": 2, "moving_variance": 3}


class Reverse(torch.autograd.Function):
    """Identity forward; backward, the gradient times -strength."""

    @staticmethod
    def forward(context, features, strength):
        context.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(context, gradient):
        return -context.strength * gradient, None


class TorchDann(nn.Module):
    """The same layers as src/networks/dann.py, dropout (of channels or of elements) included."""

    def __init__(self, channel_dropout):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 64, 5),
            nn.BatchNorm2d(64),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(64, 50, 5),
            nn.BatchNorm2d(50),
            nn.Dropout2d() if channel_dropout else nn.Dropout(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.classes = nn.Sequential(
            nn.Linear(800, 100),
            nn.BatchNorm1d(100),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(100, 100),
            nn.BatchNorm1d(100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )
        self.domains = nn.Sequential(nn.Linear(800, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2))


class TorchStep:
    """One adversarial update at a time, on given arrays; each option is a key of config.yaml."""

    def __init__(self, joint, instance, entropy, channel_dropout, lr=1e-3):
        self.net = TorchDann(channel_dropout)
        self.joint, self.instance, self.entropy = joint, instance, entropy
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr, weight_decay=1e-5)

    def _normalise(self, images):
        if not self.instance:
            return images * 2 - 1
        variance, mean = torch.var_mean(images, (2, 3), correction=0, keepdim=True)
        return (images - mean) / torch.sqrt(variance + 1e-4)

    def __call__(self, source, labels, target, strength):
        """source, target: float32 (N, 3, 28, 28) tensors; labels: int64 (N,); returns the loss as a float."""
        net, half = self.net, len(labels)
        if self.joint:
            features = net.backbone(self._normalise(torch.cat((source, target))))
            logits = net.classes(features if self.entropy else features[:half])
        else:
            features = torch.cat([net.backbone(self._normalise(part)) for part in (source, target)])
            rows = (features[:half], features[half:]) if self.entropy else (features[:half],)
            logits = torch.cat([net.classes(part) for part in rows])
        loss = functional.cross_entropy(logits[:half], labels)
        domains = torch.arange(2).repeat_interleave(half)
        loss = loss + 2 * functional.cross_entropy(net.domains(Reverse.apply(features, strength)), domains)
        if self.entropy:
            log_p = functional.log_softmax(logits[half:], 1)
            loss = loss - 0.1 * strength * (log_p.exp() * log_p).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class PhotoStep:
    """An adversarial update of HarDNet with a bottleneck; each domain goes through the backbone by itself.

    Args:
        variant: HarDNet's, e.g. "39ds". classes, bottleneck: units of the class head and before it.
        lr: of Adam.
    """

    def __init__(self, variant, classes, bottleneck, lr):
        hardnet = TorchHarDNet(variant, classes)
        width = hardnet.base[-1][-1].in_features
        hardnet.base[-1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        neck = nn.Linear(width, bottleneck), nn.BatchNorm1d(bottleneck), nn.ReLU()
        domains = nn.Linear(bottleneck, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2)
        self.backbone, self.neck = hardnet, nn.Sequential(*neck)
        self.classes, self.domains = nn.Linear(bottleneck, classes), nn.Sequential(*domains)
        self.parts = nn.ModuleList((self.backbone, self.neck, self.classes, self.domains))
        self.optimizer = torch.optim.Adam(self.parts.parameters(), lr=lr)

    def load(self, values):
        """Take the weights {"network" or "domains": {our name: array}}, in our order, which is theirs."""
        ours = [v for part in ("network", "domains") for v in _ordered(values[part])]
        theirs = [v for n, v in self.parts.state_dict().items() if not n.endswith("num_batches_tracked")]
        with torch.no_grad():
            for value, own in zip(ours, theirs, strict=True):
                own.copy_(torch.from_numpy(value))

    def __call__(self, source, labels, target, strength):
        """source, target: float32 (N, 3, S, S) tensors; labels: int64 (N,); returns the loss as a float."""
        features = torch.cat([self.neck(self.backbone(images)) for images in (source, target)])
        loss = functional.cross_entropy(self.classes(features[: len(labels)]), labels)
        domains = torch.arange(2).repeat_interleave(len(labels))
        seen = self.domains(Reverse.apply(features, strength))
        loss = loss + 2 * functional.cross_entropy(seen, domains)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def _ordered(values):
    """The arrays of {name: array}, layers in their order, those of a layer as PyTorch keeps them."""
    layers = {}
    for name, value in values.items():
        layer, kind = name.rsplit(".", 1)
        layers.setdefault(layer, {})[PLACES[kind]] = value
    return [layer[place] for layer in layers.values() for place in sorted(layer)]
