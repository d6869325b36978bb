"""DANN's network and reversal step in PyTorch, written from the paper: what our step is timed against."""

import torch
from torch import nn
from torch.nn import functional


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
