"""The pages and the headers of configurations: links lead somewhere, and every command is accepted."""

import importlib.util
import re
import shlex

import pytest
import yaml
from helpers import ROOT

from benchmarks import results
from src.setup import settings as experiment

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATIONS = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "config.yaml"]
PROGRAMS = ("train.py", "eval.py", "export.py")
OPEN = re.compile(r"[$…\[\]*]|X\.yaml|\bSEED\b|\bK\b")  # a line that the reader has to complete
# Files of its examples, which tests/test_extending.py runs.
EXTENDING = ROOT / "docs" / "extending.md"
NAMED = re.compile(
    r"`((?:src|model_utils|benchmarks|tests|configs|scripts)/[\w/.-]+\.(?:py|yaml|yml|sh|cpp))`"
)


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def links(page):
    """Targets of a page's links and pictures, without those on the web."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    return [link for link in found if not link.startswith("http")]


def anchors(page):
    """What a page's headings are called in links, by GitHub's rule."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-") for title in titles}


def blocks(page):
    """Blocks of code: those of a page, or the header of a configuration without its comment signs."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        header = text[: text.index("\n\n")].splitlines()
        return ["\n".join(re.sub(r"\s{4,}.*$", "", line.lstrip("#").strip()) for line in header)]
    return re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)


def commands(page):
    """The words of every complete command of PROGRAMS in a page's blocks of code."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("python ") and line.split()[1] in PROGRAMS:
                line = re.sub(r"\s+#.*$", "", line)
                if not OPEN.search(line):
                    yield shlex.split(line)[1:]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_lists_every_page():
    listed = set(links(ROOT / "docs" / "README.md"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("page", PAGES + CONFIGURATIONS, ids=names(PAGES + CONFIGURATIONS))
def test_every_command_names_keys_and_configurations_that_exist(page):
    for program, *words in commands(page) if page != EXTENDING else ():
        if any("mindcv/" in word for word in words) and importlib.util.find_spec("mindcv") is None:
            continue  # an optional package, which is not installed here
        # The recipe that a checkpoint would add is not there: options of evaluation belong to every method.
        if "--pretrained" in words and words[words.index("--pretrained") + 1].startswith("outputs/"):
            place = words.index("--pretrained")
            del words[place : place + 2]
        assert experiment.load(words, program) is not None or "--help" in words


@pytest.mark.parametrize("page", PAGES + CONFIGURATIONS, ids=names(PAGES + CONFIGURATIONS))
def test_every_module_named_can_be_run(page):
    """`python -m NAME` of this repository, in code and in sentences."""
    named = re.findall(
        r"python3? -m ((?:src|model_utils|benchmarks)[\w.]*\w)", page.read_text(encoding="utf-8")
    )
    places = [ROOT / name.replace(".", "/") for name in named]
    assert not [place for place in places if not (place.with_suffix(".py").exists() or place.is_dir())]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_file_named_exists(page):
    named = set(NAMED.findall(page.read_text(encoding="utf-8"))) if page != EXTENDING else set()
    assert not [
        path for path in named if not (ROOT / path).exists() and not re.search("X.yaml|/mine.py", path)
    ]


def test_commands_are_found_on_the_pages():
    assert sum(len(list(commands(page))) for page in PAGES) > 50
    assert sum(len(list(commands(page))) for page in CONFIGURATIONS) > 30


def test_the_first_screen():
    """README begins with what it is for, a picture, at most three commands and six rows of results."""
    for name in ("README.md", "README_CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        first = text[: text.index("\n## ")]
        assert "<img " in first and first.index("<img ") < first.index("```")
        assert len(re.findall(r"^python ", first, re.M)) == 3
        assert 2 < len(re.findall(r"^\| ", first, re.M)) <= 1 + 6
        badges = re.findall(r"!\[[^\]]*\]\(https://img\.shields\.io/badge/([^)]*)\)", first)
        assert [badge.split("-blue")[0] for badge in badges] == [
            "licence-Apache--2.0",
            "Python-3.10--3.12",
            "MindSpore-2.7--2.10",
        ]
    tested = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "mindspore>=2.7.0,<=2.10.0" in tested


def test_the_citation_file_is_valid_yaml_and_names_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    cited = {paper["url"].rsplit("/", 1)[1] for paper in citation["references"]}
    assert cited == set(re.findall(r"note += \{arXiv:([\d.]+)\}", page)) and len(cited) == 8


def test_fewer_than_three_seeds_have_no_spread():
    assert results.of_seeds([0.8, 0.9]) == "80.00 %, 90.00 %"
    assert results.of_seeds([0.8, 0.9, 0.85]) == "85.00 ± 5.00 %"


def test_published_figures_are_on_the_results_page():
    figures = yaml.safe_load(results.PUBLISHED.read_text(encoding="utf-8"))["figures"]
    page = results.PAGE.read_text(encoding="utf-8")
    for rows in figures.values():
        assert all(str(figure) in page for figure in rows.values())
