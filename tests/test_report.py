"""report.html: what it says, that nothing in it is taken for markup, and that a browser shows all of it."""

import json
import os
import re
import shutil
import subprocess
import types

import cv2
import numpy as np
import pytest
from helpers import command, demo_config, succeeded
from test_files import write

from src.data import files
from src.data.loaders import FileTestLoader
from src.data.preparation import Preparation
from src.data.reading import Reader
from src.report import page as report
from src.report.findings import Findings

SCRIPT = "<script>alert(1)<script>"
CLASSES = SCRIPT, "b & $c_d$"
QUOTED = "' onerror='alert(2).png"
# What a browser adds to its copy of the page: how many pictures it could not show.
PROBE = """<script>window.onload = () => {
  const pictures = [...document.images], hidden = pictures.filter(p => !p.complete || p.naturalWidth === 0);
  document.title = `shown ${pictures.length - hidden.length} of ${pictures.length}`; };
window.alert = () => { document.body.append("ALER" + "TED"); };</script>"""


def write_images(root, flat=False):
    """Two classes of 24 images, or the same images without class folders."""
    rng = np.random.default_rng(len(str(root)))
    for number, name in enumerate(CLASSES):
        folder = root if flat else root / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(24):
            image = rng.integers(0, 120, (40, 40, 3)).astype(np.uint8)
            image[10:30, 10:30, number] = 250
            assert cv2.imwrite(str(folder / f"{number}-{index:02d}{QUOTED}"), image)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{kind: (folder, text of the page)}: with and without labels of the target, with kept features."""
    root, pages = tmp_path_factory.mktemp("report"), {}
    write_images(root / "from")
    write_images(root / "labelled")
    write_images(root / "flat", flat=True)
    (root / "flat" / "broken.png").write_bytes(b"no image")
    for kind in ("labelled", "flat"):
        keys = {"method": "mcc", "network": "digits", "bottleneck": 8, "batch_size": 8, "iterations": 20}
        keys |= {"source_image_root": root / "from", "target_image_root": root / kind, "report": "true"}
        keys |= {"holdout": 0.25}
        if kind == "labelled":
            keys |= {"freeze_backbone": "true", "cache_features": "true"}
        output = root / f"run-{kind}"
        succeeded(command("train.py", **keys, output_dir=output))
        pages[kind] = output, (output / "report.html").read_text(encoding="utf-8")
    return pages


@pytest.mark.slow
def test_what_the_page_says(reports):
    folder, page = reports["labelled"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert f"{100 * result['accuracy']['target']:.2f} %" in page
    assert "held out source accuracy" in page and "Confusion" in page
    assert f"python eval.py --ckpt_path {folder}" in page and result["command"] in page.replace("&#39;", "'")
    assert page.count("data:image/jpeg") == 4 * 12 and page.count("data:image/png") == 5
    for kind in ("labelled", "flat"):
        assert not re.search(r"(src|href)=[\"'](?!data:image/)", reports[kind][1]), "loads nothing"


@pytest.mark.slow
def test_a_target_without_labels_is_shown_without_accuracy(reports):
    folder, page = reports["flat"]
    assert "Confusion" not in page and "its accuracy is not known" in page
    assert "broken.png" in page and "Files that were not used" in page
    assert "test accuracy, target" not in page and "least certain, of 48 images" in page


@pytest.mark.slow
def test_names_are_text(reports):
    for _, page in reports.values():
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;script&gt;" in page and "b &amp; $c_d$" in page
        assert "&#39; onerror=&#39;alert(2).png" in page and "onerror='" not in page


@pytest.mark.slow
def test_a_browser_shows_every_picture(reports, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here to open the page with")
    for kind, (_, page) in reports.items():
        copy = tmp_path / f"{kind}.html"
        copy.write_text(page.replace("</head>", PROBE + "</head>"), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr"]
        options += ["--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()]
        done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=120)
        shown = re.search(r"<title>shown (\d+) of (\d+)</title>", done.stdout)
        assert shown and shown[1] == shown[2] and int(shown[1]) == page.count("<img "), done.stdout[:300]
        assert "ALERTED" not in done.stdout
        assert "CONSOLE" not in done.stderr, done.stderr


def test_the_page_of_several_processes_says_whose_images_it_shows(tmp_path, monkeypatch):
    """The first process has half of the target, one image of it can't be read, and the folder is no UTF-8."""
    listing = files.scan(write(tmp_path / "photos", per_class=3), files.LeftOut())
    (tmp_path / "photos" / "blue" / "00.png").write_bytes(b"no image")
    loader = FileTestLoader(Reader(listing.files), listing.labels, 4, Preparation(16), rank=0, world=2)
    seen = sum(len(labels) for _, labels in loader)
    assert seen == len(loader.seen()) == 4 < len(loader.indices)
    name = os.fsdecode(b"caf\xe9")
    target = types.SimpleNamespace(test_name=name)
    cell = types.SimpleNamespace(
        task=types.SimpleNamespace(classes=listing.classes, form=types.SimpleNamespace(target=target)),
        config=demo_config(output_dir=tmp_path),
        evaluator=None,
        preparation=Preparation(16),
        class_shares=lambda: None,
    )
    places = np.zeros(seen, int)
    found = Findings(loader.seen(), places, places + 0.5, places + 1.0, places, 3)
    monkeypatch.setattr(report.findings, "find", lambda evaluator, loader: found)
    result = {"experiment": "x", "method": "mcc", "network": "digits", "seed": 0, "steps": 1, "seconds": 1}
    result |= {"device": "CPU", "peak_memory_mb": 1, "command": "", "accuracy": {name: 0.5}, "left_out": {}}
    report.write(cell, {name: loader}, tmp_path, {**result, "processes": 2})
    text = (tmp_path / report.NAME).read_text(encoding="utf-8")
    assert "Predictions for caf\\xe9: 4 of 8 images" in text and "The run had 2 processes." in text
    assert "test accuracy, caf\\xe9" in text


def test_findings():
    predicted = np.array([0, 0, 1, 1, 1, 2])
    margin = np.array([3.0, 5.0, 9.0, 0.1, 8.0, 1.0])
    found = Findings(np.arange(6), predicted, margin / 10, margin, np.array([0, 1, 1, 1, 0, 2]), 4)
    assert found.most_certain(4).tolist() == [1, 2, 5, 0]
    assert found.least_certain(2).tolist() == [3, 5]
    assert found.shares().tolist() == [2 / 6, 3 / 6, 1 / 6, 0]
    assert found.confusion().tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert found.accuracy() == pytest.approx(4 / 6)
    blind = Findings(np.arange(6), predicted, margin, margin, None, 4)
    assert blind.confusion() is None and blind.accuracy() is None
