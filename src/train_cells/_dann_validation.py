"""DANN's validation figures, from held-out training images; never from a target label."""

import mindspore as ms
import numpy as np

from model_utils.device import jit
from src.evaluation.evaluate import evaluating


class Validation:
    """Classes of the source and domains of both, in evaluation mode.

    Args:
        network: with `backbone` and `class_classifier`.
        domain_classifier: features, or what `conditioning` makes of them, -> domain logits (N, 2).
        conditioning: None, or a cell (features, class logits) -> (N, D).
        config: `mode` chooses graph or PyNative.
    """

    def __init__(self, network, domain_classifier, conditioning, config):
        self.network, self.domain_classifier, self.conditioning = network, domain_classifier, conditioning
        self._evaluate = jit(self._logits, config)

    def _logits(self, images):
        features = self.network.backbone(images)
        logits = self.network.class_classifier(features)
        seen = features if self.conditioning is None else self.conditioning(features, logits)
        return logits, self.domain_classifier(seen)

    def figures(self, held_out, with_domains):
        """Mean losses in nats and accuracies by name, {} if nothing is held out.

        held_out: None, or {"source": loader, "target": loader whose labels are not read}.
        with_domains: whether the domain figures mean anything in this phase.
        """
        if held_out is None:
            return {}
        sums = np.zeros(6)
        with evaluating(self.network, self.domain_classifier):
            for domain, side in enumerate(("source", "target")):
                for images, labels in held_out[side]:
                    logits, domain_logits = (
                        t.asnumpy() for t in self._evaluate(ms.Tensor.from_numpy(images))
                    )
                    sums += _sums(logits, labels, domain_logits, domain)
        class_loss, class_hits, class_count, domain_loss, domain_hits, count = sums
        figures = {"class_loss": class_loss / class_count, "class_accuracy": class_hits / class_count}
        if with_domains:
            figures["domain_loss"] = 2 * domain_loss / count
            figures["domain_accuracy"] = domain_hits / count
        return figures


def _sums(logits, labels, domain_logits, domain):
    """(class loss, class hits, class count, domain loss, domain hits, count), summed over a batch."""
    count = len(domain_logits)
    domain_loss = -_log_softmax(domain_logits)[:, domain].sum()
    domain_hits = (domain_logits.argmax(1) == domain).sum()
    if domain == 1:
        return np.array([0, 0, 0, domain_loss, domain_hits, count], float)
    class_loss = -_log_softmax(logits)[np.arange(count), labels].sum()
    return np.array(
        [class_loss, (logits.argmax(1) == labels).sum(), count, domain_loss, domain_hits, count], float
    )


def _log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
