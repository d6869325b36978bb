"""report.html: one file that shows what a run has done, without anything loaded from elsewhere."""

import dataclasses
import os
import shlex
from pathlib import Path

import numpy as np

import model_utils
from model_utils.checkpoint import atomic
from model_utils.optional import require
from model_utils.run_log import read_metrics
from src.data.files import shown
from src.report import findings, pictures

TEMPLATE = Path(__file__).with_name("page.html.j2")
NAME = "report.html"
BLIND = "target"  # what a target without labels is called
EXAMPLES = 12  # pictures in a row of examples
MATRIX = 30  # classes that a confusion matrix is drawn for


@dataclasses.dataclass
class Picture:
    """A picture with its caption, as the template shows it."""

    address: str
    name: str
    caption: str = ""
    right: bool | None = None


def shown_sets(cell, test_sets):
    """{domain: TestLoader} whose features are drawn: the test sets, and the target where it has no labels."""
    if cell.task.form.target is None or cell.task.form.target.test_name in test_sets:
        return test_sets
    return {**test_sets, BLIND: cell.seen(cell.task.blind_target(cell.preparation))}


def target_name(cell, sets):
    """The target's name in `shown_sets`, or None without a target."""
    target = cell.task.form.target
    if target is None:
        return None
    return target.test_name if target.test_name in sets else BLIND


def write(cell, sets, folder, result):
    """Write `folder`/report.html, whole or not at all.

    Args:
        cell: the Trainer, trained. sets: `shown_sets` of it.
        folder: of the run, with the pictures that have been drawn.
        result: the content of result.json.

    Raises:
        OSError: it can't be written, or an image has become unreadable. UserError: Jinja2 is missing.
    """
    jinja2 = require("jinja2", "to write a report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    with atomic(Path(folder) / NAME) as temporary:
        temporary.write_text(template.render(**_content(cell, sets, folder, result)), encoding="utf-8")


def _content(cell, sets, folder, result):
    """Everything that the template asks for."""
    names = [shown(name) for name in cell.task.classes]
    target = target_name(cell, sets)
    found = None if target is None else findings.find(cell.evaluator, sets[target])
    prepared = cell.preparation
    drawn = ("features.png", "losses.png", "accuracies.png", "selection.png", "hyper_parameters.png")
    return {
        "result": result,
        "version": model_utils.named_version(),
        "classes": names,
        "needs": _needs(prepared),
        "accuracies": {shown(name): value for name, value in result["accuracy"].items()},
        "examples": {shown(name): _examples(loader, cell.config.seed) for name, loader in sets.items()},
        "target": None if found is None else _of_target(target, sets[target], found, names),
        "shares": None if found is None else _shares(cell, found, names),
        "held_out": _held_out(folder),
        "drawn": {name: pictures.embedded_png(Path(folder) / name) for name in drawn},
        "commands": _commands(cell.config, result),
        "left_out": {reason: [shown(path) for path in files] for reason, files in result["left_out"].items()},
    }


def _needs(prepared):
    side = max(prepared.size, int(prepared.size / prepared.crop_pct))
    channels = "RGB" if prepared.channels == 3 else "grey"
    mean, deviation = (
        ", ".join(f"{value:.4g}" for value in part[: prepared.channels])
        for part in (prepared.mean, prepared.std)
    )
    return [
        f"{prepared.size} x {prepared.size} pixels, {channels}, float32, channels first",
        f"the short side is resized to {side} pixels and the middle is cut out, with the aspect ratio kept",
        f"(value / 255 - mean) / deviation, mean {mean}, deviation {deviation}",
        "export.py writes this into the model file; infer.py does it by itself",
    ]


def _examples(loader, seed):
    """A few pictures of a domain, drawn by seed from all over it."""
    seen = loader.seen()  # without files that can't be read
    chosen = np.random.default_rng(seed).choice(seen, min(EXAMPLES, len(seen)), replace=False)
    return [Picture(pictures.embedded(pictures.picture(loader, i)), _name(loader, i)) for i in sorted(chosen)]


def _name(loader, index):
    """What an image is called: the last two parts of its path, or its number."""
    if loader.files is None:
        return f"image {index}"
    return shown(os.path.join(*Path(loader.files[index]).parts[-2:]))


def _of_target(domain, loader, found, names):
    """What the report says of the target."""
    matrix, rows = found.confusion(), []
    if matrix is not None:
        counts = np.maximum(1, matrix.sum(1))
        for number, row in enumerate(matrix):
            cells = [(int(value), float(value / counts[number])) for value in row]
            rows.append({"name": names[number], "cells": cells, "count": int(row.sum())})
    kinds = {
        "most certain of each class": found.most_certain(EXAMPLES),
        "least certain": found.least_certain(EXAMPLES),
    }
    return {
        "domain": shown(domain),
        "count": len(found.predicted),
        "all": loader.total,  # of which this process tests a share, if there are several
        "accuracy": found.accuracy(),
        "confusion": rows,
        "draws_matrix": len(names) <= MATRIX,
        "certain": {
            kind: [_predicted(loader, found, place, names) for place in places]
            for kind, places in kinds.items()
        },
    }


def _predicted(loader, found, place, names):
    index, label = int(found.indices[place]), int(found.predicted[place])
    right = None if found.labels is None else bool(found.labels[place] == label)
    caption = f"{names[label]} {100 * found.confidence[place]:.1f} %"
    return Picture(pictures.embedded(pictures.picture(loader, index)), _name(loader, index), caption, right)


def _shares(cell, found, names):
    """[(class, share predicted for the target, share among the labelled training images or None)]"""
    known = cell.class_shares()
    known = [None] * len(names) if known is None else known.tolist()
    return list(zip(names, found.shares().tolist(), known, strict=True))


def _held_out(folder):
    """{name: accuracy} of the last validation on held-out source images."""
    rows = [row for row in read_metrics(Path(folder) / "metrics.jsonl") if row["kind"] == "validation"]
    figures = rows[-1].items() if rows else ()
    return {shown(name): v for name, v in figures if name.endswith("accuracy") and name != "domain_accuracy"}


def _commands(config, result):
    """[(what for, command)] that repeat the run and use its network."""
    folder = shlex.quote(shown(config.output_dir))
    return [
        ("train it again (into another --output_dir)", result["command"]),
        ("evaluate it", f"python eval.py --ckpt_path {folder}"),
        ("classify pictures", f"python infer.py --model {folder} --images FOLDER --csv predictions.csv"),
        ("export it", f"python export.py --ckpt_file {folder} --file_format ONNX --file_name {folder}/model"),
    ]
