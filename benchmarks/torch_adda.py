"""ADDA's networks and adversarial step in PyTorch, written from the paper: what our step is timed against."""

import torch
from torch import nn
from torch.nn import functional


def lenet():
    """Grey images (N, 1, 28, 28) in [0, 1] -> class logits (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


class TorchStep:
    """Simultaneous updates of target network and discriminator, on arrays given by the caller."""

    def __init__(self, lr=2e-4):
        self.source, self.target = lenet(), lenet()
        self.target.load_state_dict(self.source.state_dict())
        for weight in self.source.parameters():
            weight.requires_grad_(False)
        self.discriminator = nn.Sequential(
            nn.Linear(10, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 2)
        )
        networks = (self.target, self.discriminator)
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.999)) for net in networks]

    def __call__(self, source, target):
        """source, target: float32 (N, 1, 28, 28) tensors; returns the sum of both losses as a float."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with torch.no_grad():
            real = self.source(source * 2 - 1)
        fake = self.target(target * 2 - 1)
        domains = torch.arange(2).repeat_interleave(len(source))
        domain_loss = functional.cross_entropy(self.discriminator(torch.cat((real, fake.detach()))), domains)
        domain_loss.backward()
        self.discriminator.requires_grad_(False)
        mapping_loss = functional.cross_entropy(self.discriminator(fake), domains[: len(source)])
        mapping_loss.backward()
        self.discriminator.requires_grad_(True)
        for optimizer in self.optimizers:
            optimizer.step()
        return (domain_loss + mapping_loss).item()
