"""The loss cells of DANN: pre-training, adversarial training and its discriminator."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils import noise
from src.losses.classification import GradientReversal, accuracy, cross_entropy, prediction_entropy


class PretrainLoss(nn.Cell):
    """Source-only training: cross-entropy of the class logits (nats, mean over the batch)."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.backbone, self.classifier = network.backbone, network.class_classifier

    def construct(self, images, labels, keep_map, keep_hidden):
        logits = self.classifier(self.backbone(images, keep_map), keep_hidden)
        return cross_entropy(logits, labels), accuracy(logits, labels)


def both_features(backbone, images, keep_map, half, joint):
    """Features of `half` source rows, then of the target rows; with `joint`, from one batch."""
    if joint:
        return backbone(images, keep_map)
    source = backbone(images[:half], keep_map[:half])
    return ops.concat((source, backbone(images[half:], keep_map[half:])))


class Conditioning(nn.Cell):
    """What the domain classifier of CDAN sees: features (N, D) and class logits (N, K) -> (N, D).

    A randomised multilinear map, (F f) * (G g) / √D with g the class probabilities and fixed standard normal
    F (D, D), G (D, K), in place of their outer product of D·K columns (Long et al. 2018, arXiv 1705.10667,
    eq. 6). The class probabilities get no gradient from it, as in the authors' program. F and G depend
    on the seed alone and are not part of a checkpoint.
    """

    def __init__(self, seed, features, classes=10):
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

    Inputs: images (2N, 3, 28, 28), source rows first; labels (N,); dropout masks for the 2N rows;
    `reverse`, the scalar Tensor that the domain loss's gradient is multiplied by (negated) on its way into
    the backbone; `weights` (2,), the factors of the domain loss and of the target entropy in the total.
    With `fool` the domain labels are inverted: the generator's loss of the alternating adversary.
    `conditioning`: None, or the Conditioning that joins features and class logits for the domain classifier.

    Returns the total and (class loss, domain loss source + target, entropy, class and domain accuracy).
    """

    def __init__(self, network, domain_classifier, joint, use_entropy, fool=False, conditioning=None):
        super().__init__(auto_prefix=False)
        self.backbone, self.classifier = network.backbone, network.class_classifier
        self.domain_classifier = domain_classifier
        self.reversal = GradientReversal()
        self.joint, self.use_entropy, self.fool = joint, use_entropy, fool
        self.conditioning = conditioning
        self.use_target_logits = use_entropy or conditioning is not None

    def _logits(self, features, keep_hidden, half):
        """(source logits, target logits); the target's only where something reads them."""
        if not self.use_target_logits:
            return self.classifier(features[:half], keep_hidden[:half]), None
        if self.joint:
            logits = self.classifier(features, keep_hidden)
            return logits[:half], logits[half:]
        source = self.classifier(features[:half], keep_hidden[:half])
        return source, self.classifier(features[half:], keep_hidden[half:])

    def construct(self, images, labels, domains, keep_map, keep_hidden, reverse, weights):
        half = labels.shape[0]
        features = both_features(self.backbone, images, keep_map, half, self.joint)
        source_logits, target_logits = self._logits(features, keep_hidden, half)
        class_loss = cross_entropy(source_logits, labels)
        seen = self.reversal(features, reverse)
        if self.conditioning is not None:
            seen = self.conditioning(seen, ops.concat((source_logits, target_logits)))
        domain_logits = self.domain_classifier(seen)
        wanted = 1 - domains if self.fool else domains
        # The mean over 2N rows is half the sum of the two domains' means; the paper adds them.
        domain_loss = 2.0 * cross_entropy(domain_logits, wanted)
        entropy = prediction_entropy(target_logits) if self.use_entropy else ops.zeros_like(class_loss)
        total = class_loss + weights[0] * domain_loss + weights[1] * entropy
        class_accuracy = accuracy(source_logits, labels)
        return total, (class_loss, domain_loss, entropy, class_accuracy, accuracy(domain_logits, domains))


class DiscriminatorLoss(nn.Cell):
    """The alternating adversary's discriminator step: domain loss on features that get no gradient."""

    def __init__(self, network, domain_classifier, joint):
        super().__init__(auto_prefix=False)
        self.backbone, self.domain_classifier, self.joint = network.backbone, domain_classifier, joint

    def construct(self, images, domains, keep_map):
        features = both_features(self.backbone, images, keep_map, domains.shape[0] // 2, self.joint)
        logits = self.domain_classifier(ops.stop_gradient(features))
        return 2.0 * cross_entropy(logits, domains), accuracy(logits, domains)
