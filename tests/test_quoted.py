"""Every figure in documents and configurations is in the kept results, or listed with a reason."""

import sys

import pytest

from benchmarks import quoted, results
from model_utils.errors import UserError


@pytest.fixture(scope="module")
def known():
    return results.known()


@pytest.mark.parametrize("path", quoted.documents())
def test_every_figure_has_a_source(path, known):
    assert quoted.unknown(path, known, quoted.exceptions().get(path, [])) == ([], [])


def test_every_exception_is_of_a_document_and_has_a_reason():
    allowed = quoted.exceptions()
    assert set(allowed) <= set(quoted.documents())
    for entry in (entry for entries in allowed.values() for entry in entries):
        assert len(entry["reason"]) > 10 and ("figures" in entry) != ("section" in entry)


TEXT = """# Title

91.5 ± 0.4 % in words, 12.5 s, `88.8 %` in code, [1.23 %](https://x/4.56%20).

| arXiv 1409.7495 | MindSpore 2.7 and 2.10 | 0.9834 | 1,625.2 ms | 7 |

```
# 33 %
```

## Second

| 5 % |
"""


def test_what_counts_as_a_figure():
    found = quoted.figures(TEXT)
    assert [figure for _, _, figure in found] == ["91.5", "0.4", "1.23", "0.9834", "1,625.2", "33", "5"]
    assert [section for section, *_ in found] == ["Title"] * 6 + ["Second"]


def test_spellings_of_a_known_figure():
    assert quoted.is_known("0.9834", {"98.34"}) and quoted.is_known("1,625.2", {"1625.2"})
    assert not quoted.is_known("0.983", {"98.34"}) and not quoted.is_known("98.35", {"98.34"})


def test_unknown_figures_and_idle_exceptions_are_named(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(TEXT)
    monkeypatch.setattr(quoted, "ROOT", tmp_path)
    allowed = [
        {"reason": "x", "figures": ["91.5", 0.4, "9.9"]},
        {"reason": "x", "section": "Second"},
        {"reason": "x", "section": "Third"},
    ]
    left, idle = quoted.unknown("page.md", {"1625.2", "33"}, allowed)
    assert left == ["page.md:3: 1.23", "page.md:5: 0.9834"]
    assert idle == ["page.md: 9.9", "page.md: Third"]


def test_the_command_ends_with_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "page.md").write_text(TEXT)
    monkeypatch.setattr(quoted, "ROOT", tmp_path)
    monkeypatch.setattr(quoted, "documents", lambda: ["page.md"])
    monkeypatch.setattr(sys, "argv", ["quoted"])
    with pytest.raises(UserError, match="figures are in no kept result"):
        quoted.main()
    assert "page.md:3: 91.5" in capsys.readouterr().out
