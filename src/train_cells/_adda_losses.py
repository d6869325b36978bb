"""The losses of ADDA: source training, the discriminator, and one simultaneous update of both networks."""

import mindspore as ms
from mindspore import nn, ops

from src.losses.classification import accuracy, cross_entropy, prediction_entropy

TERMS = ("discriminator_loss", "mapping_loss", "class_loss", "entropy", "consistency", "domain_accuracy")


class SourceLoss(nn.Cell):
    """Cross-entropy of the class logits (nats, mean over the batch) and their accuracy."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, labels):
        logits = self.network(images)
        return cross_entropy(logits, labels), accuracy(logits, labels)


class DiscriminatorLoss(nn.Cell):
    """Cross-entropy of the domain logits over both batches (equation 7 of the paper), and their accuracy.

    Inputs: class logits of source and target images, (N, 10) each, that get no gradient; domains, int32
    (2N,), N zeros, then N ones.
    """

    def __init__(self, discriminator):
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator

    def construct(self, source_logits, target_logits, domains):
        rows = ops.stop_gradient(ops.concat((source_logits, target_logits)))
        logits = self.discriminator(rows)
        return cross_entropy(logits, domains), accuracy(logits, domains)


class WarmUpLoss(nn.Cell):
    """The discriminator's loss of one source and one target batch, both networks at rest."""

    def __init__(self, network, source_network, discriminator):
        super().__init__(auto_prefix=False)
        self.network, self.source_network = network, source_network
        self.loss = DiscriminatorLoss(discriminator)

    def construct(self, source, target, domains):
        return self.loss(self.source_network(source), self.network(target), domains)


class AdaptLoss(nn.Cell):
    """All losses of one simultaneous update.

    The discriminator's loss reaches only the discriminator. Everything else reaches only the target network:
    the mapping loss, i.e. the cross-entropy of the target's domain logits against "source" (equation 8), and
    where their weights are not 0 the class loss on source images, the entropy of the target predictions
    (Grandvalet & Bengio 2004) and the cross-entropy of strongly augmented target images against the confident
    predictions of the target images themselves (Sohn et al. 2020, arXiv 2001.07685).

    Inputs: source, target, strong: images (N, 1, 28, 28), `strong` being the augmented target; labels (N,);
    domains (2N,), zeros then ones; weights (4,): of mapping, class, entropy and consistency loss.

    Returns the total and the scalars named in TERMS.
    """

    def __init__(self, network, source_network, discriminator, config):
        super().__init__(auto_prefix=False)
        self.network, self.source_network, self.discriminator = network, source_network, discriminator
        self.discriminator_loss = DiscriminatorLoss(discriminator)
        self.use_class, self.use_entropy = config.class_weight > 0, config.entropy_weight > 0
        self.use_consistency, self.confidence = config.consistency_weight > 0, config.confidence

    def _forward(self, source, target, strong):
        """Logits of what is needed, target rows first, in one pass (there is no batch normalisation)."""
        rows = (target,)
        if self.use_class:
            rows = rows + (source,)
        if self.use_consistency:
            rows = rows + (strong,)
        return self.network(ops.concat(rows) if len(rows) > 1 else target)

    def _consistency(self, weak_logits, strong_logits):
        probabilities = ops.stop_gradient(ops.softmax(weak_logits, 1))
        confident = ops.cast(ops.amax(probabilities, 1) >= self.confidence, ms.float32)
        guess = ops.cast(ops.argmax(probabilities, 1), ms.int32)
        return ops.mean(confident * ops.cross_entropy(strong_logits, guess, reduction="none"))

    def construct(self, source, labels, target, strong, domains, weights):
        half = labels.shape[0]
        logits = self._forward(source, target, strong)
        target_logits = logits[:half]
        discriminator_loss, domain_accuracy = self.discriminator_loss(
            self.source_network(source), target_logits, domains
        )
        mapping_loss = cross_entropy(self.discriminator.frozen(target_logits), domains[:half])
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
