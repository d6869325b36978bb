"""What a run or a sweep leaves, and whether two of them left the same; for benchmarks/kill_drill.py."""

import numpy as np
import optuna

from model_utils import checkpoint, run_log
from model_utils.errors import UserError
from src.sweeps.study import STORAGE


def of_run(folder, steps):
    """(parameters and optimizer state, the network's file, what was logged) of a run that has ended.

    Raises:
        UserError: its newest checkpoint is not that of its last step, or something half written is left.
    """
    newest, values, _ = checkpoint.newest(folder)
    if newest != checkpoint.step_path(folder, steps):
        raise UserError(f"{folder}: it ended with {newest.name}")
    if left := half_written(folder):
        raise UserError(f"{folder}: {sorted(left)[0]} is left")
    network, _ = checkpoint.read(folder / "network.ckpt")
    rows = [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in run_log.read_metrics(folder / "metrics.jsonl")
    ]
    return values, network, rows


def difference(one, other):
    """Where two ends differ, in words; None if they are bit for bit the same."""
    if isinstance(one, dict) or isinstance(other, dict):
        if one.keys() != other.keys():
            return f"names {sorted(one.keys() ^ other.keys())[:3]}"
        pairs = ((name, difference(one[name], other[name])) for name in one)
        return next((f"{name}: {found}" for name, found in pairs if found), None)
    if isinstance(one, tuple):
        return next((found for pair in zip(one, other, strict=True) if (found := difference(*pair))), None)
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
        return None if same else "other numbers"
    return None if one == other else f"{one!r:.80} and {other!r:.80}"


def half_written(folder):
    """The temporary files of checkpoints in a run's folder."""
    return {path.name for path in (folder / "checkpoints").glob(".step-*")}


def steps_logged(folder):
    """How many training steps a run has logged."""
    path = folder / "metrics.jsonl"
    return sum(row["kind"] == "train" for row in run_log.read_metrics(path)) if path.is_file() else 0


def of_sweep(folder, steps):
    """{trial: (state, values tried, objective, the network's parameters)} of a sweep that has ended.

    steps: of each run; its last checkpoint must be that of the last step.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / STORAGE).absolute()}")
    study = optuna.load_study(storage=storage, study_name="sweep")
    found = {}
    for trial in study.trials:
        run = folder / f"trial-{trial.number:04d}" / "seed-0"
        network, _ = checkpoint.read(run / "network.ckpt")
        last = checkpoint.listed(run)[0] == checkpoint.step_path(run, steps)
        found[trial.number] = (trial.state.name, last, dict(trial.params), trial.value, network)
    return found
