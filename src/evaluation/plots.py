"""Curves and feature embeddings as PNG."""

import itertools
import logging
from pathlib import Path

import mindspore as ms
import numpy as np

from model_utils.optional import require
from model_utils.run_log import read_metrics
from src.data.files import shown
from src.evaluation.evaluate import evaluating

BATCH = 50  # images whose features are taken at once
FIGURES = {
    "hyper_parameters.png": ("hyper-parameters", ("lr", "lambda")),
    "accuracies.png": ("accuracy", ("accuracy",)),
    "losses.png": ("loss", ("loss", "entropy")),
}


def pyplot():
    """matplotlib.pyplot, set up to draw into files."""
    # matplotlib warns when it can't write its cache folder, and takes a temporary one; nobody needs to know.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    require("matplotlib", "to draw").use("Agg")
    return require("matplotlib.pyplot", "to draw")


def _series(rows):
    """{"kind/name": (steps, values)} of all scalars in metrics.jsonl; "steps" is the length of the run."""
    series = {}
    for row in rows:
        for name, value in row.items():
            if name in ("kind", "step", "steps", "phase", "seconds"):
                continue
            steps, values = series.setdefault(f"{row['kind']}/{name}", ([], []))
            steps.append(row["step"])
            values.append(value)
    return series


def curves(output_dir):
    """Draw hyper_parameters, accuracies, losses and selection .png from a run's metrics.jsonl."""
    plt = pyplot()
    series = _series(read_metrics(Path(output_dir) / "metrics.jsonl"))
    judged = {name: series.pop(name) for name in list(series) if name.startswith("selection/")}
    if judged:
        _rules(plt, judged, Path(output_dir) / "selection.png")
    for file_name, (title, parts) in FIGURES.items():
        chosen = {
            name: xy for name, xy in series.items() if any(part in name.split("/")[1] for part in parts)
        }
        if not chosen:
            continue
        figure, axes = plt.subplots(figsize=(8, 5))
        for name, (steps, values) in sorted(chosen.items()):
            few = name.startswith("test") or name.startswith("validation")
            axes.plot(steps, values, marker="o" if few else None, markersize=3, label=shown(name))
        axes.set(xlabel="training step", ylabel=title, title=title)
        if len(chosen) > 1 and title == "hyper-parameters":
            axes.set_yscale("symlog", linthresh=1e-4)
        axes.grid(alpha=0.3)
        _legend(axes)
        figure.tight_layout()
        figure.savefig(Path(output_dir) / file_name, dpi=110)
        plt.close(figure)


def _legend(axes):
    """A legend of names as they are: a folder may be called $a_b$."""
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)


def _rules(plt, series, path):
    """Draw the rules of selection over training: each from its lowest to its highest value."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for name, (steps, values) in sorted(series.items()):
        span = max(values) - min(values)
        heights = [(value - min(values)) / span if span else 0.5 for value in values]
        label = f"{shown(name.split('/')[1])} {min(values):.3g} to {max(values):.3g}"
        axes.plot(steps, heights, marker="o", markersize=3, label=label)
    axes.set(xlabel="training step", ylabel="lowest to highest value", title="rules of selection")
    axes.grid(alpha=0.3)
    _legend(axes)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def collect_features(cell, test_sets, count=2000):
    """{domain: (features (n, D), labels (n,))} of about `count` test images in all, in evaluation mode.

    Every domain gives the same number, 500 at most. They are spread over all its images, because folders are
    sorted by class.
    """
    collected, each = {}, min(500, max(1, count // max(1, len(test_sets))))
    with evaluating(cell.network):
        for domain, loader in test_sets.items():
            images, labels = loader.sample(each, cell.config.seed)
            parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
            features = [cell.features(ms.Tensor.from_numpy(np.ascontiguousarray(part))) for part in parts]
            collected[domain] = np.concatenate([f.asnumpy() for f in features]), np.asarray(labels)
    return collected


def embedding(before, after, path):
    """Draw t-SNE embeddings (van der Maaten & Hinton 2008) of all domains' features, before | after.

    Above, colour is the class; below, it is the domain. The marker is the domain in both.
    """
    manifold = require("sklearn.manifold", "to draw features")
    plt = pyplot()
    figure, rows = plt.subplots(2, 2, figsize=(13, 12))
    titles = "before training", "after training"
    for (by_class, by_domain), collected, title in zip(rows.T, (before, after), titles, strict=True):
        features = np.concatenate([features for features, _ in collected.values()])
        perplexity = min(30, (len(features) - 1) / 3)
        points = manifold.TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
        highest = max(1, max(labels.max() for _, labels in collected.values()))
        begin = 0
        for marker, (domain, (part, labels)) in zip(itertools.cycle("ox^svD*P"), collected.items()):  # noqa: B905 - endless
            own = points[begin : begin + len(part)]
            style = {"s": 9, "marker": marker, "label": shown(domain)}
            colour = {"c": "lightgrey"}  # of images without labels
            if (labels >= 0).all():
                colour = {"c": labels, "cmap": "tab10", "vmin": 0, "vmax": highest}
            by_class.scatter(own[:, 0], own[:, 1], **colour, **style)
            by_domain.scatter(own[:, 0], own[:, 1], **style)
            begin += len(part)
        for axes, kind in ((by_class, "class"), (by_domain, "domain")):
            axes.set(title=f"{title}, colour: {kind}", xticks=[], yticks=[])
            _legend(axes)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
