"""docs/results.md, written from the results of runs.

    python -m benchmarks.results [--keep RUN_FOLDER …] [--check]

`--keep` copies the result of finished runs into benchmarks/results first, one JSON file per run: result.json
and, from metrics.jsonl, the test accuracy over time. `--check` writes nothing and fails if the page is not
what the results give. The experiments, their commands and the published figures beside them stand in
benchmarks/experiments.yaml; an experiment without a result is shown as "not run".
Published figures that are shown for reference only are in benchmarks/published.yaml.

Accuracy is that of the last checkpoint; "oracle" is the best at any evaluation, chosen by test labels.
Deviations are those of the sample (n - 1).
"""

import argparse
import json
import re
import statistics
from pathlib import Path

import yaml

from benchmarks import left_out, pairs, ranking, report, selection_pools, times
from benchmarks.report import spread
from model_utils import cli, generated_page
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError
from model_utils.run_log import read_metrics

KEPT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
EXPERIMENTS = ROOT / "benchmarks" / "experiments.yaml"
INTRODUCTION = """# Results

Written by `python -m benchmarks.results` from the runs kept in `benchmarks/results`; not by hand. Mean ±
standard deviation of the sample over three seeds or more; of fewer seeds, each value. Results are those of
the **last checkpoint**. "Oracle" is the best value at any evaluation. It is chosen by test labels and shown
for reference only. "Before the last phase" is source-only training where a recipe has such a phase. Times are
from the start of the process to result.json, the median over seeds, and include every evaluation."""
PUBLISHED = ROOT / "benchmarks" / "published.yaml"
FEWEST_FOR_SPREAD = 3
FIGURES = "figures.json"  # what `python -m benchmarks --save` measured
DRILLS = "hosts_drill.json"  # of benchmarks.hosts_drill


def test_rows(folder):
    """Test rows of a run: [phase, step, seconds, {domain: accuracy}]."""
    rows = []
    for row in read_metrics(Path(folder) / "metrics.jsonl"):
        if row["kind"] == "test":
            named = {
                key.removesuffix("_accuracy"): value
                for key, value in row.items()
                if key.endswith("_accuracy")
            }
            rows.append([row["phase"], row["step"], round(row["seconds"], 1), named])
    return rows


OF_PAIRS = "Accuracy on all target images, last checkpoint, in %. The first letter is the labelled source."


def keep(folder, kept=KEPT):
    """Copy a finished run's result.json, with its test accuracy over time, into `kept`; returns the file."""
    source = Path(folder) / "result.json"
    if not source.is_file():
        raise UserError(f"{folder}: holds no result.json; give folders of finished runs")
    result = json.loads(source.read_text(encoding="utf-8"))
    result["test"] = test_rows(folder)
    # Where someone's data lie says nothing to others: of an absolute path only the last name is kept.
    result["command"] = re.sub(r"(?<=[\s=])/\S*/", "", result.get("command", ""))
    parts = [result["experiment"], result.get("target_domain"), f"seed{result['seed']}"]
    path = Path(kept) / ("-".join(str(part) for part in parts if part not in (None, "")) + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return path


def load(kept=KEPT):
    """{(experiment, target domain or None): [result, …] by seed} of all kept runs."""
    groups = {}
    tables = [of.KEPT.name for of in (pairs, left_out, selection_pools)]
    for path in sorted(Path(kept).glob("*.json")):
        if path.name in (FIGURES, times.KEPT, times.KEPT_PUBLISHED, DRILLS, *tables):
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        groups.setdefault((result["experiment"], result.get("target_domain")), []).append(result)
    return {key: sorted(results, key=lambda result: result["seed"]) for key, results in groups.items()}


def figures(kept=KEPT):
    """What `python -m benchmarks --save` kept: [{benchmark, name, text, unit}, …]."""
    path = Path(kept) / FIGURES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"figures": []}


def of_seeds(values):
    """Accuracies in [0, 1] of a row: mean and deviation of three seeds or more, each value of fewer."""
    if len(values) >= FEWEST_FOR_SPREAD:
        return report.percent(values)
    return ", ".join(f"{report.percent([value])}" for value in values)


def source_only(result):
    """{domain: accuracy} at the end of the phase before the last one, or None if there is but one phase."""
    if "source_only" in result:
        return result["source_only"]
    phases = [row[0] for row in result.get("test", ())]
    before = [row[3] for row in result.get("test", ()) if phases and row[0] != phases[-1]]
    return before[-1] if before else None


def _row(entry, target, results):
    """One line of an experiment's table: the domain that counts, then the others."""
    if not results:
        cells = ["not run"] + [""] * 6
    else:
        main = target or entry.get("domain", "target")
        others = [domain for domain in results[0]["accuracy"] if domain != main]
        rest = ", ".join(f"{d} {of_seeds([r['accuracy'][d] for r in results])}" for d in others)
        before = [source_only(result) for result in results]
        cells = [
            f"**{of_seeds([r['accuracy'][main] for r in results])}**",
            of_seeds([r["oracle_accuracy"][main] for r in results]),
            of_seeds([b[main] for b in before]) if all(before) else "",
            rest,
            ", ".join(str(r["seed"]) for r in results),
            f"{results[0]['steps']:,}",
            f"{statistics.median(r['seconds'] for r in results):.0f} s",
        ]
    name = f"{entry['title']}{f', {target} left out' if target else ''}"
    published = "; ".join(entry.get("published", ()))
    return f"| {name} | {' | '.join(cells)} | {published} |"


def _gain(entry, target, groups):
    """One line: how far an experiment is ahead of the one it is compared with, paired by seed."""
    ours, theirs = (
        {result["seed"]: result["accuracy"][target] for result in groups.get((name, target), [])}
        for name in (entry["experiment"], entry["compare"])
    )
    gains = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not gains:
        return f"| {target} | not run | |"
    return f"| {target} | {spread(gains, sign='+')} | {', '.join(f'{g:+.2f}' for g in gains)} |"


def _gains(entry, groups):
    """A table of gains in percentage points, for an experiment with `compare`."""
    lines = ["| left out | gain, percentage points | of each seed |", "|---|---|---|"]
    return "\n".join([*lines, *(_gain(entry, str(target), groups) for target in entry["targets"])])


HEAD = (
    "| experiment | last checkpoint | oracle | before the last phase | other domains | seeds | steps "
    "| time | published |\n|---|---|---|---|---|---|---|---|---|"
)


def _sections(sections, groups, used):
    for section in sections:
        lines, commands, gains = [HEAD], [], []
        for entry in section["experiments"]:
            if "compare" in entry:
                gains.append(_gains(entry, groups))
            for target in entry.get("targets", [None]):
                key = (entry["experiment"], None if target is None else str(target))
                lines.append(_row(entry, key[1], groups.get(key, [])))
                used.add(key)
            commands.append(f"# {entry['title']}\n{entry['command'].strip()}")
        text = section.get("text", "").strip()
        block = "```\n" + "\n".join(commands) + "\n```"
        parts = f"## {section['title']}", text, "\n".join(lines), *gains, block
        yield "\n\n".join(part for part in parts if part)


def _machines(groups):
    seen = {}
    for (experiment, _), results in groups.items():
        for result in results:
            versions = result["versions"]
            shown = f"{report.machine_text(result['machine'])}, {result['device']}; " + ", ".join(
                f"{name} {version}" for name, version in versions.items()
            )
            seen.setdefault(shown, set()).add(experiment)
    return "\n".join(f"- {shown}: {', '.join(sorted(names))}" for shown, names in sorted(seen.items()))


def _figures_table(content):
    if not content["figures"]:
        return ""
    lines = ["| measured | | on | command |", "|---|---|---|---|"]
    for row in content["figures"]:
        value = f"{row['text']} {row['unit']}".strip()
        lines.append(
            f"| {row['name']} | {value} | {report.machine_text(row['machine'])} | `{row['command']}` |"
        )
    return "## Speed and memory\n\n`python -m benchmarks` prints these, one run of each.\n\n" + "\n".join(
        lines
    )


def _tables_of_runs(path, table, text=None):
    """Sections of the runs that `report.keep_runs` keeps in a file, one for each title; "" without any.

    table: runs -> lines of a table. text: a line above it.
    """
    above = [text, ""] if text else []
    lines = []
    for title, entry in report.kept_runs(path).items():
        lines += [f"## {title}", "", *above, *table(entry["runs"]), "", "```", *entry["commands"], "```", ""]
    return "\n".join(lines).rstrip()


def _selection_table(path):
    """The section on rules of selection; "" if nothing was kept."""
    if not path.is_file():
        return ""
    found = selection_pools.kept(path)
    lines = ["## Rules of selection", "", "Accuracies in %, regrets in points.", ""]
    lines += [*selection_pools.pool_lines(found), "", *selection_pools.table(found)]
    return "\n".join([*lines, "", "```", *(pool["command"] for pool in found.values()), "```"])


def _published_table():
    """The published figures of benchmarks/published.yaml."""
    content = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    lines = ["| model | measured | published |", "|---|---|---|"]
    for model, rows in content["figures"].items():
        lines += [f"| {model} | {what} | {figure} |" for what, figure in rows.items()]
    title = "## Published figures, for reference only"
    return "\n\n".join([title, content["text"].strip(), "\n".join(lines)])


def page(kept=KEPT):
    """The text of docs/results.md.

    Raises:
        UserError: a kept run belongs to no experiment of experiments.yaml.
    """
    sections = yaml.safe_load(EXPERIMENTS.read_text(encoding="utf-8"))
    groups = load(kept)
    used = set()
    parts = list(_sections(sections, groups, used))
    if left := groups.keys() - used:
        names = ", ".join("-".join(str(part) for part in key if part) for key in sorted(left, key=str))
        raise UserError(f"{EXPERIMENTS.name} knows no experiment {names}; add it there")
    parts = [
        INTRODUCTION,
        ranking.page(groups, kept),
        *parts,
        _tables_of_runs(Path(kept) / pairs.KEPT.name, pairs.table, OF_PAIRS),
        _tables_of_runs(Path(kept) / left_out.KEPT.name, left_out.table),
        _selection_table(Path(kept) / selection_pools.KEPT.name),
        times.table(Path(kept) / times.KEPT, "MNIST → MNIST-M"),
        times.table(Path(kept) / times.KEPT_PUBLISHED, "MNIST → MNIST-M as published"),
        times.table_of_runs(groups, sections),
        _figures_table(figures(kept)),
        _published_table(),
        f"## Machines and versions\n\n{_machines(groups)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def known(kept=KEPT):
    """Every number, as text, that the results data hold: what README and configurations may quote."""
    numbers = set()
    text = page(kept) + EXPERIMENTS.read_text(encoding="utf-8")
    for results in load(kept).values():
        # Rows that compare with three seeds of an experiment that has more.
        for values in zip(*([*r["accuracy"].values()] for r in results[:FEWEST_FOR_SPREAD]), strict=True):
            numbers |= set(re.findall(r"\d+\.\d+", report.percent(values)))
        for result in results:
            values = [*result["accuracy"].values(), *result["oracle_accuracy"].values()]
            values += [value for row in result.get("test", ()) for value in row[3].values()]
            numbers |= {f"{100 * value:.2f}" for value in values}
            seconds = [result["seconds"], *(row[2] for row in result.get("test", ()))]
            numbers |= {f"{value:.0f}" for value in seconds}
    return numbers | set(re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", nargs="+", metavar="RUN_FOLDER", default=[])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for folder in arguments.keep:
        print(f"kept {keep(folder).relative_to(ROOT)}")
    text = page()
    generated_page.write(PAGE, text, arguments.check, "benchmarks.results")
    groups = load()
    print(f"{PAGE.relative_to(ROOT)}: {sum(map(len, groups.values()))} runs, {len(groups)} experiments")


if __name__ == "__main__":
    cli.run(main)
