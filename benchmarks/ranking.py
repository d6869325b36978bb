"""The front page of docs/results.md: the recipes of each task, the most accurate first, with their cost.

What is compared stands in benchmarks/tasks.yaml, the figures in benchmarks/results. `python -m
benchmarks.results` writes the page.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks import report
from model_utils.config import ROOT
from src.selection import WITHOUT_TARGET, pool

TASKS = ROOT / "benchmarks" / "tasks.yaml"
RULE = "information"  # chooses among the seeds; ensv would need the predictions, which are not kept
TITLE = "## At a glance"
EXPLANATION = f"""The recipes of each task, the most accurate first. Accuracies on the target, in %: "last" is
the last checkpoint, mean ± standard deviation over seeds (of fewer than three seeds, their mean). The next
three columns choose among the seeds: "chosen" is the run that the rule `{RULE}` chooses without target
labels, "worst" the run with the lowest accuracy, "oracle" the best value of any run at any evaluation. "–"
stands where nothing was kept to choose by. Time is that of one run on two CPU cores, the median."""
HEADS = ("recipe", "last", "chosen", "worst", "oracle", "minutes", "seeds", "best published")


@dataclass
class Row:
    """A recipe's figures: accuracies in % of its seeds, seconds of a run; None where nothing was kept."""

    title: str
    last: list
    seconds: float
    chosen: float | None = None
    oracle: float | None = None

    def cells(self):
        """What stands in the table, without the published figure."""
        last = report.spread(self.last) if len(self.last) > 2 else f"{statistics.mean(self.last):.2f}"
        chosen, oracle = ("–" if value is None else f"{value:.2f}" for value in (self.chosen, self.oracle))
        minutes = f"{self.seconds / 60:.1f}"
        return [self.title, f"**{last}**", chosen, f"{min(self.last):.2f}", oracle, minutes, len(self.last)]


def of_runs(title, results, domain):
    """The Row of kept runs, each the content of a result.json."""
    last = [100 * result["accuracy"][domain] for result in results]
    oracle = max(100 * result["oracle_accuracy"][domain] for result in results)
    row = Row(title, last, statistics.median(result["seconds"] for result in results), oracle=oracle)
    if len(results) > 1 and all(RULE in result.get("selection", {}) for result in results):
        row.chosen = last[chosen_among([result["selection"] for result in results])]
    return row


def chosen_among(values):
    """The place of the run that RULE chooses. values: [{rule: value}] of the runs, more is better."""
    passes = pool.passes_gate([of_run.get(WITHOUT_TARGET) for of_run in values])
    return pool.best([of_run[RULE] for of_run in values], passes)


def of_table(title, columns):
    """The Row of a method in a table. columns: {column: {seed: [accuracy in %, seconds]}}."""
    seeds = sorted(set.intersection(*map(set, columns.values())), key=int)
    last = [statistics.mean(column[seed][0] for column in columns.values()) for seed in seeds]
    return Row(
        title, last, statistics.median(column[seed][1] for column in columns.values() for seed in seeds)
    )


def rows(task, groups, kept):
    """The rows of a task, the highest mean first; recipes of which nothing was kept are left out."""
    found = []
    tables = report.kept_runs(Path(kept) / task["table"]) if "table" in task else {}
    of_methods = tables.get(task.get("runs"), {}).get("runs", {})
    for name, title in task["recipes"].items():
        if name in of_methods:
            found.append(of_table(title, of_methods[name]))
        elif results := groups.get((name, task.get("left_out"))):
            domain = task.get("left_out") or task.get("domain", "target")
            found.append(of_runs(title, results, domain))
    return sorted(found, key=lambda row: -statistics.mean(row.last))


def page(groups, kept):
    """The text of the front page. groups: {(experiment, target): results}; kept: the folder of results."""
    parts = [TITLE, EXPLANATION]
    for task in yaml.safe_load(TASKS.read_text(encoding="utf-8")):
        if not (found := rows(task, groups, kept)):
            continue
        lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
        for place, row in enumerate(found):
            published = task["published"] if place == 0 else ""
            lines.append(f"| {' | '.join(map(str, [*row.cells(), published]))} |")
        parts.append(f"### {task['task']}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)
