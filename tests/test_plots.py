"""Figures: embeddings of any number of domains, and MASF's accuracy beside DeepAll's."""

import json

import cv2
import numpy as np
import pytest

from benchmarks import generalisation_curves
from model_utils.errors import UserError
from src.evaluation import plots


def test_embedding_draws_every_domain(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    domains = {f"domain{n}": (rng.normal(size=(5, 3)), rng.integers(0, 4, 5)) for n in range(9)}
    seen = []
    pyplot = plots.pyplot()
    scatter = pyplot.Axes.scatter

    def recorded(axes, *values, **style):
        seen.append(style["label"])
        return scatter(axes, *values, **style)

    monkeypatch.setattr(pyplot.Axes, "scatter", recorded)
    plots.embedding(domains, domains, tmp_path / "features.png")
    assert sorted(seen) == sorted(4 * list(domains))  # before and after, by class and by domain
    assert cv2.imread(str(tmp_path / "features.png")).std() > 5


def test_names_of_domains_are_drawn_as_they_are(tmp_path, monkeypatch):
    """Neither formulas nor UTF-8; and the length of the run is no rule."""
    names = "$a_$", "\udce9"
    rows = [
        {"kind": "test", "phase": "p", "step": 1, "seconds": 1.0, **{f"{n}_accuracy": 0.5 for n in names}},
        {"kind": "selection", "phase": "p", "step": 1, "steps": 2, "seconds": 1.0, "held_out_$a_$": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn, legend = [], plots._legend
    monkeypatch.setattr(
        plots, "_legend", lambda axes: drawn.extend(axes.get_legend_handles_labels()[1]) or legend(axes)
    )
    plots.curves(tmp_path)
    assert cv2.imread(str(tmp_path / "accuracies.png")).std() > 5
    assert drawn == ["held_out_$a_$ 0.5 to 0.5", "test/$a_$_accuracy", "test/\\xe9_accuracy"]
    features = {name: (np.random.default_rng(0).normal(size=(5, 3)), np.zeros(5, int)) for name in names}
    plots.embedding(features, features, tmp_path / "features.png")


def run(folder, steps, **accuracies):
    folder.mkdir(parents=True)
    rows = [
        {"kind": "test", "phase": "p", "step": step, "seconds": 1.0}
        | {f"{domain}_accuracy": values[index] for domain, values in accuracies.items()}
        for index, step in enumerate(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text("{}")


def test_curves_are_means_over_seeds_and_source_domains(tmp_path):
    run(tmp_path / "masf-b-0", (5, 10), a=(0.5, 0.7), c=(0.7, 0.9), b=(0.1, 0.2))
    run(tmp_path / "masf-b-1", (5, 10), a=(0.5, 0.7), c=(0.5, 0.7), b=(0.3, 0.6))
    run(tmp_path / "masf-a-0", (5, 10), a=(0.0, 0.0), b=(0.0, 0.0), c=(0.0, 0.0))
    steps, source, target, count = generalisation_curves.averaged(tmp_path, "masf", "b")
    assert steps.tolist() == [5, 10] and count == 2
    np.testing.assert_allclose([source, target], [[0.55, 0.75], [0.2, 0.4]])
    with pytest.raises(UserError, match="deepall-b-<seed>"):
        generalisation_curves.draw(tmp_path, "b", tmp_path / "x.png")
    run(tmp_path / "deepall-b-0", (5,), a=(0.5,), c=(0.5,), b=(0.5,))
    generalisation_curves.draw(tmp_path, "b", tmp_path / "x.png")
    assert cv2.imread(str(tmp_path / "x.png")).std() > 5
    run(tmp_path / "deepall-b-1", (7,), a=(0.5,), c=(0.5,), b=(0.5,))
    with pytest.raises(UserError, match="different iterations"):
        generalisation_curves.draw(tmp_path, "b", tmp_path / "x.png")
