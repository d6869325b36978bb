"""The published DANN recipe as a plain PyTorch script: what our time to accuracy is compared with.

    python -m benchmarks.torch_dann_train [--seed 0] [--minutes 20] [--epochs 100] [--every 460]

Same network, batch 64 + 64, Adam at 0.001, element dropout, images scaled to [-1, 1], no augmentation,
reversal weight λ(p) over `--epochs`, a torch DataLoader with worker processes. The published run trains 100
epochs on the source first; this script starts with the adversarial epochs, as the paper does, which is the
faster way. Prints one JSON line per evaluation of the MNIST-M test split, and stops after `--minutes`.
"""

import argparse
import json
import math
import os
import time

from benchmarks import positive
from model_utils import cli

STARTED = time.perf_counter()


def datasets(root, domain):
    """(training set, test images, test labels): images become float tensors one by one, as usual."""
    import torch

    from src.data import load

    class Images(torch.utils.data.Dataset):
        def __init__(self, split):
            self.images, self.labels = split.images.copy(), split.labels

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, index):
            image = torch.from_numpy(self.images[index]).float().div_(255)
            image = image.permute(2, 0, 1) if image.ndim == 3 else image.expand(3, 28, 28)
            return image, int(self.labels[index])

    return Images(load(domain, root, "train")), Images(load(domain, root, "test"))


def accuracy(step, loader):
    """Top-1 accuracy of the network over a loader, in evaluation mode."""
    import torch

    step.net.eval()
    hits = count = 0
    with torch.no_grad():
        for images, labels in loader:
            predicted = step.net.classes(step.net.backbone(images * 2 - 1)).argmax(1)
            hits += int((predicted == labels).sum())
            count += len(labels)
    step.net.train()
    return hits / count


def train(arguments):
    import torch

    from benchmarks.torch_dann import TorchStep

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    source, _ = datasets(arguments.mnist_dir, "mnist")
    target, test = datasets(arguments.mnistm_dir, "mnist_m")
    options = {"batch_size": 64, "shuffle": True, "drop_last": True, "num_workers": arguments.workers}
    loaders = [torch.utils.data.DataLoader(data, **options) for data in (source, target)]
    test_loader = torch.utils.data.DataLoader(test, batch_size=500)
    step = TorchStep(joint=False, instance=False, entropy=False, channel_dropout=False)
    steps = min(map(len, loaders))
    total, done = arguments.epochs * steps, 0
    for _ in range(arguments.epochs):
        for (images, labels), (others, _) in zip(*loaders, strict=False):
            strength = 2 / (1 + math.exp(-10 * done / total)) - 1
            step(images, labels, others, strength)
            done += 1
            if done % arguments.every == 0:
                row = {"step": done, "accuracy": accuracy(step, test_loader)}
                row["seconds"] = round(time.perf_counter() - STARTED, 1)
                print(json.dumps(row), flush=True)
            if time.perf_counter() - STARTED > 60 * arguments.minutes:
                return


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--epochs", type=positive, default=100)
    parser.add_argument("--every", type=positive, default=460)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mnist_dir", default="data/mnist")
    parser.add_argument("--mnistm_dir", default="data/mnist_m")
    train(parser.parse_args())


if __name__ == "__main__":
    cli.run(main)
