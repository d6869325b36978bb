"""A sample of benchmarks/hostile.py, in this process, and a test for each defect that it has found."""

import os

import numpy as np
import pytest

from benchmarks import hostile, hostile_files
from benchmarks.measure import resident
from model_utils import checkpoint, config, limited
from model_utils.errors import UserError
from src.data import features
from src.data.decode import Unreadable
from src.exported import model_files, onnx_file
from tests.helpers import fails

SAMPLE = 6  # damaged files of each kind
SLOW = ("mindir", "mindir.json")  # each takes a compilation
MEGABYTES = 300  # more than any of these files needs


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """{kind: path of its honest file}, made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("honest"), {}
    (folder / "output").mkdir()

    def path_of(kind):
        if kind not in made:
            made[kind] = hostile.place_of(kind, folder)
            hostile.make(kind, made[kind])
        return made[kind]

    path_of.output = folder / "output"
    return path_of


def extended(path, content):
    """The file with these bytes, extended to 3 GB."""
    path.write_bytes(content)
    os.truncate(path, hostile_files.OVERSIZE)
    return path


class LittleMemory:
    """A block that fails if it needs more than MEGABYTES."""

    def __enter__(self):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self.before = resident("VmRSS")

    def __exit__(self, kind, *_):
        assert kind or resident("VmHWM") - self.before < MEGABYTES


@pytest.mark.parametrize("kind", [kind for kind in hostile_files.KINDS if kind not in SLOW])
def test_a_sample_is_read_or_refused(honest, kind):
    path = honest(kind)
    good, read, rng = path.read_bytes(), hostile_files.KINDS[kind][2], np.random.default_rng(5)
    read(path, honest.output)
    for _ in range(SAMPLE):
        content, _, what = hostile_files.damaged(good, rng)
        path.write_bytes(content)
        try:
            read(path, honest.output)
        except (UserError, Unreadable) as refusal:
            assert "\n" not in str(refusal), what
    path.write_bytes(good)
    read(path, honest.output)


SMALL = {"zip": 2, "tar": 4, "rank table": 2, "npy": 3, "idx": 1, "space": 1}


@pytest.mark.parametrize("kind", SMALL)
def test_what_was_made_on_purpose_is_refused(honest, kind):
    path, made = honest(kind), hostile_files.MADE_ON_PURPOSE[kind][: SMALL[kind]]
    assert len(made) == SMALL[kind]
    for what, make in made:
        path.write_bytes(make())
        with pytest.raises((UserError, Unreadable)) as refusal:
            hostile_files.KINDS[kind][2](path, honest.output)
        assert "\n" not in str(refusal.value), what
    assert not (honest.output.parent / "escaped").exists()


# Found: files extended to 3 GB were read to their end before they were refused.


def test_an_extended_checkpoint_is_refused_at_once(honest, tmp_path):
    path = extended(tmp_path / "a.ckpt", honest("ckpt").read_bytes())
    with LittleMemory():
        fails(lambda: checkpoint.read(path), "damaged, cut short or no MindSpore checkpoint")


@pytest.mark.parametrize("ending", (".onnx", ".mindir"))
def test_an_extended_model_is_refused_at_once(honest, tmp_path, ending):
    path = extended(tmp_path / f"a{ending}", honest("onnx").read_bytes())
    with LittleMemory():
        fails(lambda: model_files.open_model(path, "CPU"), f"a{ending} is damaged, or no ")
        fails(lambda: model_files.onnx_about(path), "is damaged, or no ONNX file")


def test_extended_texts_are_refused_at_once(tmp_path):
    path = extended(tmp_path / "a.yaml", b"seed: 1\n")
    with LittleMemory():
        fails(lambda: config.read_yaml(path), "not valid YAML: it is larger than 64 KiB")
        with pytest.raises(ValueError, match="larger than 16,384 KiB"):
            limited.content(path, model_files.MAX_ABOUT_BYTES)


def test_an_extended_image_has_no_features(tmp_path):
    path = extended(tmp_path / "a.jpg", b"\xff\xd8")
    with LittleMemory():
        assert features._digests([path, tmp_path / "none.jpg"]) == [None, None]


def test_ten_megabytes_of_configuration_are_refused_at_once(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"".join(b"k%d: 1\n" % number for number in range(1_000_000)))
    fails(lambda: config.read_yaml(path), "larger than 64 KiB")


# What they are refused by


@pytest.mark.parametrize(
    "content, whole",
    [
        (b"", True),
        (b"\x0a\x02ab\x12\x00", True),
        (b"\x08\x96\x01\x0d1234\x0912345678", True),  # a number, four bytes, eight bytes
        (b"\x0a\x03ab", False),  # cut short
        (b"\x0a\x02ab\x00", False),  # no field has number 0
        (b"\x0b", False),  # a group, which no format of ours has
        (b"\x0a" + b"\xff" * 11, False),  # a length without an end
        (b"\x0a", False),
    ],
)
def test_what_is_a_message(tmp_path, content, whole):
    path = tmp_path / "message"
    path.write_bytes(content)
    assert limited.is_message(path) == whole
    path.write_bytes(content + b"tail")
    assert limited.is_message(path, ending=4) == whole


def test_a_message_of_other_fields_or_of_too_many_is_none(tmp_path, monkeypatch):
    path = tmp_path / "message"
    path.write_bytes(b"\x0a\x00\x12\x00")
    assert limited.is_message(path, fields={1, 2}) and not limited.is_message(path, fields={1})
    monkeypatch.setattr(limited, "MOST_FIELDS", 1)
    assert not limited.is_message(path)


def test_a_text_of_the_very_limit_is_read(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"12345")
    assert limited.content(path, 5) == b"12345"
    with pytest.raises(ValueError):
        limited.content(path, 4)


# The benchmark's own judgement


USUAL = {"outcome": "read", "seconds": 1.0, "megabytes": 10, "written": []}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, None),
        ({"outcome": "refused"}, None),
        ({"outcome": "traceback: KeyError: 'a'"}, "traceback"),
        ({"outcome": "dies: SIGSEGV"}, "dies"),
        ({"seconds": 11.5}, "12 s"),
        ({"megabytes": 1100}, "1100 MB"),
        ({"written": ["/somewhere"]}, "/somewhere"),
    ],
)
def test_what_counts_as_a_defect(changes, said):
    found = hostile.defect({**USUAL, **changes}, USUAL)
    assert found is None if said is None else said in found


def test_onnx_with_weights_beside_it_is_a_message(honest):
    assert onnx_file.message(honest("onnx")) == honest("onnx").read_bytes()
