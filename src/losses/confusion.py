"""Losses on unlabelled predictions: class confusion, information maximisation. Logits: float32 (N, K)."""

import math

import mindspore as ms
from mindspore import ops

from src.losses.classification import prediction_entropy


def class_confusion(logits, temperature=2.5):
    """Minimum class confusion (Jin et al. 2020, arXiv 1912.03699, eq. 2 to 6): a scalar in [0, 1].

    C = Pᵀ diag(w) P is how strongly each two classes are predicted for the same image: P the softmax of
    logits / temperature, w the certainty of each row, 1 + exp(-entropy), scaled to mean 1. Rows of C are
    scaled to sum 1; the loss is the mean over classes of what lies off the diagonal. The weights get no
    gradient, as in the authors' program.
    """
    count, classes = logits.shape
    log_probabilities = ops.log_softmax(logits / temperature, 1)
    probabilities = ops.exp(log_probabilities)
    certainty = 1.0 + ops.exp(ops.sum(probabilities * log_probabilities, 1))
    weights = ops.stop_gradient(count * certainty / ops.sum(certainty)).reshape(-1, 1)
    confusion = ops.matmul(ops.transpose(probabilities * weights, (1, 0)), probabilities)
    confusion = confusion / ops.sum(confusion, 1).reshape(-1, 1)
    return (ops.sum(confusion) - ops.sum(confusion * ops.eye(classes, classes, ms.float32))) / classes


def prediction_diversity(logits):
    """Entropy of the mean softmax prediction, in nats: a scalar in [0, ln K].

    The logarithm of a mean over rows is written with ops.log_softmax: over one class's column l it is
    l - log_softmax(l) - ln N in each row. On a CPU the last bit of ops.log depends on how MindSpore divides
    the elements among threads, which it tries out during the first steps; a resumed run would not end
    bit-identical.
    """
    columns = ops.transpose(ops.log_softmax(logits, 1), (1, 0))
    log_means = ops.mean(columns - ops.log_softmax(columns, 1), 1) - math.log(logits.shape[0])
    return -ops.sum(ops.exp(log_means) * log_means)


def information_loss(logits):
    """Minus the mutual information of images and predictions (Shi & Sha 2012, eq. 4; as a loss in Liang et
    al. 2020, arXiv 2002.08546, eq. 3): mean entropy minus diversity, a scalar in [-ln K, ln K].
    """
    return prediction_entropy(logits) - prediction_diversity(logits)
