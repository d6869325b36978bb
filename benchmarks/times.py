"""Times to a target accuracy, as tables of docs/results.md."""

import json
import statistics

from benchmarks.report import machine_text, percent

KEPT = "time_to_accuracy.json"  # what `python -m benchmarks.time_to_accuracy --save` measured
KEPT_PUBLISHED = "time_to_accuracy_published.json"  # the same with --published
THRESHOLDS = (0.8157, 0.90, 0.95)
# Experiments whose kept runs were evaluated often enough to say when a threshold was reached.
TIMED = ("dann_on_published_mnist_m", "dann_best_on_published_mnist_m")


def reached(curve, threshold):
    """Seconds to the first evaluation at or above `threshold`, or None. curve: [(seconds, accuracy), …]."""
    return next((seconds for seconds, accuracy in curve if accuracy >= threshold), None)


def _time(curves, threshold):
    """Median over the seeds, with the range; or how many of them never got there."""
    times = [reached(curve, threshold) for curve in curves]
    if None in times:
        return f"not reached by {times.count(None)} of {len(times)}"
    return f"{statistics.median(times):.0f} s ({min(times):.0f} to {max(times):.0f})"


def _heads(thresholds, *more):
    heads = ["recipe", *(f"{100 * threshold:g} %" for threshold in thresholds), *more]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def table(path, title):
    """The section on a file of benchmarks.time_to_accuracy; "" if there is none."""
    if not path.is_file():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    whole = not content.get("stopped")  # each run went to its end
    last = ["last evaluation", "whole time"] if whole else []
    lines = _heads(content["thresholds"], *last, "seeds")
    for name, curves in content["curves"].items():
        cells = [_time(curves, threshold) for threshold in content["thresholds"]]
        if whole:
            cells += [percent([curve[-1][1] for curve in curves])]
            cells += [f"{statistics.median(curve[-1][0] for curve in curves):.0f} s"]
        lines.append(f"| {name} | {' | '.join([*cells, str(len(curves))])} |")
    text = (
        "From the start of the process to the first evaluation at or above a target test accuracy: median "
        "over the seeds, and the range. All of it was measured in one run; evaluation time counts. Every "
        "evaluation looks at target labels, so these times are a measurement; no recipe stops by them."
    )
    if not whole:
        text += " The runs were ended once they had reached the last threshold."
    if "machine" in content:
        text += f" Measured on {machine_text(content['machine'])}."
    head = f"## Time to accuracy: {title}"
    return "\n\n".join([head, text, "\n".join(lines), f"```\n{content['command']}\n```"])


def table_of_runs(groups, sections):
    """The same of kept runs, which were evaluated after each epoch; "" if none of TIMED was kept.

    groups: of results.load. sections: those of experiments.yaml.
    """
    titles = {entry["experiment"]: entry["title"] for section in sections for entry in section["experiments"]}
    lines = _heads(THRESHOLDS, "seeds")
    kept = [name for name in TIMED if (name, None) in groups]
    for name in kept:
        runs = groups[name, None]
        curves = [[(row[2], row[3]["target"]) for row in run["test"]] for run in runs]
        cells = [_time(curves, threshold) for threshold in THRESHOLDS]
        lines.append(f"| {titles[name]} | {' | '.join(cells)} | {len(runs)} |")
    text = (
        "The runs of the tables above, which were evaluated after each epoch. Some shared the machine with "
        "other programs."
    )
    return "\n\n".join(["## Time to accuracy: kept runs", text, "\n".join(lines)]) if kept else ""
