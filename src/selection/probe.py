"""Measures the rules of a run while it trains, on a fixed sample of unlabelled target images.

A method that must not look at the target is measured on held-out source images alone.
"""

import json
from pathlib import Path

import numpy as np

from model_utils.checkpoint import atomic
from model_utils.digests import digest
from src import selection
from src.selection.evidence import Evidence

PREDICTIONS = "predictions.npz"


class Probe:
    """The rules' view of a run.

    Args:
        cell: a Trainer. count: target images that are looked at; always the same ones, whatever the seed.

    Attributes:
        probabilities: float32 (N, K) of the last `measure`, for rules over several runs.
    """

    def __init__(self, cell, count):
        self.cell, self.count, self.probabilities = cell, count, None
        batch = min(count, cell.evaluation_batch(cell.config))
        self.loader = cell.seen(cell.task.sample_of_target(cell.preparation, batch, count))

    def measure(self):
        """{rule: value} of the network as it is; rules that lack what they need are left out."""
        evidence = self._evidence()
        self.probabilities = evidence.target_probabilities.astype(np.float32)
        values = {name: selection.find(name).score(evidence) for name in selection.of_one_run()}
        return {name: value for name, value in values.items() if value is not None}

    def _evidence(self):
        evaluator = self.cell.evaluator
        inputs, _ = self.loader.sample(self.count, 0)
        features, logits = evaluator.of_inputs(inputs, self.loader.batch_size)

        def mixed(first, second, share):
            mixture = np.float32(share) * inputs[first] + np.float32(1 - share) * inputs[second]
            return evaluator.of_inputs(mixture, self.loader.batch_size)[1]

        return Evidence(
            logits, features, mixed, source_shares=self.cell.class_shares(), **of_held_out(self.cell)
        )

    def about(self):
        """What tells whether two runs were judged on the same images and classes: {"classes", "images"}."""
        names = map(digest, self.loader.identities(self.loader.indices))
        return {"classes": list(self.cell.task.classes), "images": digest(*map(bytes.fromhex, names))}

    def save(self, folder):
        """Write the probabilities, and what they are of, to `folder`/predictions.npz, whole or not at all."""
        about = np.frombuffer(json.dumps(self.about()).encode(), np.uint8)
        with atomic(Path(folder) / PREDICTIONS) as temporary:
            np.savez(temporary, probabilities=self.probabilities, about=about)


class SourceProbe(Probe):
    """The rules' view of a run whose method must not look at the target: held-out source images.

    Args:
        cell: a Trainer with held-out sources.
    """

    def __init__(self, cell):
        self.cell = cell
        self.probabilities = np.zeros((0, len(cell.task.classes)), np.float32)

    def measure(self):
        """{rule: value} of the rule that looks at no target image."""
        rule = selection.WITHOUT_TARGET
        evidence = Evidence(None, None, None, **of_held_out(self.cell))
        return {rule: selection.find(rule).score(evidence)}

    def about(self):
        """As that of a Probe; its images are told by their domains and numbers: their choice may hang on the
        seed."""
        sources = [f"{name} {loader.total}" for name, loader in self.cell.held_out_sources.items()]
        return {"classes": list(self.cell.task.classes), "images": digest(*map(str.encode, sources))}


def of_held_out(cell):
    """{"source_logits", "source_labels"} of all held-out source images of a Trainer; {} without any."""
    found = [cell.evaluator.predictions(loader) for loader in cell.held_out_sources.values()]
    if not found:
        return {}
    return {
        "source_logits": np.concatenate([logits for _, logits, _ in found]),
        "source_labels": np.concatenate([labels for _, _, labels in found]),
    }


def for_run(cell):
    """The Probe of a run, or None: the key is 0, it has no target, or nothing that may be looked at."""
    count = cell.config.validator_images
    if not count or cell.task.form.target is None:
        return None
    if cell.SEES_TARGET:
        return Probe(cell, count)
    return SourceProbe(cell) if cell.held_out_sources else None
