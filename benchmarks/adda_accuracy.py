"""Mean ± standard deviation over seeds of finished ADDA runs.

    python -m benchmarks.adda_accuracy RUN_FOLDER … [--save benchmarks/results]
    python -m benchmarks.adda_accuracy benchmarks/results/adda_*.json

A run folder gives its result.json and, from metrics.jsonl, the accuracy at the end of source training; --save
keeps the two together as <experiment>-seed<k>.json. The deviation is that of the sample (n - 1).
"""

import argparse
import json
import statistics
from pathlib import Path

from model_utils import cli
from model_utils.errors import UserError
from model_utils.run_log import read_metrics


def read(path):
    """The result of a run folder or a saved file, with "source_only": {domain: accuracy}."""
    path = Path(path)
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if not (path / "result.json").is_file():
        raise UserError(f"{path}: holds no result.json; give folders of finished runs, or kept results")
    result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    rows = read_metrics(path / "metrics.jsonl")
    tests = [row for row in rows if row["kind"] == "test" and row["phase"] == "source"]
    if not tests:
        raise UserError(f"{path}: has no source-only accuracy; is it a run of ADDA with its source phase?")
    last = tests[-1]
    result["source_only"] = {domain: last[f"{domain}_accuracy"] for domain in result["accuracy"]}
    return result


def spread(values):
    """Mean ± sample standard deviation, in words."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    experiments = {}
    for path in sorted(arguments.paths):
        result = read(path)
        experiments.setdefault(result["experiment"], []).append(result)
        if arguments.save:
            arguments.save.mkdir(parents=True, exist_ok=True)
            file = arguments.save / f"{result['experiment']}-seed{result['seed']}.json"
            file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, results in experiments.items():
        seeds = ", ".join(str(result["seed"]) for result in results)
        source_only = spread([result["source_only"]["target"] for result in results])
        adapted = spread([result["accuracy"]["target"] for result in results])
        seconds = statistics.median(result["seconds"] for result in results)
        print(
            f"{name}: target test accuracy {adapted}, source only {source_only}; "
            f"seeds {seeds}; {seconds:.0f} s a run"
        )


if __name__ == "__main__":
    cli.run(main)
