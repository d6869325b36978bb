"""docs/extending.md: its files, put into a copy of the repository, do what the page says."""

import os
import re
import shlex
import shutil

import pytest
from helpers import ROOT, forked

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"^`((?:src|tests)/[\w./]+)`\n\n```\w+\n(.*?)^```", PAGE, re.S | re.M)
COMMANDS = re.findall(r"^python .*", PAGE, re.M)
COPIED = ("src", "model_utils", "configs", "config.yaml", "tests", "train.py", "eval.py", "export.py")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository with the page's files, none of which exist already."""
    folder = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    assert len(FILES) >= 5
    for name, text in FILES:
        assert not (folder / name).exists()
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(folder, words):
    return forked(words, folder, timeout=300, PYTHONPATH=str(folder))


def test_page_has_every_kind_of_example():
    kinds = {os.path.dirname(name) for name, _ in FILES}
    assert kinds == {"src/train_cells", "src/networks", "src/data", "tests/tiny"}
    assert len(COMMANDS) >= 5


def run_all(copy, wanted):
    for line in COMMANDS:
        if "key_tables" not in line and wanted(line):
            done = run(copy, shlex.split(line)[1:])
            assert done.returncode == 0, line + done.stderr


def test_training_commands_of_the_page_run(copy):
    run_all(copy, lambda line: "train.py" in line)


@pytest.mark.thorough
def test_other_commands_of_the_page_run(copy):
    run_all(copy, lambda line: "train.py" not in line)


@pytest.mark.parametrize("name", [name for name, _ in FILES if name.endswith(".py")])
def test_files_of_the_page_are_written_as_the_others_are(copy, name):
    done = run(copy, ["-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), name])
    assert done.returncode == 0, done.stdout


def test_a_new_key_of_the_new_method_is_known_and_helped(copy):
    done = run(copy, ["train.py", "--method", "mean_match", "--help"])
    assert done.returncode == 0 and "--match_weight 0.1" in done.stdout
