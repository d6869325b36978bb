"""The losses of domain-adversarial training. Networks are `networks.Classifier`; losses are in nats."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils import noise
from src.losses.classification import GradientReversal, accuracy, cross_entropy, prediction_entropy


def first_rows(masks, count):
    """The masks of the first `count` images."""
    chosen = ()
    for mask in masks:
        chosen += (mask[:count],)
    return chosen


def other_rows(masks, count):
    """The masks of the images behind the first `count`."""
    chosen = ()
    for mask in masks:
        chosen += (mask[count:],)
    return chosen


def both_features(network, images, masks, half, joint):
    """float32 features (2N, D) of `half` source rows, then of the target's; with `joint`, from one batch."""
    if joint:
        return ops.cast(network.features(images, *masks), ms.float32)
    source = network.features(images[:half], *first_rows(masks, half))
    target = network.features(images[half:], *other_rows(masks, half))
    return ops.cast(ops.concat((source, target)), ms.float32)


def both_logits(network, images, masks, half, joint):
    """float32 class logits of `half` source rows, and of the target's; with `joint`, from one batch."""
    if joint:
        logits = ops.cast(network(images, *masks), ms.float32)
        return logits[:half], logits[half:]
    source = network(images[:half], *first_rows(masks, half))
    target = network(images[half:], *other_rows(masks, half))
    return ops.cast(source, ms.float32), ops.cast(target, ms.float32)


class PretrainLoss(nn.Cell):
    """Source-only training: cross-entropy of the class logits, mean over the batch, and their accuracy."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, labels, *masks):
        logits = ops.cast(self.network(images, *masks), ms.float32)
        return cross_entropy(logits, labels), (accuracy(logits, labels),)


class Conditioning(nn.Cell):
    """What the domain classifier of CDAN sees: features (N, D) and class logits (N, K) -> (N, D).

    A randomised multilinear map, (F f) * (G g) / √D with g the class probabilities and fixed standard normal
    F (D, D), G (D, K), in place of their outer product of D·K columns (Long et al. 2018, arXiv 1705.10667,
    eq. 6). The class probabilities get no gradient from it, as in the authors' program. F and G depend
    on the seed alone and are not part of a checkpoint.
    """

    def __init__(self, seed, features, classes):
        super().__init__(auto_prefix=False)
        rng = noise.generator(seed, "conditional alignment")
        scale = features**-0.25  # of each factor
        self.of_features = ms.Tensor(rng.standard_normal((features, features), np.float32) * scale)
        self.of_classes = ms.Tensor(rng.standard_normal((classes, features), np.float32) * scale)

    def construct(self, features, logits):
        probabilities = ops.stop_gradient(ops.softmax(logits, 1))
        return ops.matmul(features, self.of_features) * ops.matmul(probabilities, self.of_classes)


class AdversarialLoss(nn.Cell):
    """Class loss, domain loss and target entropy of one source and one target batch.

    Inputs: images (2N, C, S, S), source rows first; labels (N,); domains (2N,), zeros then ones; `reverse`,
        the scalar Tensor that the domain loss's gradient is multiplied by (negated) on its way into the
        backbone; `weights` (2,), the factors of the domain loss and of the target entropy in the total; then
        the dropout masks of the 2N rows.

    Args:
        network, domain_classifier: images -> logits, and features -> domain logits.
        joint: whether both domains go through the backbone as one batch.
        use_entropy: whether the target entropy is computed.
        fool: invert the domain labels: the generator's loss of the alternating adversary.
        conditioning: None, or the Conditioning that joins features and class logits for the domain
            classifier.

    Returns the total and (class loss, domain loss source + target, entropy, class and domain accuracy).
    """

    def __init__(self, network, domain_classifier, joint, use_entropy, fool=False, conditioning=None):
        super().__init__(auto_prefix=False)
        self.network, self.domain_classifier, self.split = network, domain_classifier, network.split
        self.reversal = GradientReversal()
        self.joint, self.use_entropy, self.fool = joint, use_entropy, fool
        self.conditioning = conditioning
        self.use_target_logits = use_entropy or conditioning is not None

    def _logits(self, features, masks, half):
        """(source logits, target logits); the target's only where something reads them."""
        if self.joint and self.use_target_logits:
            logits = ops.cast(self.network.classify(features, *masks), ms.float32)
            return logits[:half], logits[half:]
        source = self.network.classify(features[:half], *first_rows(masks, half))
        source = ops.cast(source, ms.float32)
        if not self.use_target_logits:
            return source, None
        target = self.network.classify(features[half:], *other_rows(masks, half))
        return source, ops.cast(target, ms.float32)

    def construct(self, images, labels, domains, reverse, weights, *masks):
        half = labels.shape[0]
        features = both_features(self.network, images, masks[: self.split], half, self.joint)
        source_logits, target_logits = self._logits(features, masks[self.split :], half)
        class_loss = cross_entropy(source_logits, labels)
        seen = self.reversal(features, reverse)
        if self.conditioning is not None:
            seen = self.conditioning(seen, ops.concat((source_logits, target_logits)))
        domain_logits = ops.cast(self.domain_classifier(seen), ms.float32)
        wanted = 1 - domains if self.fool else domains
        # The mean over 2N rows is half the sum of the two domains' means; the paper adds them.
        domain_loss = 2.0 * cross_entropy(domain_logits, wanted)
        entropy = prediction_entropy(target_logits) if self.use_entropy else ops.zeros_like(class_loss)
        total = class_loss + weights[0] * domain_loss + weights[1] * entropy
        class_accuracy = accuracy(source_logits, labels)
        return total, (class_loss, domain_loss, entropy, class_accuracy, accuracy(domain_logits, domains))


class DiscriminatorLoss(nn.Cell):
    """The alternating adversary's discriminator step: domain loss on features that get no gradient.

    Inputs: images (2N, C, S, S), domains (2N,), then the backbone's dropout masks of the 2N rows.
    """

    def __init__(self, network, domain_classifier, joint):
        super().__init__(auto_prefix=False)
        self.network, self.domain_classifier, self.joint = network, domain_classifier, joint

    def construct(self, images, domains, *masks):
        features = both_features(self.network, images, masks, domains.shape[0] // 2, self.joint)
        logits = ops.cast(self.domain_classifier(ops.stop_gradient(features)), ms.float32)
        return 2.0 * cross_entropy(logits, domains), (accuracy(logits, domains),)
