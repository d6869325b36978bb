"""Losses shared by the methods, and gradient reversal. Logits are float32, losses in nats."""

from mindspore import nn, ops


def cross_entropy(logits, labels):
    """Mean softmax cross-entropy. logits (N, K), labels int32 (N,) in [0, K); returns a scalar >= 0."""
    return ops.cross_entropy(logits, labels)


def smoothed_cross_entropy(logits, labels, smoothing):
    """Mean cross-entropy against labels mixed with the uniform distribution (Szegedy et al. 2016, section 7).

    The target probability of class k is (1 - smoothing)·[k = label] + smoothing / K. logits (N, K), labels
    int32 (N,), smoothing in [0, 1); returns a scalar > 0, for smoothing 0 that of `cross_entropy`.

    The argument label_smoothing of ops.cross_entropy is not used. On a CPU it takes a logarithm whose last
    bit depends on how MindSpore divides the elements among threads, and MindSpore tries that out during the
    first steps. A resumed run would not end bit-identical.
    """
    log_probabilities = ops.log_softmax(logits, 1)
    hit = ops.nll_loss(log_probabilities, labels)
    return (1.0 - smoothing) * hit - smoothing * ops.mean(log_probabilities)


def prediction_entropy(logits):
    """Mean entropy of the softmax predictions (Grandvalet & Bengio 2004). (N, K) -> scalar in [0, ln K]."""
    log_probabilities = ops.log_softmax(logits, 1)
    return -ops.mean(ops.sum(ops.exp(log_probabilities) * log_probabilities, 1))


def accuracy(logits, labels):
    """Share of rows whose largest logit is the label. logits (N, K), labels (N,) -> scalar in [0, 1]."""
    hits = ops.cast(ops.equal(ops.cast(ops.argmax(logits, 1), labels.dtype), labels), logits.dtype)
    return ops.mean(hits)


class GradientReversal(nn.Cell):
    """Identity forward; backward, the gradient times -strength (Ganin & Lempitsky 2015, section 3.1).

    `strength` is a scalar Tensor: as a Python float it would recompile the graph at every new value.
    """

    def construct(self, features, strength):
        return features

    def bprop(self, features, strength, out, dout):
        return -strength * dout, ops.zeros_like(strength)
