"""What a benchmark measured: printed, and kept for the table of `python -m benchmarks`.

A figure is a name, a text as it is shown, and a unit. With BENCHMARK_FIGURES set to a file, `figure` also
adds a JSON line to it; `python -m benchmarks` does that for every benchmark it runs.
"""

import json
import os
import statistics
import sys

from benchmarks.measure import timed
from model_utils.checkpoint import atomic

VARIABLE = "BENCHMARK_FIGURES"


def figure(name, text, unit=""):
    """Print one measured figure; keep it if a file is named for it.

    name: what was measured, unique in its benchmark. text: the number as shown, e.g. "42.4". unit: e.g. "ms".
    """
    text = str(text)
    print(f"{name}: {text} {unit}".rstrip())
    path = os.environ.get(VARIABLE)
    if path:
        module = getattr(sys.modules["__main__"], "__spec__", None)
        row = {"benchmark": module.name if module else "", "name": name, "text": text, "unit": unit}
        with open(path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def ratio(name, ours, theirs, unit, digits=1):
    """Three figures: ours, PyTorch's, and ours divided by PyTorch's."""
    figure(f"{name}, ours", f"{ours:.{digits}f}", unit)
    figure(f"{name}, PyTorch", f"{theirs:.{digits}f}", unit)
    figure(f"{name}, ours : PyTorch", f"{ours / theirs:.2f}")


def side_by_side(name, sides, options, value="loss", warm_up=3):
    """Time two functions in turn, and print what `ratio` does and the numbers that they gave at first.

    sides: {"ours" and "PyTorch": function that makes a step and returns a number}. options: has `rounds` and
        `steps` of each. value: what the numbers are. warm_up: steps before the first round.
    """
    first = [[step() for step in sides.values()] for _ in range(warm_up)]
    rounds = [[timed(step, options.steps) for step in sides.values()] for _ in range(options.rounds)]
    ours, theirs = map(statistics.median, zip(*rounds, strict=True))
    print(f"median of {options.rounds} alternating rounds of {options.steps} steps")
    ratio(name, ours, theirs, "ms")
    shown = ", ".join(f"{a:.5f} {b:.5f}" for a, b in first)
    print(f"{value} of the first {warm_up} steps, ours and PyTorch's: {shown}")


def spread(values, digits=2, sign=""):
    """'93.10 ± 0.40', mean and standard deviation of the sample; without the latter for one value."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{deviation}"


def percent(values):
    """'92.75 ± 0.30 %' of accuracies in [0, 1]; without the deviation if there is one value only."""
    return f"{spread([100 * value for value in values])} %"


def machine_text(machine):
    """'2 cores of Intel Xeon', of what result.json says of a machine."""
    count = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"{count} of {machine['processor']}"


# Runs of several methods on several columns: {method: {column: {seed: [accuracy in %, seconds]}}}.


def table_of_runs(runs, columns, heads, kind="method"):
    """Lines of a Markdown table of accuracies, methods in rows.

    A row takes the seeds that all columns of its method have. Its cells are means over them; the last but one
    is the mean over columns, mean ± standard deviation of the sample over three seeds or more.

    Args:
        heads: what stands above each of `columns`. kind: what stands above the methods.
    """
    lines = [f"| {' | '.join([kind, *heads, 'mean', 'seeds'])} |", "|---" * (len(columns) + 3) + "|"]
    for method, of_method in runs.items():
        seeds = sorted(set.intersection(*(set(of_method.get(name, {})) for name in columns)), key=int)
        if not seeds:
            continue
        cells = [f"{statistics.mean(of_method[name][seed][0] for seed in seeds):.1f}" for name in columns]
        means = [statistics.mean(of_method[name][seed][0] for name in columns) for seed in seeds]
        mean = spread(means) if len(means) > 2 else ", ".join(f"{value:.2f}" for value in means)
        lines.append(f"| {' | '.join([method, *cells, mean, ', '.join(seeds)])} |")
    return lines


def kept_runs(path):
    """{title: {"commands", "runs"}} of a file of kept runs; {} if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def keep_runs(path, title, command, runs):
    """Add runs to those that a file keeps under a title."""
    content = kept_runs(path)
    entry = content.setdefault(title, {"commands": [], "runs": {}})
    entry["commands"] = sorted({*entry["commands"], command})
    for method, of_method in runs.items():
        for column, of_column in of_method.items():
            entry["runs"].setdefault(method, {}).setdefault(column, {}).update(of_column)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
