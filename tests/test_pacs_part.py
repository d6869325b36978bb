"""The list of images that the figures on a part of PACS were measured on."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import fails

from benchmarks import pacs_part
from src.data.sets import PACS_CLASSES

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


def test_the_list_has_sixty_images_of_each_class_and_domain():
    wanted = pacs_part.listed()
    counts = Counter(Path(name).parent.as_posix() for name in wanted)
    assert counts == {f"{domain}/{name}": 60 for domain in DOMAINS for name in PACS_CLASSES}
    assert len(wanted) == 1680 and all(len(value) == 64 and int(value, 16) for value in wanted.values())


def test_the_data_here_are_those_of_the_list():
    folder = Path(os.environ.get("DATA_ROOT", ""), "pacs")
    if "DATA_ROOT" not in os.environ or not folder.is_dir():
        pytest.skip("DATA_ROOT has no pacs")
    assert pacs_part.differences(folder) == ([], [])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three small files and their list."""
    folder = tmp_path / "pacs"
    for name in ("photo/dog/a.jpg", "photo/dog/b.jpg", "sketch/dog/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    monkeypatch.setattr(pacs_part, "LIST", tmp_path / "list")
    assert pacs_part.write(folder) == 3
    return folder


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["pacs_part", *map(str, words)])
    pacs_part.main()


def test_a_folder_is_compared_and_copied(folder, tmp_path, monkeypatch, capsys):
    (folder / "photo/dog/more.jpg").write_bytes(b"not in the list")
    run(monkeypatch, folder, "--copy", tmp_path / "part")
    assert "all 3 files" in capsys.readouterr().out
    assert pacs_part.differences(tmp_path / "part") == ([], [])
    assert not (tmp_path / "part/photo/dog/more.jpg").exists()


def test_missing_and_changed_files_are_named(folder, tmp_path, monkeypatch):
    (folder / "photo/dog/a.jpg").unlink()
    (folder / "sketch/dog/a.png").write_bytes(b"another")
    assert pacs_part.differences(folder) == (["photo/dog/a.jpg"], ["sketch/dog/a.png"])
    fails(lambda: run(monkeypatch, folder), "1 of the listed", "photo/dog/a.jpg", "sketch/dog/a.png")
    fails(lambda: run(monkeypatch, tmp_path / "none"), "is no folder")
