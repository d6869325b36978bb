"""Digits turned by a fixed angle for each domain, made on the fly."""

import numpy as np

from model_utils.noise import generator
from src import data
from src.data.demo_digits import GROUP_SIZE, digits
from src.data.split import Split


def rotate(images, degrees):
    """Turn images about their centre, counter-clockwise, bilinear, 0 from outside; uint8 (N, H, W)."""
    if degrees == 0:
        return images
    import cv2

    height, width = images.shape[1:]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = np.empty(images.shape, np.uint8)
    for image, place in zip(images, turned, strict=True):
        cv2.warpAffine(image, turn, (width, height), place, cv2.INTER_LINEAR)
    return turned


def _turned(split, domain):
    return Split(rotate(split.images, float(domain)), split.labels)


class RotatedMnist:
    """RotatedMNIST (Ghifary et al. 2015, arXiv 1508.07680), divided as DomainBed does (arXiv 2007.01434).

    The domains "0", "15", … "75" are named by their angle in degrees. Each is made of a sixth of MNIST of its
    own (images i, i+6, i+12, … after one fixed shuffle), so no digit is in two domains. Unlike DomainBed,
    which pools MNIST's two splits, training images come from the training split (10,000 a domain) and test
    images from the test split: a sixth of it for a source domain, the whole of it, 10,000 images, for the
    domain that is left out.
    """

    names = ("0", "15", "30", "45", "60", "75")

    def __init__(self, config):
        self.config, self._shuffled = config, {}

    def _mnist(self, split):
        if split not in self._shuffled:
            whole = data.load("mnist", self.config.mnist_image_root, split, self.config.download)
            order = generator(0, f"rotated mnist {split}").permutation(len(whole.labels))
            self._shuffled[split] = whole.take(order)
        return self._shuffled[split]

    def load(self, domain, split):
        """One split of a domain."""
        sixth = self._mnist(split).take(slice(self.names.index(domain), None, len(self.names)))
        return _turned(sixth, domain)

    def target_test(self, domain):
        """What a domain that was left out is tested on."""
        return _turned(self._mnist("test"), domain)


class Demo:
    """scikit-learn's digits at four angles: needs no files. About 300 training and 600 test images a domain.

    Of each class every sixth digit trains a domain of its own; the last two of six are the test images of
    all four domains, turned by each domain's angle.
    """

    names = ("0", "25", "50", "75")

    def __init__(self, config):
        """The configuration is not needed."""

    def load(self, domain, split):
        """One split of a domain."""
        groups = (self.names.index(domain),) if split == "train" else range(len(self.names), GROUP_SIZE)
        return _turned(digits(groups), domain)

    def target_test(self, domain):
        """What a domain that was left out is tested on: the same images as a source's."""
        return self.load(domain, "test")
