"""Curves and feature embeddings as PNG."""

import logging
from pathlib import Path

import mindspore as ms
import numpy as np

from model_utils.run_log import read_metrics
from src.evaluate import evaluating

FIGURES = {
    "hyper_parameters.png": ("hyper-parameters", ("lr", "lambda")),
    "accuracies.png": ("accuracy", ("accuracy",)),
    "losses.png": ("loss", ("loss", "entropy")),
}


def _pyplot():
    # An unwritable cache folder is no news to whoever trains: it takes a temporary one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def _series(rows):
    """{"kind/name": (steps, values)} of all scalars in metrics.jsonl."""
    series = {}
    for row in rows:
        for name, value in row.items():
            if name in ("kind", "step", "phase", "seconds"):
                continue
            steps, values = series.setdefault(f"{row['kind']}/{name}", ([], []))
            steps.append(row["step"])
            values.append(value)
    return series


def curves(output_dir):
    """Draw hyper_parameters.png, accuracies.png and losses.png from a run's metrics.jsonl."""
    pyplot = _pyplot()
    series = _series(read_metrics(Path(output_dir) / "metrics.jsonl"))
    for file_name, (title, parts) in FIGURES.items():
        chosen = {
            name: xy for name, xy in series.items() if any(part in name.split("/")[1] for part in parts)
        }
        if not chosen:
            continue
        figure, axes = pyplot.subplots(figsize=(8, 5))
        for name, (steps, values) in sorted(chosen.items()):
            few = name.startswith("test") or name.startswith("validation")
            axes.plot(steps, values, marker="o" if few else None, markersize=3, label=name)
        axes.set(xlabel="training step", ylabel=title, title=title)
        if len(chosen) > 1 and title == "hyper-parameters":
            axes.set_yscale("symlog", linthresh=1e-4)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(Path(output_dir) / file_name, dpi=110)
        pyplot.close(figure)


def collect_features(cell, test_sets, count=500):
    """{domain: (features (n, D), labels (n,))} of up to `count` test images each, in evaluation mode."""
    collected = {}
    with evaluating(cell.network):
        for domain, loader in test_sets.items():
            images, labels = next(iter(loader))
            features = cell.features(ms.Tensor.from_numpy(np.ascontiguousarray(images[:count])))
            if features is not None:
                collected[domain] = (features.asnumpy(), np.asarray(labels[:count]))
    return collected


def embedding(before, after, path):
    """Draw t-SNE embeddings (van der Maaten & Hinton 2008) of all domains' features, before | after.

    Colour is the class, marker the domain.
    """
    from sklearn.manifold import TSNE

    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 6))
    for axes, collected, title in zip(
        panels, (before, after), ("before training", "after training"), strict=True
    ):
        features = np.concatenate([features for features, _ in collected.values()])
        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
        begin = 0
        for marker, (domain, (part, labels)) in zip("ox^svD", collected.items(), strict=False):
            own = points[begin : begin + len(part)]
            axes.scatter(own[:, 0], own[:, 1], c=labels, cmap="tab10", s=9, marker=marker, label=domain)
            begin += len(part)
        axes.set(title=title, xticks=[], yticks=[])
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
