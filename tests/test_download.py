"""Fetching public data from a server on this machine: right files get in whole, all others not at all."""

import bz2
import hashlib
import io
import tarfile

import numpy as np
import pytest
from helpers import command, fails, refused
from scipy.io import savemat
from web_server import Server, closed_port

from src.data import download, load, photos, svhn, usps
from src.networks.pretrained import load_initial
from src.setup import settings as experiment


def md5(data):
    return hashlib.md5(data).hexdigest()


def usps_text(count=12):
    row = " ".join(f"{index}:{value:.4f}" for index, value in enumerate(np.linspace(-1, 1, 256), 1))
    return bz2.compress("".join(f"{label % 10 + 1} {row}\n" for label in range(count)).encode())


def mat_file(count=12):
    file = io.BytesIO()
    labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
    savemat(file, {"X": np.zeros((32, 32, 3, count), np.uint8), "y": labels})
    return file.getvalue()


SETS = {  # name: (module, name of its address, file of the test split, its content)
    "usps": (usps, "FILES", "usps.t.bz2", usps_text()),
    "svhn": (svhn, "URL", "test_32x32.mat", mat_file()),
}


def publish(monkeypatch, module, address, name, content, url):
    """Let a data set's address be `url`, and its checksum that of `content`."""
    monkeypatch.setattr(module, address, url)
    monkeypatch.setitem(module.MD5, name, md5(content))


@pytest.mark.parametrize("name", SETS)
def test_a_missing_file_is_fetched_once(monkeypatch, tmp_path, name):
    module, address, file, content = SETS[name]
    root = tmp_path / "new" / name
    with Server({f"/{file}": content}) as server:
        publish(monkeypatch, module, address, file, content, server.url)
        assert len(load(name, root, "test", download=True).labels) == 12
    assert [path.name for path in root.iterdir()] == [file] and (root / file).read_bytes() == content
    # The server is gone: what is there is read.
    assert len(load(name, root, "test", download=True).labels) == 12


@pytest.mark.parametrize("fault", ["other file", "cut", "not there", "no network"])
@pytest.mark.parametrize("name", SETS)
def test_a_failed_download_is_one_line_and_leaves_nothing(monkeypatch, tmp_path, name, fault):
    module, address, file, content = SETS[name]
    sent = {"other file": {f"/{file}": content[:-1] + b"?"}, "cut": {f"/{file}": content}}.get(fault, {})
    with Server(sent, cut=fault == "cut") as server:
        url = closed_port() if fault == "no network" else server.url
        publish(monkeypatch, module, address, file, content, url)
        line = fails(lambda: load(name, tmp_path, "test", download=True), url + file, "by hand", tmp_path)
    word = {"other file": "wrong MD5", "not there": "HTTP 404", "no network": "ConnectionError"}.get(fault)
    assert word is None or word in line
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_fetched_is_offered_and_the_rest_says_where_it_is(tmp_path):
    for name in SETS:
        fails(lambda name=name: load(name, tmp_path, "train"), "--download true", "http")
    fails(lambda: load("mnist_m", tmp_path, "train", download=True), "create_mnistm.py", "yaroslav.ganin.net")


def test_published_checksums_are_complete():
    """A checksum for each file that may be asked for; none of them of a wrong length."""
    assert set(usps.MD5) == {names[1] for names in usps.LIBSVM.values()}
    assert set(svhn.MD5) == {"train_32x32.mat", "test_32x32.mat"}
    for value in (*usps.MD5.values(), *svhn.MD5.values(), *download.IMAGENETTE.values(), photos.BSDS500_MD5):
        assert len(value) == 32 and int(value, 16)


# Archives


def archive(members, links=()):
    """Bytes of a .tgz: members {name: bytes}; links: (name, where it leads)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for name, leads in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, leads
            packed.addfile(info)
    return file.getvalue()


IMAGES = {f"imagenette2-160/{part}/n0/{part}.JPEG": b"image" for part in ("train", "val")}


def fetch_imagenette(monkeypatch, content, path, sent=None):
    with Server({"/imagenette2-160.tgz": content if sent is None else sent}) as server:
        monkeypatch.setattr(download, "IMAGENETTE_URL", server.url)
        monkeypatch.setitem(download.IMAGENETTE, "imagenette2-160", md5(content))
        download.fetch_image_folder(path)


@pytest.mark.parametrize("exists", [False, True])
def test_imagenette_appears_as_a_folder(monkeypatch, tmp_path, exists):
    path = tmp_path / "data" / "imagenette2-160"
    if exists:
        path.mkdir(parents=True)
    assert download.is_missing(path)
    fetch_imagenette(monkeypatch, archive(IMAGES), path)
    found = sorted(str(file.relative_to(path.parent)) for file in path.rglob("*.JPEG"))
    assert found == sorted(IMAGES) and [file.name for file in path.parent.iterdir()] == [path.name]
    assert not download.is_missing(path)


HOSTILE = {
    "climbs out": archive({**IMAGES, "imagenette2-160/../../evil": b""}),
    "absolute": archive({"/tmp/evil": b"", **IMAGES}),
    "link": archive(IMAGES, [("imagenette2-160/link", "/etc")]),
    "another folder": archive({"photos/train/x.jpg": b""}),
    "no archive": b"<html>moved</html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_archive_leaves_nothing(monkeypatch, tmp_path, kind):
    path = tmp_path / "imagenette2-160"
    fails(lambda: fetch_imagenette(monkeypatch, HOSTILE[kind], path), "imagenette2-160.tgz")
    assert list(tmp_path.iterdir()) == []


def test_another_archive_than_published_leaves_nothing(monkeypatch, tmp_path):
    path, sent = tmp_path / "imagenette2-160", archive({**IMAGES, "more": b""})
    fails(lambda: fetch_imagenette(monkeypatch, archive(IMAGES), path, sent), "wrong MD5")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_name_says_where_imagenet_is(tmp_path):
    line = fails(
        lambda: download.fetch_image_folder(tmp_path / "imagenet"), "dataset_path", "imagenette2-160"
    )
    assert "image-net.org" in line


def test_bsds500_goes_where_bst_path_says(monkeypatch, tmp_path):
    with Server({"/BSR_bsds500.tgz": b"photographs"}) as server:
        monkeypatch.setattr(photos, "BSDS500_URL", server.url + "BSR_bsds500.tgz")
        monkeypatch.setattr(photos, "BSDS500_MD5", md5(b"photographs"))
        photos.fetch_bsds500(tmp_path / "data" / "photos.tgz")
        assert (tmp_path / "data" / "photos.tgz").read_bytes() == b"photographs"


@pytest.mark.parametrize("network, place", [("alexnet", "cs.toronto.edu"), ("hardnet39ds", "ping-chao.com")])
def test_missing_weights_say_where_they_are(network, place, tmp_path):
    words = ["--method=supervised", f"--network={network}", f"--pretrained={tmp_path / 'none.npy'}"]
    fails(lambda: load_initial(None, experiment.load(words)), "pretrained", "none.npy", place)


# The commands


def test_train_py_without_a_network_ends_with_one_line(tmp_path):
    done = command(
        "train.py",
        config="configs/hardnet39ds_imagenette.yaml",
        dataset_path=tmp_path / "imagenet",
        output_dir=tmp_path / "run",
        download=True,
    )
    refused(done, "dataset_path", "image-net.org")
    done = command("train.py", config="configs/masf_pacs.yaml", domains_image_root=tmp_path / "pacs")
    refused(done, "domains_image_root", "drive.google.com")
