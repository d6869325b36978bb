"""The losses of adversarial discriminative adaptation (ADDA). Networks are `networks.Classifier`."""

import mindspore as ms
from mindspore import nn, ops

from src.losses.classification import accuracy, cross_entropy, prediction_entropy

TERMS = ("discriminator_loss", "mapping_loss", "class_loss", "entropy", "consistency", "domain_accuracy")
HIDDEN = 500


class Discriminator(nn.Cell):
    """Class logits (N, K) -> domain logits (N, 2), column 0 source, column 1 target: 500-500-2, ReLU."""

    def __init__(self, classes):
        super().__init__()
        self.fc1 = nn.Dense(classes, HIDDEN)
        self.fc2 = nn.Dense(HIDDEN, HIDDEN)
        self.fc3 = nn.Dense(HIDDEN, 2)
        self.relu = nn.ReLU()

    def construct(self, logits):
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(logits)))))


def frozen(discriminator, logits):
    """A Discriminator's domain logits of float32 class logits (N, K); no gradient reaches its parameters.

    It computes in float32 at every `amp_level`. A method of the cell would get its inputs in the cell's own
    precision, float16 perhaps, but the parameters in float32.
    """
    x = ops.relu(_frozen_dense(logits, discriminator.fc1))
    x = ops.relu(_frozen_dense(x, discriminator.fc2))
    return _frozen_dense(x, discriminator.fc3)


def _frozen_dense(inputs, dense):
    return ops.matmul(inputs, ops.stop_gradient(dense.weight).T) + ops.stop_gradient(dense.bias)


class DiscriminatorLoss(nn.Cell):
    """Cross-entropy of the domain logits over both batches (equation 7 of the paper), and their accuracy.

    Inputs: class logits of source and target images, (N, K) each, that get no gradient; domains, int32
    (2N,), N zeros, then N ones.
    """

    def __init__(self, discriminator):
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator

    def construct(self, source_logits, target_logits, domains):
        rows = ops.stop_gradient(ops.concat((source_logits, target_logits)))
        logits = ops.cast(self.discriminator(rows), ms.float32)
        return cross_entropy(logits, domains), accuracy(logits, domains)


class WarmUpLoss(nn.Cell):
    """The discriminator's loss of one source and one target batch; no other weight gets a gradient."""

    def __init__(self, network, source_network, discriminator):
        super().__init__(auto_prefix=False)
        self.network, self.source_network = network, source_network
        self.loss = DiscriminatorLoss(discriminator)

    def construct(self, source, target, domains):
        source_logits = ops.cast(self.source_network(source), ms.float32)
        loss, hits = self.loss(source_logits, ops.cast(self.network(target), ms.float32), domains)
        return loss, (hits,)


class AdaptLoss(nn.Cell):
    """All losses of one simultaneous update.

    The discriminator's loss reaches only the discriminator. Everything else reaches only the target network:
    the mapping loss, which is the cross-entropy of the target's domain logits against "source" (equation 8),
    and, if their weights are not 0, the class loss on source images, the entropy of the target predictions
    (Grandvalet & Bengio 2004) and the cross-entropy of strongly augmented target images against the confident
    predictions of the target images themselves (Sohn et al. 2020, arXiv 2001.07685).

    Inputs: source, target, strong: images (N, C, S, S), `strong` being the augmented target; labels (N,);
    domains (2N,), zeros then ones; weights (4,): of mapping, class, entropy and consistency loss.

    Args:
        networks: (target network, frozen source network, discriminator).
        joint: whether all that the target network sees goes through it as one batch.
        use: which of "class", "entropy" and "consistency" are computed. With "source rows" the mapping loss
            is the mean over the rows of both domains with inverted labels, as in the authors' code. The
            source rows have no gradient, so that of the target network is half as large.
        confidence: probability from which a prediction counts as confident.

    Returns the total and the scalars named in TERMS.
    """

    def __init__(self, networks, joint, use, confidence):
        super().__init__(auto_prefix=False)
        self.network, self.source_network, self.discriminator = networks
        self.discriminator_loss = DiscriminatorLoss(self.discriminator)
        self.use_class, self.use_entropy = "class" in use, "entropy" in use
        self.use_consistency, self.confidence, self.joint = "consistency" in use, confidence, joint
        self.map_both = "source rows" in use

    def _logits(self, images):
        return ops.cast(self.network(images), ms.float32)

    def _forward(self, source, target, strong):
        """Logits of what is needed, target rows first."""
        rows = (target,)
        if self.use_class:
            rows = rows + (source,)
        if self.use_consistency:
            rows = rows + (strong,)
        if len(rows) == 1:
            return self._logits(target)
        if self.joint:
            return self._logits(ops.concat(rows))
        logits = ()
        for images in rows:
            logits += (self._logits(images),)
        return ops.concat(logits)

    def _consistency(self, weak_logits, strong_logits):
        probabilities = ops.stop_gradient(ops.softmax(weak_logits, 1))
        confident = ops.cast(ops.amax(probabilities, 1) >= self.confidence, ms.float32)
        guess = ops.cast(ops.argmax(probabilities, 1), ms.int32)
        return ops.mean(confident * ops.cross_entropy(strong_logits, guess, reduction="none"))

    def _mapping(self, source_logits, target_logits, domains):
        """Cross-entropy of domain logits against the inverted labels."""
        if self.map_both:
            rows = ops.concat((source_logits, target_logits))
            return cross_entropy(frozen(self.discriminator, rows), 1 - domains)
        return cross_entropy(frozen(self.discriminator, target_logits), domains[: target_logits.shape[0]])

    def construct(self, source, labels, target, strong, domains, weights):
        half = labels.shape[0]
        logits = self._forward(source, target, strong)
        target_logits = logits[:half]
        source_logits = ops.cast(self.source_network(source), ms.float32)
        discriminator_loss, domain_accuracy = self.discriminator_loss(source_logits, target_logits, domains)
        mapping_loss = self._mapping(source_logits, target_logits, domains)
        class_loss = entropy = consistency = ops.zeros_like(mapping_loss)
        if self.use_class:
            class_loss = cross_entropy(logits[half : 2 * half], labels)
        if self.use_entropy:
            entropy = prediction_entropy(target_logits)
        if self.use_consistency:
            consistency = self._consistency(target_logits, logits[-half:])
        terms = (mapping_loss, class_loss, entropy, consistency)
        total = discriminator_loss + weights[0] * terms[0] + weights[1] * terms[1]
        total = total + weights[2] * terms[2] + weights[3] * terms[3]
        return total, (discriminator_loss, *terms, domain_accuracy)
