"""The two READMEs: every script is in them, every link leads somewhere; the page of keys is up to date."""

import re
from pathlib import Path

import pytest

from model_utils.config import ROOT
from src.setup import key_tables

READMES = ("README.md", "README_CN.md")


@pytest.fixture(params=READMES)
def readme(request):
    return (ROOT / request.param).read_text(encoding="utf-8")


def test_page_of_keys_is_what_the_keys_give():
    assert key_tables.PAGE.read_text(encoding="utf-8") == key_tables.page()


def test_every_launcher_is_listed(readme):
    scripts = [path.name for path in (ROOT / "scripts").glob("*.sh")]
    users = [name for name in scripts if name not in ("common.sh", "adda.sh")]
    assert users and all(name in readme for name in users)


def test_every_link_and_named_file_exists(readme):
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    named = re.findall(r"(?:configs|scripts|docs|src|benchmarks)/[\w./-]+\.(?:yaml|sh|md|py)\b", readme)
    assert linked and named
    invented = {"configs/X.yaml", "src/data/mine.py"}  # stand for a reader's own
    missing = [path for path in {*linked, *named} - invented if not (ROOT / path).exists()]
    assert not missing


def test_nothing_is_left_to_fill_in(readme):
    assert "{{" not in readme and "@" not in readme


def test_both_languages_have_the_same_tables_and_figures():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    for pattern in (r"^\|", r"^## ", r"^### ", r"^```"):
        assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, chinese, re.M)), pattern
    accuracy = re.compile(r"\d\d\.\d\d? ?(?:±|%)")
    assert sorted(accuracy.findall(english)) == sorted(accuracy.findall(chinese))


def test_no_document_names_a_path_of_some_machine():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(?:work|root)/\w|/home/(?!me/)", text), Path(path).name
