"""docs/keys.md, every configuration key in tables: python -m src.setup.key_tables [--check]

It is written from the keys themselves, so that the page and `--help` always agree. `--check` writes
nothing and fails if the page is not what the keys give.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import argparse
import dataclasses
import sys

from model_utils import cli, generated_page
from model_utils.config import ROOT
from model_utils.keys import COMMON
from src import networks
from src.data import keys
from src.train_cells import find_method, method_names
from src.training import keys as training_keys

PAGE = ROOT / "docs" / "keys.md"
INTRODUCTION = """# Configuration keys

Written by `python -m src.setup.key_tables`; `python train.py --help` shows the same for one experiment. The
defaults of a method are not always a published recipe. Recipes are in `config.yaml` and `configs/*.yaml`;
the headers of these files say which of them are published recipes and which are ours.
`config.yaml` is read first, then the file given with `--config`, then the command line. The last value
counts.
"""


def _text(value):
    """A default as a configuration file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


def _table(keys):
    lines = ["| key | default | meaning | allowed |", "|---|---|---|---|"]
    for name, key in keys.items():
        shown = f"`{_text(key.default)}`" if key.default != "" else ""
        allowed = key.allowed().replace("|", "/")
        lines.append(f"| `{name}` | {shown} | {key.help.replace('|', '/')} | {allowed} |")
    return "\n".join(lines)


def page():
    """The text of docs/keys.md."""
    shared = {**keys.KEYS, **networks.keys(), **training_keys.keys()}
    parts = [INTRODUCTION, "## Every experiment\n", _table(COMMON)]
    for title, table in (
        ("Data", keys.KEYS),
        ("Network", networks.keys()),
        ("Training", training_keys.keys()),
    ):
        parts += [f"\n## {title}\n", "Keys of every method and network.\n", _table(table)]
    for module in networks.modules():
        if own := networks.family(module).keys:
            parts += [f"\n## Networks `{module}…`\n", _table(own)]
    for name in method_names():
        method = find_method(name)
        title = sys.modules[method.__module__].__doc__.strip().splitlines()[0].rstrip(".")
        changed = {key: dataclasses.replace(shared[key], default=v) for key, v in method.DEFAULTS.items()}
        parts += [f"\n## `method: {name}`\n", f"{title}.\n", _table(method.KEYS)]
        parts += ["\nDefaults of other keys:\n", _defaults(changed)]
    return "\n".join(parts) + "\n"


def _defaults(changed):
    shown = (f"`{name}: {_text(key.default)}`" for name, key in changed.items())
    return ", ".join(shown) + "."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = page()
    generated_page.write(PAGE, text, arguments.check, "src.setup.key_tables")
    print(f"{PAGE.relative_to(ROOT)}: {text.count('| `')} keys")


if __name__ == "__main__":
    cli.run(main)
