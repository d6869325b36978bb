"""Configuration: config.yaml, then an overlay, then the command line; every value checked.

Nothing is read or parsed at import. `load` is the only entry point of the commands.
"""

import difflib
from pathlib import Path

import yaml

from model_utils import paths
from model_utils.errors import UserError
from model_utils.key import FALSE, TRUE, Key  # noqa: F401 - FALSE and TRUE are the launcher's, too

ROOT = Path(__file__).resolve().parents[1]


class Config:
    """Resolved configuration: read-only attributes, one for each key (`config.lr`).

    `given` holds the names that stood on the command line, `keys` the schema.
    """

    def __init__(self, values, keys, given=()):
        self.__dict__.update(values)
        self.__dict__["_names"] = tuple(values)
        self.__dict__["keys"] = keys
        self.__dict__["given"] = frozenset(given)

    def __setattr__(self, name, value):
        raise AttributeError(f"the configuration is read-only ({name})")

    def as_dict(self):
        """All keys and values, in the order of --help; tuples as lists, which YAML and JSON can hold."""
        return {
            name: list(value) if isinstance(value := getattr(self, name), tuple) else value
            for name in self._names
        }

    def replace(self, **changes):
        """A copy with some values changed, checked as if they had come from the command line."""
        values = {name: getattr(self, name) for name in self._names}
        for name, value in changes.items():
            if name not in self.keys:
                raise _unknown(name, self.keys, "replace")
            values[name] = self.keys[name].parse(name, value, "replace")
        return Config(values, self.keys, self.given)

    def write(self, path):
        """Write the resolved configuration as YAML; it can be given to --config again."""
        Path(path).write_text(yaml.safe_dump(self.as_dict(), sort_keys=False), encoding="utf-8")


def _unknown(name, known, where):
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the keys"
    return UserError(f"unknown key {name} ({where}): {hint}")


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, but a key given twice in one mapping is an error instead of the last one winning."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: key {key.value} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path):
    """The mapping in a YAML file (safe loader); UserError if it is missing, unreadable or no mapping."""
    path = Path(paths.expanded(path, "configuration"))
    try:
        if not path.is_file() and not path.is_absolute() and (ROOT / path).is_file():
            path = ROOT / path
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(f"configuration {path}: {error.strerror}; give --config an existing file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: no UTF-8, or a date that does not exist; RecursionError: thousands of brackets.
        raise UserError(f"configuration {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration {path} must hold `key: value` lines, not {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def read_arguments(argv):
    """['--a', '1', '--b=2', '--flag'] -> {'a': '1', 'b': '2', 'flag': True}; '-h' counts as --help."""
    given, tokens = {}, list(argv)
    while tokens:
        token = tokens.pop(0)
        if token == "-h":
            token = "--help"
        if not token.startswith("--") or token == "--":
            raise UserError(f"unexpected argument {token!r}: options are written --key value")
        name, equals, value = token[2:].partition("=")
        if not equals:
            value = tokens.pop(0) if tokens and not tokens[0].startswith("--") else True
        given[name.replace("-", "_")] = value
    return given


def _schema(method):
    from model_utils.keys import COMMON
    from src.train_cells import find_method

    return {**COMMON, **find_method(method).KEYS}


def _aliases(method):
    """{published name: key it stands for}: those of every experiment, and a method's own."""
    from model_utils.keys import ALIASES
    from src.train_cells import find_method

    return {**ALIASES, **getattr(find_method(method), "ALIASES", {})}


def _own_names(layer, aliases, where):
    """`layer` with published names replaced by the keys they stand for."""
    twice = [alias for alias in layer if aliases.get(alias) in layer]
    if twice:
        raise UserError(f"{twice[0]} ({where}) is another name of {aliases[twice[0]]}; give one of them")
    return {aliases.get(name, name): value for name, value in layer.items()}


def _parse_layer(layer, keys, where):
    values = {}
    for name, value in layer.items():
        if name not in keys:
            raise _unknown(name, keys, where)
        if value is True and not isinstance(keys[name].default, bool):
            raise UserError(f"{name} ({where}) needs a value: {keys[name].allowed()}")
        values[name] = keys[name].parse(name, value, where)
    return values


def _stored(given, overlay, checkpoint_key):
    """The recipe stored with the checkpoint given to eval.py or export.py: nobody has to repeat it."""
    path = given.get(checkpoint_key) or overlay.get(checkpoint_key) if checkpoint_key else None
    if not path or not isinstance(path, str):
        return {}
    from model_utils.checkpoint import stored_config
    from model_utils.keys import COMMON

    stored = stored_config(path)
    asked = given.get("method") or overlay.get("method")
    if stored and asked and asked != stored["method"]:
        raise UserError(f"{checkpoint_key}: {path} was trained with method {stored['method']}, not {asked}")
    kept = ("method", "experiment", "seed")
    return {name: value for name, value in stored.items() if name in kept or name not in COMMON}


def load(argv, program="train.py", checkpoint_key=None):
    """Resolve the configuration of a command.

    Args:
        argv: the command line without the program's name, e.g. `sys.argv[1:]`.
        program: shown by --help.
        checkpoint_key: the key that names a checkpoint to evaluate or export; the recipe stored in it
            then takes the place of config.yaml's.

    Returns:
        Config, or None after --help was printed.

    Raises:
        UserError: unknown key, wrong type, value out of range, unreadable file.
    """
    given = read_arguments(argv)
    show_help = given.pop("help", False)
    overlay_path = given.pop("config", None)
    base_path = ROOT / "config.yaml"
    base = read_yaml(base_path)
    if overlay_path is True or overlay_path == "":
        raise UserError("--config needs a file, e.g. --config configs/demo.yaml")
    overlay = read_yaml(overlay_path) if overlay_path else {}

    stored = _stored(given, overlay, checkpoint_key)

    base_method = str(base.get("method", "dann"))
    layered = (layer["method"] for layer in (given, overlay, stored) if "method" in layer)
    method = str(next(layered, base_method))
    keys = _schema(method)
    if method != base_method:
        # config.yaml's common keys hold for every experiment, its recipe only for the method it names.
        recipe_of_base = _schema(base_method)
        foreign = [name for name in base if name in recipe_of_base and _is_recipe(name)]
        base = {name: value for name, value in base.items() if name not in foreign}
    aliases = _aliases(method)
    overlay, given = _own_names(overlay, aliases, overlay_path), _own_names(given, aliases, "command line")
    stored = {name: value for name, value in stored.items() if name in keys}
    layers = [
        (base, base_path.name),
        (stored, "stored with the checkpoint"),
        (overlay, str(overlay_path)),
        (given, "command line"),
    ]
    values = {name: key.default for name, key in keys.items()}
    for layer, where in layers:
        values.update(_parse_layer(layer, keys, where))
    values["method"] = method
    if not values["experiment"]:
        values["experiment"] = Path(overlay_path).stem if overlay_path else method
    elif overlay_path and "experiment" not in overlay and "experiment" not in given:
        values["experiment"] = Path(overlay_path).stem
    config = Config(values, keys, given)
    if show_help:
        print_help(config, program)
        return None
    return config


def _is_recipe(name):
    from model_utils.keys import COMMON

    return name not in COMMON


def print_help(config, program):
    """List every key of the chosen experiment with its default, meaning and allowed values."""
    print(f"usage: python {program} [--config configs/X.yaml] [--key value …]\n")
    aliases = _aliases(config.method)
    print(f"Keys of method {config.method}, with the defaults of this experiment ({config.experiment}):\n")
    for name, key in config.keys.items():
        value = config.as_dict()[name]
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        shown = str(shown).lower() if isinstance(value, bool) else shown
        also = "".join(f" (or --{alias})" for alias, own in aliases.items() if own == name)
        print(f"  --{name} {shown}{also}\n        {key.help} [{key.allowed()}]")
