"""MASF's step in PyTorch, written from the paper and independent of src/train_cells/: for comparison only.

Dou et al. 2019, arXiv 1910.13580. The networks have the layers of src/networks/{digits,photos,
alexnet}.py and src/losses/metric.py; the second order lets autograd differentiate through the inner step.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


class TorchSmallNet(nn.Module):
    """Convolution, 2x2 max pooling, ReLU, for each of `layers`; a hidden layer; logits."""

    def __init__(self, layers, flat, width, classes):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(*shape) for shape in layers)
        self.hidden = nn.Linear(flat, width)
        self.classifier = nn.Linear(width, classes)
        self.feature_size, self.dropout_shapes = width, ((width,),)

    def forward(self, images, keep=None):
        """(features before dropout, logits)."""
        x = images * 2 - 1
        for convolution in self.convolutions:
            x = F.relu(F.max_pool2d(convolution(x), 2))
        features = F.relu(self.hidden(x.flatten(1)))
        return features, self.classifier(features if keep is None else features * keep)


def digits(classes):
    """The small network for 28x28 digits."""
    return TorchSmallNet([(3, 32, 5, 1, 0), (32, 48, 5, 1, 0)], 768, 128, classes)


def photos(classes):
    """The small network for 64x64 pictures."""
    layers = [(3, 32, 5, 2, 2), (32, 64, 3, 1, 1), (64, 128, 3, 1, 1)]
    return TorchSmallNet(layers, 2048, 256, classes)


class TorchAlexNet(nn.Module):
    """Caffe's AlexNet with 'same' convolutions, for 227x227."""

    def __init__(self, classes):
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 96, 11, 4),  # 'same' at 227: 4 rows of zeros above, 4 below
                nn.Conv2d(96, 256, 5, padding=2, groups=2),
                nn.Conv2d(256, 384, 3, padding=1),
                nn.Conv2d(384, 384, 3, padding=1, groups=2),
                nn.Conv2d(384, 256, 3, padding=1, groups=2),
            ]
        )
        self.fc6, self.fc7 = nn.Linear(256 * 36, 4096), nn.Linear(4096, 4096)
        self.classifier = nn.Linear(4096, classes)
        self.register_buffer("mean", torch.tensor([104.0, 117.0, 123.0]).reshape(1, 3, 1, 1))
        self.feature_size, self.dropout_shapes = 4096, ((4096,), (4096,))

    def forward(self, images, keep6=None, keep7=None):
        """(fc7 before dropout, logits)."""
        x = F.pad(images.flip(1) * 255 - self.mean, (4, 4, 4, 4))
        for number, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x))
            if number < 2:  # PyTorch divides alpha by the number of channels summed
                x = F.local_response_norm(x, 5, alpha=5e-5, beta=0.75, k=1.0)
            if number in (0, 1, 4):
                x = F.max_pool2d(x, 3, 2)
        x = F.relu(self.fc6(x.flatten(1)))
        x = F.relu(self.fc7(x if keep6 is None else x * keep6))
        return x, self.classifier(x if keep7 is None else x * keep7)


NETWORKS = {"digits": digits, "photos": photos, "alexnet": TorchAlexNet}


class TorchMetric(nn.Module):
    """D -> 1024 -> 256, leaky ReLU after both."""

    def __init__(self, features):
        super().__init__()
        self.first, self.second = nn.Linear(features, 1024), nn.Linear(1024, 256)

    def forward(self, x):
        return F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)


def global_loss(logits, labels, domains, temperature):
    """Symmetrised divergence of each class's soft labels, between the last domain and the others."""
    classes = logits.shape[1]
    groups = list(zip(logits.chunk(domains), labels.chunk(domains), strict=True))
    total = 0.0
    for values, own in groups[:-1]:
        for c in range(classes):
            here, there = values[own == c], groups[-1][0][groups[-1][1] == c]
            if len(here) and len(there):
                p, q = (F.softmax(part.mean(0) / temperature, 0).clamp(1e-8, 1) for part in (here, there))
                total = total + 0.5 * (p * (p / q).log() + q * (q / p).log()).sum() / classes
    return total / (domains - 1)


def triplet_loss(x, labels, margin):
    """Semi-hard triplets on squared Euclidean distances, averaged over the pairs of one class."""
    distances = ((x[:, None] - x[None]) ** 2).sum(2)
    other = labels[:, None] != labels[None]
    further = (distances[:, None, :] > distances[:, :, None]) & other[:, None, :]
    nearest = distances[:, None, :].masked_fill(~further, float("inf")).min(2).values
    farthest = distances.masked_fill(~other, 0.0).max(1).values
    negative = torch.where(further.any(2), nearest, farthest[:, None])
    pairs = ~other & ~torch.eye(len(x), dtype=torch.bool)
    losses = (margin + distances - negative).clamp_min(0)[pairs]
    return losses.mean() if len(losses) else losses.sum()


def clipped(gradients, limit):
    """Each gradient with Euclidean norm `limit` at most."""
    return [g * (limit / torch.clamp_min(g.norm(), limit)) for g in gradients]


def _joined(masks):
    """Masks of each domain (a tensor, or a tuple of one for each layer) -> one tensor for each layer."""
    layers = zip(*((part,) if isinstance(part, torch.Tensor) else part for part in masks), strict=True)
    return [torch.cat(layer) for layer in layers]


class TorchStep:
    """One episode after another: step(domains, inner, meta) updates the three groups of weights.

    domains: [(images, labels)], the meta-test domain last. inner: dropout masks of each meta-train domain in
    the task loss; meta: of each domain in the meta losses.

    Args:
        settings: has the keys of src/train_cells/masf.py.
        second: whether the meta-gradient goes through the inner step, which the published code leaves out.
        classes: number of logits.
    """

    def __init__(self, settings, second=False, dtype=torch.float32, classes=10):
        self.settings, self.second, self.updates = settings, second, 0
        self.network = NETWORKS[settings.network](classes).to(dtype)
        if settings.network == "alexnet" and settings.image_means == "vgg":
            self.network.mean.copy_(torch.tensor([103.939, 116.779, 123.68]).reshape(1, 3, 1, 1))
        self.metric = TorchMetric(self.network.feature_size).to(dtype)
        self.weights, self.metric_weights = list(self.network.parameters()), list(self.metric.parameters())
        self.optimizers = [
            torch.optim.Adam(self.weights, settings.outer_lr),
            torch.optim.Adam(self.weights, settings.outer_lr),
            torch.optim.Adam(self.metric_weights, settings.metric_lr),
        ]

    def _task(self, domains, masks):
        images, labels = (torch.cat(part) for part in zip(*domains, strict=True))
        return F.cross_entropy(self.network(images, *_joined(masks))[1], labels)

    def _meta(self, moved, domains, masks):
        """Global and local loss with the weights `moved`."""
        settings, count = self.settings, len(domains)
        images, labels = (torch.cat(part) for part in zip(*domains, strict=True))
        names = [name for name, _ in self.network.named_parameters()]
        features, logits = functional_call(
            self.network, dict(zip(names, moved, strict=True)), (images, *_joined(masks))
        )
        share = len(labels) // count // count
        chosen, own = (torch.cat([part[:share] for part in v.chunk(count)]) for v in (features, labels))
        aligned = global_loss(logits, labels, count, settings.temperature)
        return aligned, triplet_loss(self.metric(chosen), own, settings.margin)

    def gradients(self, domains, inner, meta):
        """({"task", "global", "local": loss}, gradients by task, meta and metric loss), none clipped."""
        settings = self.settings
        task = self._task(domains[:-1], inner)
        task_gradients = torch.autograd.grad(task, self.weights, create_graph=self.second)
        summed = settings.meta_batch_size if settings.inner_gradient == "sum" else 1
        steps = clipped([summed * g for g in task_gradients], settings.gradients_clip_value)
        steps = steps if self.second else [step.detach() for step in steps]
        moved = [w - settings.inner_lr * step for w, step in zip(self.weights, steps, strict=True)]
        aligned, local = self._meta(moved, domains, meta)
        total = settings.global_weight * aligned + settings.local_weight * local
        metric_gradients = torch.autograd.grad(local, self.metric_weights, retain_graph=True)
        meta_gradients = torch.autograd.grad(total, self.weights)
        losses = {"task": task.detach(), "global": aligned.detach(), "local": local.detach()}
        return losses, [g.detach() for g in task_gradients], meta_gradients, metric_gradients

    def __call__(self, domains, inner, meta):
        """One update; returns the three losses before it."""
        losses, task, beyond, metric = self.gradients(domains, inner, meta)
        beyond = clipped(beyond, self.settings.gradients_clip_value)
        updated = self.weights, self.weights, self.metric_weights
        self.updates += 1
        for optimizer, weights, gradients in zip(
            self.optimizers, updated, (task, beyond, metric), strict=True
        ):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            # TensorFlow (the published code) and MindSpore add epsilon before the bias of √v is corrected.
            optimizer.param_groups[0]["eps"] = 1e-8 / (1 - 0.999**self.updates) ** 0.5
            optimizer.step()
        return losses
