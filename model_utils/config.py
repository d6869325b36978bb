"""A resolved configuration, and how YAML files and command lines are read; src/setup/settings.py puts them
together.

Nothing is read or parsed at import.
"""

from pathlib import Path

import yaml

from model_utils import limited, paths
from model_utils.errors import UserError
from model_utils.key import FALSE, TRUE  # noqa: F401 - the launcher's, too

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 64 * 2**10  # of a YAML file: 64 KiB of brackets take the reader seconds; ours have 4


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
                raise UserError(f"unknown key {name} (replace)")
            values[name] = self.keys[name].parse(name, value, "replace")
        return Config(values, self.keys, self.given)

    def write(self, path):
        """Write the resolved configuration as YAML; it can be given to --config again."""
        Path(path).write_text(yaml.safe_dump(self.as_dict(), sort_keys=False), encoding="utf-8")


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
        content = yaml.load(limited.content(path, MAX_BYTES).decode(), _UniqueKeys)
    except OSError as error:
        raise UserError(f"configuration {path}: {error.strerror}; give --config an existing file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: too large, no UTF-8, a date that does not exist; RecursionError: thousands of brackets.
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
