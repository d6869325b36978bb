"""What a benchmark measured: printed, and kept for the table of `python -m benchmarks`.

A figure is a name, a text as it is shown, and a unit. With BENCHMARK_FIGURES set to a file, `figure` also
adds a JSON line to it; `python -m benchmarks` does that for every benchmark it runs.
"""

import json
import os
import statistics
import sys

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


def spread(values, digits=2, sign=""):
    """'93.10 ± 0.40', mean and standard deviation of the sample; without the latter for one value."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{deviation}"
