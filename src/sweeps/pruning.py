"""Trials that end early because a rule without target labels says that they are poor.

Optuna's MedianPruner decides: a trial is pruned at an evaluation where its best value so far lies below the
median that finished trials had there, once five trials are finished.
"""

import optuna
from optuna.trial import TrialState

from model_utils import run_log

METRICS = "metrics.jsonl"


class Pruned(Exception):
    """The trial was pruned; its text says where."""


class Watch:
    """Looks at the evaluations of a trial, and decides by them and by earlier batches alone.

    A run that ended before it could be stopped is pruned all the same, so that the outcome does not depend on
    how fast anything was. The last evaluation stops nothing.

    Args:
        study: Optuna's, of the trials of earlier batches. rule: the objective.
    """

    def __init__(self, study, rule):
        self.study, self.rule = study, rule
        self.pruner = optuna.pruners.MedianPruner()

    def of(self, folder):
        """A function that says whether the run in a folder is to be stopped."""
        return lambda: self._verdict(folder) is not None

    def judge(self, folder):
        """Raise Pruned if an evaluation of the run in a folder says so."""
        line = self._verdict(folder)
        if line:
            raise Pruned(line)

    def _verdict(self, folder):
        seen = {}
        for step, value in curve(folder, self.rule).items():
            seen[step] = value
            trial = optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values=dict(seen))
            if self.pruner.prune(self.study, trial):
                return f"pruned after step {step}: {self.rule} {value:.4f}"
        return None


def curve(folder, rule):
    """{step: value} of a rule at the evaluations of a run, the last one left out."""
    return {
        row["step"]: row[rule]
        for row in run_log.read_metrics(folder / METRICS)
        if row["kind"] == "selection" and rule in row and row["step"] < row.get("steps", 0)
    }
