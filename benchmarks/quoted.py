"""Figures in documents and configurations that no kept result gives: python -m benchmarks.quoted

A figure is a number with a per cent sign, or a number with a decimal point in a row of a table. It has to be
among what benchmarks/results, experiments.yaml and published.yaml hold (`results.known`). What can't be there
stands in benchmarks/quoted.yaml with the reason. Text in `code`, links, versions and the numbers of arXiv are
no figures. Generated pages are left out.
"""

import argparse
import re

import yaml

from benchmarks import results
from model_utils import cli
from model_utils.config import ROOT
from model_utils.errors import UserError

ALLOWED = ROOT / "benchmarks" / "quoted.yaml"
GENERATED = ("docs/results.md", "docs/keys.md", "docs/operators.md", "docs/scaling.md")
PERCENT = re.compile(r"(\d[\d,]*(?:\.\d+)?)(?: ± (\d+\.\d+))? ?%")
DECIMAL = re.compile(r"(?<![\w.,])(\d[\d,]*\.\d+)(?![\w.]|-\d)")
NO_FIGURES = re.compile(
    r"`[^`]*`|\]\([^)]*\)|https?:\S+|arXiv \d{4}\.\d{4,5}|"
    r"(?:MindSpore|mindspore|Python|PyTorch|oneDNN)[ -]?\d+\.\d+(?:\.\d+)?"
    r"(?:(?: –| to|,| and|、| 和)+ ?\d+\.\d+)*"
)


def documents():
    """Paths, relative to the repository, of everything that quotes figures."""
    folders = ROOT.glob("*.md"), (ROOT / "docs").glob("*.md"), (ROOT / "configs").glob("*.yaml")
    paths = [path.relative_to(ROOT).as_posix() for found in folders for path in found]
    return sorted({*paths, "config.yaml"} - set(GENERATED))


def figures(text):
    """[(heading of the section, number of the line, figure as text)] of a document."""
    found, section, fenced = [], "", False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            section = line.lstrip("# ")
        plain = NO_FIGURES.sub("", line)
        quoted = [part for match in PERCENT.findall(plain) for part in match if part]
        if line.startswith("|"):
            quoted += DECIMAL.findall(plain)
        found += [(section, number, figure) for figure in dict.fromkeys(quoted)]
    return found


def is_known(figure, known):
    """Whether a figure is among the known ones, with or without commas, or as a share of 1."""
    spellings = {figure, figure.replace(",", "")}
    if re.fullmatch(r"0\.\d{4}", figure):
        spellings.add(f"{100 * float(figure):.2f}")
    return bool(spellings & known)


def unknown(path, known, allowed):
    """(figures of a document without a source, entries of `allowed` that nothing in it needs).

    Args:
        path: of the document, relative to the repository.
        known: set of numbers as text, see `results.known`.
        allowed: [{"reason", "figures" or "section"}, …] of the document.
    """
    left, used = [], set()
    for section, number, figure in figures((ROOT / path).read_text(encoding="utf-8")):
        if is_known(figure, known):
            continue
        entries = [
            (index, figure if "figures" in entry else "")
            for index, entry in enumerate(allowed)
            if figure in map(str, entry.get("figures", ())) or section == entry.get("section")
        ]
        used |= set(entries)
        if not entries:
            left.append(f"{path}:{number}: {figure}")
    wanted = {(i, str(f)) for i, entry in enumerate(allowed) for f in entry.get("figures", [""])}
    return left, sorted(f"{path}: {figure or allowed[i]['section']}" for i, figure in wanted - used)


def exceptions():
    """{document: its entries} of quoted.yaml."""
    return yaml.safe_load(ALLOWED.read_text(encoding="utf-8"))


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    known, allowed = results.known(), exceptions()
    left, idle = [], []
    for path in documents():
        without, unused = unknown(path, known, allowed.get(path, []))
        left, idle = left + without, idle + unused
    for line in left:
        print(line)
    if left or idle:
        raise UserError(
            f"{len(left)} figures are in no kept result and not in {ALLOWED.name}, {len(idle)} entries there "
            f"are not needed ({', '.join(idle) or 'none'}); correct the documents or the list"
        )
    print(f"{len(documents())} documents: every figure has a source")


if __name__ == "__main__":
    cli.run(main)
