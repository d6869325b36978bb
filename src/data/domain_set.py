"""What every set of domains offers, and how a domain is divided."""

import numpy as np

from model_utils.errors import UserError
from model_utils.noise import generator
from src.data.split import Split


class DomainSet:
    """Several domains with the same classes. A subclass sets the attributes and overrides the methods.

    Each method takes a domain's name and returns a `Split`: uint8 (N, S, S) or (N, S, S, 3), labels int32
    (N,) counted from 0 in the order of `classes`. The four parts of a domain:

    train, held_out: share no image; only ever read of source domains.
    test: what a source domain is tested on; shares no image with `train`.
    target_test: what a domain that was left out is tested on; may be all of it, as nothing was trained on.
    """

    names = ()  # of the domains, in a fixed order
    classes = ()  # names, in the order of the labels
    image_size = 0  # of the images handed out
    allow_missing_classes = False  # whether a domain may lack a class

    def train(self, domain):
        """The images to train on."""
        raise NotImplementedError

    def held_out(self, domain):
        """The images kept out of training for validation figures; empty where `holdout` is 0."""
        raise NotImplementedError

    def test(self, domain):
        """The test images of a source domain."""
        raise NotImplementedError

    def target_test(self, domain):
        """The test images of a domain that was left out; those of `test`, unless there are more."""
        return self.test(domain)


def stratified(labels, count, order):
    """The positions (sorted) of `count` of the samples, from each class in proportion.

    labels: (N,) integers. order: permutation of range(N); within a class, those earlier in it are taken.
    """
    labels = np.asarray(labels)[order]
    share = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.asarray(order)[np.argsort(share, kind="stable")[:count]])


def held_out_mask(labels, share, order):
    """bool (N,): True for the `share` of the samples that is held out, class by class."""
    mask = np.zeros(len(labels), bool)
    mask[stratified(labels, round(share * len(labels)), order)] = True
    return mask


def divide(split, share):
    """(training part, held-out part) of a split.

    The choice depends on neither the seed nor the domain: two domains made of the same images in the same
    order, as MNIST and MNIST-M are, hold out the same ones.
    """
    order = generator(0, "held out").permutation(len(split.labels))
    held = held_out_mask(split.labels, share, order)
    return take(split, ~held), take(split, held)


def take(split, chosen):
    """The samples of a split at the positions, or under the mask, `chosen`."""
    return Split(split.images[chosen], split.labels[chosen])


def thin_out(split, count, seed, domain):
    """`count` samples of a training part, from each class in proportion, drawn by seed; 0: all."""
    if count == 0:
        return split
    if count > len(split.labels):
        raise UserError(
            f"train_size_per_domain: {count} is more than the {len(split.labels)} training images of domain "
            f"{domain}; 0 takes all"
        )
    order = generator(seed, f"subset {domain}").permutation(len(split.labels))
    return take(split, stratified(split.labels, count, order))
