"""Digits turned by a fixed angle for each domain, made on the fly."""

import numpy as np

from model_utils.errors import UserError
from model_utils.noise import generator
from src import data
from src.data.demo_digits import GROUP_SIZE, digits
from src.data.domain_set import DomainSet, divide, take
from src.data.split import Split

DIGITS = tuple(str(digit) for digit in range(10))


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


class RotatedMnist(DomainSet):
    """RotatedMNIST (Ghifary et al. 2015, arXiv 1508.07680), divided as DomainBed does (arXiv 2007.01434).

    The domains "0", "15", … "75" are named by their angle in degrees. Each is made of a sixth of MNIST of its
    own (images i, i+6, i+12, … after one fixed shuffle), so no digit is in two domains. Unlike DomainBed,
    which pools MNIST's two splits, training images come from the training split (10,000 a domain) and test
    images from the test split: a sixth of it for a source domain, the whole of it, 10,000 images, for the
    domain that is left out.
    """

    names = ("0", "15", "30", "45", "60", "75")
    classes = DIGITS
    image_size = 28

    def __init__(self, config):
        self.config, self._loaded = config, {}

    def _mnist(self, split):
        if split not in self._loaded:
            config = self.config
            whole = data.load("mnist", config.mnist_image_root, split, config.download)
            order = generator(0, f"rotated mnist {split}").permutation(len(whole.labels))
            self._loaded[split] = Split(whole.images[order], whole.labels[order])
        return self._loaded[split]

    def _turned(self, split, domain):
        return Split(rotate(split.images, float(domain)), split.labels)

    def _sixth(self, split, domain):
        return take(self._mnist(split), slice(self.names.index(domain), None, len(self.names)))

    def train(self, domain):
        kept, _ = divide(self._sixth("train", domain), self.config.holdout)
        return self._turned(kept, domain)

    def held_out(self, domain):
        _, held = divide(self._sixth("train", domain), self.config.holdout)
        return self._turned(held, domain)

    def test(self, domain):
        return self._turned(self._sixth("test", domain), domain)

    def target_test(self, domain):
        return self._turned(self._mnist("test"), domain)


class Demo(DomainSet):
    """scikit-learn's digits at four angles: needs no files. About 300 training and 600 test images a domain.

    Of each class every sixth digit trains a domain of its own; the last two of six are the test images of
    all four domains, turned by each domain's angle.
    """

    names = ("0", "25", "50", "75")
    classes = DIGITS
    image_size = 28

    def __init__(self, config):
        self.config = config

    def _divided(self, domain):
        return divide(digits((self.names.index(domain),)), self.config.holdout)

    def _turned(self, split, domain):
        return Split(rotate(split.images, float(domain)), split.labels)

    def train(self, domain):
        return self._turned(self._divided(domain)[0], domain)

    def held_out(self, domain):
        return self._turned(self._divided(domain)[1], domain)

    def test(self, domain):
        return self._turned(digits(range(len(self.names), GROUP_SIZE)), domain)


class Digits(DomainSet):
    """MNIST, MNIST-M and USPS at 28x28: trained on the training splits, tested on the test splits."""

    names = ("mnist", "mnist_m", "usps")
    classes = DIGITS
    image_size = 28

    def __init__(self, config):
        self.config = config

    def _load(self, domain, split):
        key = f"{domain}_image_root"
        loaded = data.load(domain, getattr(self.config, key), split, self.config.download)
        if len(loaded.labels) == 0:
            raise UserError(f"{key}: the {split} split of {domain} holds no image; replace its files")
        return loaded

    def train(self, domain):
        return divide(self._load(domain, "train"), self.config.holdout)[0]

    def held_out(self, domain):
        return divide(self._load(domain, "train"), self.config.holdout)[1]

    def test(self, domain):
        return self._load(domain, "test")
