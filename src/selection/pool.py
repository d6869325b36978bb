"""A pool of finished runs of one task, what each rule says of them, and which one it chooses."""

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from model_utils.errors import UserError
from src import selection
from src.evaluation.result import target_accuracy
from src.selection import WITHOUT_TARGET
from src.selection.probe import PREDICTIONS

GATE = 0.9  # a candidate needs this share of the best held-out source accuracy
DEFAULT = "ensv"
TASK = ("domain_set", "target_dataset_name", "target_domain", "target_split")  # keys that say which it is


@dataclasses.dataclass
class Candidate:
    """A finished run.

    Attributes:
        folder: of the run. values: {rule: value}.
        probabilities: float (N, K) of target images, N = 0 where the method must not look at any.
        about: what they are of.
        accuracy: of the target's test images in [0, 1]; None where they have no labels.
    """

    folder: Path
    values: dict
    probabilities: np.ndarray
    about: dict
    accuracy: float | None


def read(folder):
    """The Candidate in a run's folder.

    Raises:
        UserError: it holds no finished run, or one without what selection needs.
    """
    folder = Path(folder)
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no finished run (result.json); give folders of runs") from error
    except ValueError as error:
        raise UserError(f"{folder / 'result.json'} is damaged; leave this run out") from error
    path, wanted = folder / PREDICTIONS, "train it with a target and validator_images above 0"
    if not path.is_file() or not isinstance(result, dict) or not result.get("selection"):
        raise UserError(f"{folder} has nothing to select by; {wanted}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            probabilities, about = stored["probabilities"], json.loads(stored["about"].tobytes())
        if probabilities.ndim != 2 or not np.isfinite(probabilities).all() or not isinstance(about, dict):
            raise ValueError("no predictions")
        values = {str(name): float(value) for name, value in result["selection"].items()}
        accuracies = {str(name): float(value) for name, value in result["accuracy"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} or result.json beside it is damaged; leave this run out") from error
    accuracy = target_accuracy({**result, "accuracy": accuracies})
    return Candidate(folder, values, probabilities, about, accuracy)


def passes_gate(accuracies):
    """[whether a run may be chosen], by held-out source accuracies; None, where there is none, passes."""
    best = max((value for value in accuracies if value is not None), default=0.0)
    return [value is None or value >= GATE * best for value in accuracies]


def best(values, allowed):
    """The place of the largest value that is allowed, the first of equals; None if there is none.

    values: floats, or None where a rule has none. allowed: bools.
    """
    known = [
        value if passes and value is not None else -np.inf
        for value, passes in zip(values, allowed, strict=True)
    ]
    return int(np.argmax(known)) if np.isfinite(max(known)) else None


class Pool:
    """Candidates for one task, at least two.

    Raises:
        UserError: fewer, or they were judged on other classes or other target images.

    Attributes:
        candidates: list of Candidate.
        table: {rule: [value of each candidate, or None]}, of the rules for one run and for several.
        gated: [whether a candidate's held-out source accuracy is high enough]; one that has none passes.
    """

    def __init__(self, candidates):
        if len(candidates) < 2:
            raise UserError("there is one run; give two or more to choose from")
        first = candidates[0]
        for other in candidates[1:]:
            if other.about != first.about or other.probabilities.shape != first.probabilities.shape:
                raise UserError(
                    f"{first.folder} and {other.folder} are runs of different tasks: other classes, other "
                    "target images, or another validator_images; select among runs of one task"
                )
        self.candidates = candidates
        probabilities = [candidate.probabilities for candidate in candidates]
        self.table = {}
        for name in selection.names():
            rule = selection.find(name)
            if hasattr(rule, "scores"):
                if len(probabilities[0]):
                    self.table[name] = rule.scores(probabilities)
            else:
                values = [candidate.values.get(name) for candidate in candidates]
                if any(value is not None for value in values):
                    self.table[name] = values
        self.gated = passes_gate(self.table.get(WITHOUT_TARGET) or [None] * len(candidates))

    @property
    def default(self):
        """The rule that chooses unless another one is named."""
        return DEFAULT if DEFAULT in self.table else WITHOUT_TARGET

    def choice(self, name):
        """The place of the candidate that a rule chooses, the first of equals; None if it has no value.

        Candidates behind the gate are left out, but for the rule source_accuracy itself.
        """
        if name not in self.table:
            raise UserError(f"by: rule {name} has no value for these runs; rules: {', '.join(self.table)}")
        everyone = [True] * len(self.candidates)
        return best(self.table[name], everyone if name == WITHOUT_TARGET else self.gated)

    @property
    def accuracies(self):
        """[target accuracy in %], or None unless all are known."""
        known = [candidate.accuracy for candidate in self.candidates]
        return None if any(value is None for value in known) else [100 * value for value in known]

    def judged(self, name):
        """{"chosen", "accuracy", "regret", "rank_correlation", "worst_quarter"} of a rule, by target labels.

        Accuracies and regret (best minus chosen) in points; None where the accuracies are not known.
        """
        chosen, accuracies = self.choice(name), self.accuracies
        if accuracies is None or chosen is None:
            return None
        pairs = [(v, a) for v, a in zip(self.table[name], accuracies, strict=True) if v is not None]
        columns = list(zip(*pairs, strict=True))
        flat = len(pairs) < 2 or any(len(set(column)) < 2 for column in columns)
        quarter = np.quantile(accuracies, 0.25)
        return {
            "chosen": str(self.candidates[chosen].folder),
            "accuracy": accuracies[chosen],
            "regret": max(accuracies) - accuracies[chosen],
            "rank_correlation": None if flat else float(spearmanr(*columns).statistic),
            "worst_quarter": bool(accuracies[chosen] < quarter),
        }


def lines(pool):
    """The pool as text: what each rule says of each candidate, and what each rule would choose."""
    names = list(pool.table)
    heads = ["run", *names, *(["target (oracle)"] if pool.accuracies else [])]
    rows = []
    for place, candidate in enumerate(pool.candidates):
        values = [pool.table[name][place] for name in names]
        cells = ["–" if value is None else f"{value:.4f}" for value in values]
        cells += [f"{pool.accuracies[place]:.2f} %"] if pool.accuracies else []
        gate = "" if pool.gated[place] else " (source accuracy too low)"
        rows.append([f"{candidate.folder}{gate}", *cells])
    text = _aligned([heads, *rows])
    chosen = {name: pool.choice(name) for name in names}
    heads = ["rule", "chooses"]
    heads += ["accuracy", "regret", "rank correlation"] if pool.accuracies else []
    rows = []
    for name, place in chosen.items():
        row = [name, "–" if place is None else str(pool.candidates[place].folder)]
        if pool.accuracies:
            judged = pool.judged(name)
            correlation = judged and judged["rank_correlation"]
            row += [f"{judged['accuracy']:.2f} %", f"{judged['regret']:.2f}"] if judged else ["–", "–"]
            row.append("–" if correlation is None else f"{correlation:+.2f}")
        rows.append(row)
    text += ["", *_aligned([heads, *rows])]
    if pool.accuracies:
        best, worst = max(pool.accuracies), min(pool.accuracies)
        text += ["", f"oracle, chosen by target labels: {best:.2f} %; the worst candidate: {worst:.2f} %"]
    votes = [place for place in chosen.values() if place is not None]
    most = max(set(votes), key=votes.count)
    agreeing = f"{votes.count(most)} of {len(votes)} rules choose {pool.candidates[most].folder}"
    return [*text, "", agreeing]


def _aligned(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
