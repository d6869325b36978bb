"""Figures on held-out training images, for methods with a domain classifier. No target label is read."""

import mindspore as ms
import numpy as np
from scipy.special import log_softmax

SIDES = ("source", "target")


def figures(forward, held_out, with_domains):
    """Mean losses in nats and accuracies by name, {} if nothing is held out; of the classes only where a
    source holds images out.

    Args:
        forward: function (images as a Tensor, side) -> (class logits, domain logits), Tensors; side is
            "source" or "target".
        held_out: None, or {name of a source: loader}, and perhaps "target": a loader whose labels are not
            read.
        with_domains: whether the domain figures mean anything in this phase.
    """
    if not held_out:
        return {}
    sums = np.zeros(6)
    for name, loader in held_out.items():
        domain = int(name == "target")
        side = SIDES[domain]
        for images, labels in loader:
            logits, domain_logits = (t.asnumpy() for t in forward(ms.Tensor.from_numpy(images), side))
            sums += _sums(logits, labels, domain_logits, domain)
    class_loss, class_hits, class_count, domain_loss, domain_hits, count = sums
    found = {}
    if class_count:
        found = {"class_loss": class_loss / class_count, "class_accuracy": class_hits / class_count}
    if with_domains and "target" in held_out:
        found["domain_loss"] = 2 * domain_loss / count
        found["domain_accuracy"] = domain_hits / count
    return found


def _sums(logits, labels, domain_logits, domain):
    """(class loss, class hits, class count, domain loss, domain hits, count), summed over a batch."""
    count = len(domain_logits)
    domain_loss = -log_softmax(domain_logits.astype(np.float64), axis=1)[:, domain].sum()
    domain_hits = (domain_logits.argmax(1) == domain).sum()
    if SIDES[domain] == "target":
        return np.array([0, 0, 0, domain_loss, domain_hits, count], float)
    class_loss = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(count), labels].sum()
    hits = (logits.argmax(1) == labels).sum()
    return np.array([class_loss, hits, count, domain_loss, domain_hits, count], float)
