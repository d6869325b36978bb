"""The losses of MASF (Dou et al. 2019, arXiv 1910.13580) on batches of several domains.

Rows of a batch are grouped by domain: D domains of B images each, N = D·B; the last is the meta-test domain.
"""

import math

import mindspore as ms
from mindspore import ops

SMALLEST = 1e-8  # probabilities are clipped to [1e-8, 1] before a logarithm


def task_loss(logits, labels):
    """Mean cross-entropy (nats) over the meta-train domains, which is the mean over all rows of the batch.

    Written out, because ops.cross_entropy has no second derivative on MindSpore 2.10.
    """
    shifted = logits - ops.stop_gradient(ops.amax(logits, 1, True))
    log_sums = ops.log(ops.sum(ops.exp(shifted), 1))
    return ops.mean(log_sums - ops.sum(one_hot(labels, logits.shape[1]) * shifted, 1))


def one_hot(labels, classes):
    """int32 (N,) -> float32 (N, classes)."""
    return ops.one_hot(labels, classes, ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32))


def class_distributions(logits, labels, domains, temperature):
    """Each domain's soft labels: softmax of a class's mean logits at `temperature` (paper, equation 3).

    logits (N, C), labels int32 (N,). Returns three arrays: (domains, C, C), whose row c is the distribution
    of class c, clipped to [1e-8, 1]; its logarithm; and (domains, C), 1 where the domain has the class and 0
    where it has not.

    The logarithm is that of ops.log_softmax. On a CPU the last bit of ops.log depends on how MindSpore
    divides the elements among threads, which it tries out during the first steps; a resumed run would not end
    bit-identical.
    """
    classes = logits.shape[1]
    hot = ops.reshape(one_hot(labels, classes), (domains, -1, classes))
    counts = ops.sum(hot, 1)
    sums = ops.bmm(ops.transpose(hot, (0, 2, 1)), ops.reshape(logits, (domains, -1, classes)))
    # An absent class divides by 1: its row is masked out, and stays finite in the gradient, too.
    means = sums / ops.expand_dims(ops.maximum(counts, 1.0), 2) / temperature
    soft = ops.clamp(ops.softmax(means, 2), SMALLEST, 1.0)
    logs = ops.clamp(ops.log_softmax(means, 2), math.log(SMALLEST), 0.0)
    return soft, logs, ops.cast(counts > 0, ms.float32)


def global_loss(logits, labels, domains, temperature=2.0):
    """Class alignment (paper, equations 3 and 4): symmetrised Kullback-Leibler divergence of soft labels.

    ½(KL(p‖q) + KL(q‖p)) between the last domain and each other, summed over the classes both have, divided by
    the number of all classes; the mean over the other domains.
    """
    soft, logs, present = class_distributions(logits, labels, domains, temperature)
    p, q = soft[:-1], soft[-1:]
    both = present[:-1] * present[-1:]
    # p·(ln p - ln q) + q·(ln q - ln p), summed: the two directions in one expression
    divergence = 0.5 * ops.sum((p - q) * (logs[:-1] - logs[-1:]), 2)
    return ops.sum(divergence * both) / (soft.shape[1] * p.shape[0])


def squared_distances(x):
    """(N, N) of squared Euclidean distances between the rows of (N, D), 0 on the diagonal."""
    squares = ops.sum(x * x, 1)
    distances = ops.expand_dims(squares, 1) + ops.expand_dims(squares, 0) - 2.0 * ops.matmul(x, x.T)
    return ops.relu(distances) * (1.0 - ops.eye(x.shape[0], x.shape[0], ms.float32))


def semi_hard_triplet_loss(embeddings, labels, margin):
    """Triplet loss with semi-hard negatives (Schroff et al. 2015, arXiv 1503.03832, section 3.2).

    For every pair of an anchor and another image of its class, the negative is the nearest image of another
    class that lies further from the anchor than the positive; if there is none, the farthest of all of
    another class. The mean of max(0, margin + d(anchor, positive) - d(anchor, negative)) over all such
    pairs, distances squared; 0 if there is no pair.

    A batch of one class has no negative, hence no triplet: its loss is 0, and so is its gradient. (The
    published code pulls its images together there, as if a negative were at distance 0.)

    embeddings (N, D), labels int32 (N,).
    """
    distances = squared_distances(embeddings)
    rows = labels.shape[0]
    same = ops.cast(ops.equal(ops.expand_dims(labels, 1), ops.expand_dims(labels, 0)), ms.float32)
    other = 1.0 - same
    negative = ops.stop_gradient(_negatives(distances, other))  # (N, N): column index for (anchor, positive)
    chosen = ops.gather_elements(distances, 1, negative)
    # An anchor without a negative: all images are of its class.
    has_negative = ops.cast(ops.sum(other, 1, True) > 0, ms.float32)
    pairs = same * (1.0 - ops.eye(rows, rows, ms.float32)) * has_negative
    losses = ops.relu(margin + distances - chosen) * pairs
    return ops.sum(losses) / ops.maximum(ops.sum(pairs), 1.0)


def _negatives(distances, other):
    """Index of the negative for each (anchor, positive), int32 (N, N); arbitrary where there is none."""
    far = ops.max(distances)[0] + 1.0
    # [anchor, positive, candidate]
    candidates = ops.expand_dims(distances, 1)
    further = ops.cast(candidates > ops.expand_dims(distances, 2), ms.float32) * ops.expand_dims(other, 1)
    nearest = ops.argmin(ops.select(further > 0, candidates + 0.0 * further, far + 0.0 * further), 2)
    farthest = ops.argmax(ops.select(other > 0, distances, ops.zeros_like(distances) - 1.0), 1)
    exists = ops.sum(further, 2) > 0
    farthest = ops.broadcast_to(ops.expand_dims(ops.cast(farthest, ms.int32), 1), nearest.shape)
    return ops.select(exists, ops.cast(nearest, ms.int32), farthest)


def share_of_each(values, domains, share):
    """The first `share` rows of each domain: (D·B, …) -> (D·share, …)."""
    parts = ops.reshape(values, (domains, -1, *values.shape[1:]))[:, :share]
    return ops.reshape(parts, (domains * share, *values.shape[1:]))
