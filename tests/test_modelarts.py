"""ModelArts: copying in once, unpacking, copying out; with a stand-in for moxing that fails on demand."""

import io
import json
import multiprocessing
import os
import shutil
import stat
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from model_utils import archives, modelarts
from model_utils.errors import UserError
from src.data.forms import rooted
from src.setup import settings as experiment
from tests.helpers import DEMO, command, refused, succeeded


class Moxing(types.ModuleType):
    """obs://bucket/x is the folder <root>/bucket/x. `failures`: how many calls fail before one works."""

    def __init__(self, root):
        super().__init__("moxing")
        self.root, self.failures, self.calls, self.refused = root, 0, [], ()
        self.file = self

    def _place(self, url):
        return self.root / url[len("obs://") :] if str(url).startswith("obs://") else Path(url)

    def _call(self, name, *arguments):
        self.calls.append((name, *arguments))
        if self.failures:
            self.failures -= 1
            raise Exception("ERROR 503 SlowDown\nmore of it")
        if any(part in str(arguments[-1]) for part in self.refused):
            raise Exception("ERROR 403 AccessDenied")

    def is_directory(self, url):
        return self._place(url).is_dir()

    def copy_parallel(self, source, target):
        self._call("copy_parallel", source, target)
        shutil.copytree(self._place(source), self._place(target), dirs_exist_ok=True)

    def copy(self, source, target):
        self._call("copy", source, target)
        self._place(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._place(source), self._place(target))


@pytest.fixture
def moxing(tmp_path, monkeypatch):
    module = Moxing(tmp_path / "obs")
    monkeypatch.setitem(sys.modules, "moxing", module)
    monkeypatch.setattr(modelarts, "WAITS", (0.0, 0.0))
    return module


@pytest.fixture
def bucket(moxing):
    """obs://bucket/data with mnist/ and an archive of mnist_m/."""
    data = moxing.root / "bucket" / "data"
    (data / "mnist").mkdir(parents=True)
    (data / "mnist" / "images").write_bytes(b"digits")
    with tarfile.open(data / "more.tar.gz", "w:gz") as archive:
        add(archive, "mnist_m/images", b"colour")
    return "obs://bucket/data"


def add(archive, name, content=b"", **changes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def job(tmp_path, *more, **keys):
    keys = {
        "enable_modelarts": "true",
        "local_data_path": tmp_path / "cache",
        "output_dir": tmp_path / "out",
        **keys,
    }
    return experiment.load([*more, *(f"--{name}={value}" for name, value in keys.items())])


def test_data_are_copied_unpacked_and_found(tmp_path, bucket, moxing):
    settings = rooted(modelarts.prepare(job(tmp_path, data_url=bucket)))
    for key, name, content in (
        ("source_image_root", "mnist", b"digits"),
        ("target_image_root", "mnist_m", b"colour"),
    ):
        root = Path(getattr(settings, key))
        assert root == Path(settings.dataset_path) / name
        assert (root / "images").read_bytes() == content
    assert Path(settings.dataset_path).parent == tmp_path / "cache"


def test_the_older_spelling(tmp_path, bucket):
    settings = experiment.load(
        ["--isModelArts", "True", f"--data_url={bucket}", f"--local_data_path={tmp_path}"]
    )
    assert settings.enable_modelarts is True
    assert (Path(rooted(modelarts.prepare(settings)).source_image_root) / "images").is_file()


def test_data_are_copied_once(tmp_path, bucket, moxing):
    for _ in range(3):
        modelarts.prepare(job(tmp_path, data_url=bucket))
    assert [call[0] for call in moxing.calls] == ["copy_parallel"]


def copy_in_and_count(url, folder, log):
    copied = modelarts.Local.copy_folder

    def counted(self, source, target):
        with open(log, "a") as handle:
            handle.write("copy\n")
        copied(self, source, target)

    modelarts.Local.copy_folder = counted
    print(modelarts.copy_in(url, folder))


def test_processes_of_one_host_share_the_copy(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(50):
        (tmp_path / "data" / str(number)).write_bytes(bytes(100_000))
    arguments = (str(tmp_path / "data"), str(tmp_path / "cache"), str(tmp_path / "log"))
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=copy_in_and_count, args=arguments) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "copy\n"


def test_a_copy_cut_short_is_made_again(tmp_path, bucket, moxing):
    folder = modelarts.copy_in(bucket, tmp_path)
    (folder / modelarts.MARKER).unlink()
    (folder / "mnist" / "images").write_bytes(b"di")
    assert modelarts.copy_in(bucket, tmp_path) == folder
    assert (folder / "mnist" / "images").read_bytes() == b"digits"


def test_copying_in_is_tried_three_times(tmp_path, bucket, moxing):
    moxing.failures = 2
    assert modelarts.copy_in(bucket, tmp_path).is_dir()
    moxing.failures = 3
    with pytest.raises(UserError, match="copying obs://bucket/data failed 3 times: ERROR 503 SlowDown$"):
        modelarts.copy_in(bucket, tmp_path / "other")
    assert not list((tmp_path / "other").glob("data*"))


def test_a_single_file_may_be_the_data(tmp_path, bucket):
    folder = modelarts.copy_in(bucket + "/more.tar.gz", tmp_path)
    assert (folder / "mnist_m" / "images").read_bytes() == b"colour"


def test_a_local_folder_needs_no_moxing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moxing", None)
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    settings = rooted(modelarts.prepare(job(tmp_path, data_url=tmp_path / "data")))
    assert Path(settings.source_image_root).is_dir()
    with pytest.raises(UserError, match="data_url: obs:// needs the package moxing"):
        modelarts.prepare(job(tmp_path, data_url="obs://bucket/data"))
    with pytest.raises(UserError, match="train_url: ftp://x is neither"):
        modelarts.Outbox(job(tmp_path, train_url="ftp://x"))


def test_urls_and_the_switch_belong_together(tmp_path):
    with pytest.raises(UserError, match="data_url is used with --enable_modelarts true only"):
        modelarts.prepare(experiment.load(["--data_url=obs://b/d"]))
    with pytest.raises(UserError, match="give --data_url, --train_url or both"):
        modelarts.prepare(job(tmp_path))
    refused(command("train.py", data_url="obs://b/d"), "data_url")


def test_dataset_path_is_where_relative_roots_are_looked_up(tmp_path):
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    (tmp_path / "mnist_m").mkdir()
    base = [f"--dataset_path={tmp_path}"]
    settings = rooted(experiment.load(base))
    assert settings.source_image_root == str(tmp_path / "data" / "mnist")
    assert settings.target_image_root == str(tmp_path / "mnist_m")
    elsewhere = rooted(experiment.load([*base, "--source_image_root=/else/where"]))
    assert elsewhere.source_image_root == "/else/where"
    assert rooted(experiment.load([])).source_image_root == "data/mnist"


# Copying out


@pytest.fixture
def run(tmp_path):
    """A run's folder: a checkpoint, a log, and files that are nobody's business."""
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/step-00000001.ckpt", "train.log", ".lock", "checkpoints/.step-00000002.7.ckpt"):
        (tmp_path / "out" / name).write_text(name)
    return tmp_path / "out"


def arrived(moxing):
    root = moxing.root / "bucket" / "run"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_what_has_changed_is_copied_out(tmp_path, run, moxing):
    outbox = modelarts.Outbox(job(tmp_path, train_url="obs://bucket/run/"))
    assert outbox.send() == []
    assert arrived(moxing) == ["checkpoints/step-00000001.ckpt", "train.log"]
    assert [Path(call[-1]).name for call in moxing.calls] == ["step-00000001.ckpt", "train.log"]
    (run / "train.log").write_text("longer")
    moxing.calls.clear()
    outbox.finish()
    assert [call[-1] for call in moxing.calls] == ["obs://bucket/run/train.log"]
    assert (moxing.root / "bucket" / "run" / "train.log").read_text() == "longer"


def test_failures_are_tried_again_and_then_named(tmp_path, run, moxing, caplog):
    outbox = modelarts.Outbox(job(tmp_path, train_url="obs://bucket/run"))
    moxing.failures = 2
    assert outbox.send() == []
    assert len(arrived(moxing)) == 2
    moxing.refused = ("train.log",)
    (run / "train.log").write_text("new")
    (run / "metrics.jsonl").write_text("{}")
    with pytest.raises(
        UserError, match=r"1 files could not be copied to obs://bucket/run: train\.log; .* kept in"
    ):
        outbox.finish()
    assert (run / "train.log").read_text() == "new"
    assert "metrics.jsonl" in arrived(moxing)
    moxing.refused = ()
    assert outbox.send() == []


def test_without_train_url_nothing_is_copied(tmp_path, run, moxing):
    assert modelarts.Outbox(experiment.load([f"--output_dir={run}"])).send() == []
    assert modelarts.Outbox(job(tmp_path, train_url="obs://bucket/run"), enabled=False).send() == []
    assert moxing.calls == []


def test_a_job_from_beginning_to_end_and_its_continuation(tmp_path):
    """The real command: a job killed off half-way leaves its checkpoints; the next one fetches them."""
    keys = {**DEMO, "n_epoch": 1, "enable_modelarts": True, "train_url": tmp_path / "kept"}
    first = succeeded(command("train.py", **keys, output_dir=tmp_path / "first", save_checkpoint_steps=2))
    names = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*")}
    assert {"result.json", "train.log", "metrics.jsonl", "network.ckpt", "config.yaml"} <= names
    assert {f"checkpoints/step-0000000{step}.ckpt" for step in (2, 4, 6)} <= names
    assert (tmp_path / "kept" / "train.log").read_text() == (tmp_path / "first" / "train.log").read_text()
    for name in ("checkpoints/step-00000006.ckpt", "result.json", "network.ckpt"):
        (tmp_path / "kept" / name).unlink()
    resumed = succeeded(
        command("train.py", **keys, output_dir=tmp_path / "second", save_checkpoint_steps=2, resume=True)
    )
    assert "after step 4 of 6" in resumed
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("first", "kept")]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert "finished 6 steps" in first


@pytest.mark.thorough
def test_a_job_that_cannot_copy_out_says_so_and_fails(tmp_path):
    (tmp_path / "kept").write_text("a file in the way")
    keys = {
        **DEMO,
        "n_epoch": 0,
        "steps_per_epoch": 1,
        "enable_modelarts": True,
        "train_url": tmp_path / "kept",
    }
    done = command("train.py", **keys, output_dir=tmp_path / "out")
    refused(done, "train_url: ", "files could not be copied to", "step-00000001.ckpt", "kept in")
    assert (tmp_path / "out" / "result.json").is_file()
    assert "warning: not copied to" in done.stdout


# Archives


def tar(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, content, changes in members:
            add(archive, name, content, **changes)


HOSTILE = {
    "link": ("a", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
    "hard link": ("a", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
    "device": ("a", b"", {"type": tarfile.CHRTYPE}),
    "absolute": ("/tmp/escaped", b"x", {}),
    "parent": ("a/../../escaped", b"x", {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tar_members_are_refused_and_nothing_is_written(name, tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    tar(folder / "data.tar", ("good", b"x", {}), HOSTILE[name])
    with pytest.raises(UserError, match=r"data\.tar holds a"):
        archives.unpack_all(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data.tar", "inner"]


def test_hostile_zip_members_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for member in (link, zipfile.ZipInfo("../escaped"), zipfile.ZipInfo("/escaped")):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            archive.writestr(member, "/etc")
        with pytest.raises(UserError, match=r"data\.zip holds a"):
            archives.unpack_all(tmp_path)
        assert os.listdir(tmp_path) == ["data.zip"]


def test_zip_and_nested_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    with zipfile.ZipFile(tmp_path / "sub" / "data.zip", "w") as archive:
        archive.writestr("a/b.txt", "text")
    assert archives.unpack_all(tmp_path) == ["sub/data.zip"]
    assert (tmp_path / "sub" / "a" / "b.txt").read_text() == "text"


def test_damaged_archives_are_one_line(tmp_path):
    tar(tmp_path / "whole.tar", ("a", bytes(100_000), {}))
    content = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "whole.tar").unlink()
    for name, part in (("cut.tar", content[:50_000]), ("no.tgz", b"nothing"), ("no.zip", b"PK\3\4")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UserError, match="damaged"):
            archives.unpack_all(tmp_path)
        (tmp_path / name).unlink()


def test_an_archive_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    tar(tmp_path / "data.tar", ("a", bytes(2000), {}))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(UserError, match="takes 2000 bytes unpacked, but only 1000 are free"):
        archives.unpack_all(tmp_path)
    assert os.listdir(tmp_path) == ["data.tar"]
