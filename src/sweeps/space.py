"""What a sweep tries: a YAML file with one line for each key.

lr: {low: 0.0003, high: 0.003, log: true}      a number between two, here by its logarithm
batch_size: {low: 16, high: 64, step: 16}      a whole number in steps
mcc_weight: [0.5, 1.0, 2.0]                    one of several values
"""

import optuna

from model_utils import config
from model_utils.errors import UserError

FIELDS = {"low", "high", "log", "step"}
FIXED = (
    "method",
    "network",
    "seed",
    "output_dir",
    "experiment",
    "resume",
)  # a sweep sets them, or they decide
MOST = 100  # keys, and values of one


def read(path, keys):
    """{key: optuna distribution} of a space.

    Args:
        path: the YAML file.
        keys: {name: Key} of the experiment, which say what a value may be.

    Raises:
        UserError: no such file, no key in it, an unknown key, or values that the key does not allow.
    """
    content = config.read_yaml(path)
    if not content:
        raise UserError(
            f"space: {path} is empty; give a line for each key, as lr: {{low: 0.001, high: 0.01}}"
        )
    if len(content) > MOST:
        raise UserError(f"space: {path} has {len(content)} keys; {MOST} are the most")
    return {name: _distribution(name, value, keys, path) for name, value in content.items()}


def _distribution(name, value, keys, path):
    if name not in keys:
        raise UserError(f"space: {path}: {name} is no key of this experiment; train.py --help lists them")
    key = keys[name]
    if name in FIXED or key.path or key.volatile:
        raise UserError(
            f"space: {path}: {name} can't be varied; it changes no number, or decides on the keys"
        )
    if isinstance(value, list):
        if len(value) < 2 or len(value) > MOST:
            raise UserError(f"space: {path}: {name} needs 2 to {MOST} values")
        parsed = [key.parse(name, one, path) for one in value]
        if len({repr(one) for one in parsed}) < len(parsed):
            raise UserError(f"space: {path}: {name} has a value twice")
        return optuna.distributions.CategoricalDistribution(parsed)
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= FIELDS:
        raise UserError(
            f"space: {path}: {name} must be a list of values, or low and high, perhaps with log: true or step"
        )
    return _range(name, value, key, path)


def _range(name, value, key, path):
    if isinstance(key.default, bool) or not isinstance(key.default, int | float):
        raise UserError(f"space: {path}: {name} is no number; give a list of its values")
    low, high = (key.parse(name, value[end], path) for end in ("low", "high"))
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool) or low >= high or (log and low <= 0) or (log and step is not None):
        raise UserError(
            f"space: {path}: {name} needs low below high, above 0 with log: true, and not log and step both"
        )
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float) or step <= 0):
        raise UserError(f"space: {path}: {name}: step must be a number above 0")
    if isinstance(key.default, int):
        if step is not None and not isinstance(step, int):
            raise UserError(f"space: {path}: {name}: step must be a whole number")
        return optuna.distributions.IntDistribution(low, high, log=log, step=step or 1)
    return optuna.distributions.FloatDistribution(low, high, log=log, step=step)
