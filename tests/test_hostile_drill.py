"""A sample of benchmarks/hostile.py, in this process, and a test for each defect that it has found."""

import json
import os
import subprocess

import numpy as np
import pytest

from benchmarks import hostile, hostile_commands, hostile_files
from benchmarks.measure import resident
from model_utils import checkpoint, config, limited, run_log
from model_utils.errors import UserError
from src.data import decode, features
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


# Whole commands, benchmarks/hostile_commands.py


@pytest.mark.parametrize(
    "status, output, errors, found",
    [
        (0, "done", "", "read"),
        (0, "done", "Traceback (most recent call last):\nKeyError: 'a'", "traceback: KeyError: 'a'"),
        (2, "", "error: a.ckpt is damaged\n", "refused"),
        (2, "", "error: a.ckpt is damaged\nerror: again\n", "2 lines: "),
        (2, "", "warning: a.jpg is left out\nerror: 1 of 2 could not be read\n", "refused"),
        (2, "", "libpng error: a\nerror: 1 of 2 could not be read\n", "2 lines: "),
        (2, "", "error: a.ckpt is damaged\nwarning: b\n", "2 lines: "),
        (2, "", "", "0 lines: "),
        (2, "", "a.ckpt is damaged\n", "1 lines: "),
        (1, "", "KeyError: 'a'\n", "status 1: KeyError: 'a'"),
        (-11, "", "", "status -11: "),
    ],
)
def test_how_a_command_may_end(status, output, errors, found):
    done = subprocess.CompletedProcess([], status, output, errors)
    assert hostile_commands.outcome(done).startswith(found)


@pytest.fixture
def commands(tmp_path):
    made = hostile_commands.Commands(tmp_path)
    hostile_commands.make_files(tmp_path / "world")
    return made


def test_an_archive_goes_through_the_whole_command(commands):
    case = "create_mnistm.py .zip"
    honest = hostile_commands.honest_bytes(case, commands.folder / "world")
    usual = commands.answer(case, honest, 0)
    assert usual["outcome"] == "read" and usual["seconds"] > 0 and usual["megabytes"] > 10
    for content, size in ((honest[:-30], 0), (honest, hostile_files.OVERSIZE)):
        answer = commands.answer(case, content, size)
        assert answer["outcome"] == "refused" and hostile.defect(answer, usual) is None
        assert not any((commands.folder / "output").iterdir())


def test_what_a_command_writes_elsewhere_is_seen(commands, monkeypatch):
    def run(words):
        (commands.folder / "home" / ".profile").write_text("x")
        (commands.folder / "output" / "result").write_text("x")
        done = subprocess.CompletedProcess(words, 0, "", "")
        done.seconds, done.megabytes = 1.0, 100.0
        return done

    monkeypatch.setattr(commands, "run", run)
    answer = commands.answer("infer.py --images", b"", 0)
    assert answer["written"] == [str(commands.folder / "home" / ".profile")]
    assert hostile.defect(answer, {**answer, "written": []}) == f"writes {answer['written'][0]}"


def test_a_command_that_does_not_end_hangs(commands, monkeypatch):
    monkeypatch.setattr(commands, "run", lambda words: None)
    answer = commands.answer("infer.py --images", b"", 0)
    assert answer["outcome"].startswith("hangs") and hostile.defect(answer, answer) == answer["outcome"]


def test_the_page_says_what_was_kept():
    kept = json.loads(hostile_commands.KEPT.read_text(encoding="utf-8"))
    assert list(kept["kinds"]) == list(hostile_commands.CASES)
    inputs, read, refused, defects = (
        sum(row[name] for row in kept["kinds"].values()) for name in ("inputs", "read", "refused", "defects")
    )
    page = (hostile_commands.ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    said = f"Of {inputs}, {refused} were refused with status 2 and one line, and {read} ended with status 0"
    assert said in page and defects == 0


def test_cases_that_are_run_again_replace_their_rows(tmp_path):
    path, (first, second, *_) = tmp_path / "kept.json", hostile_commands.CASES
    hostile_commands.save(path, "one", {second: {"inputs": 1}, first: {"inputs": 2}})
    hostile_commands.save(path, "two", {second: {"inputs": 3}})
    kept = json.loads(path.read_text())
    assert kept == {
        "commands": {"one": [first], "two": [second]},
        "kinds": {first: {"inputs": 2}, second: {"inputs": 3}},
    }
    assert list(kept["kinds"]) == [first, second]


# Found: --resume true gave a traceback where metrics.jsonl was no text.


ROW = b'{"kind": "train", "step": 1, "phase": "adapt", "seconds": 0.5, "loss": NaN}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"\xff" * 1000,
        b"{}",
        b"1",
        b"[" * 60_000,
        b'{"kind": "train", "step": "2"}',
        b'{"step": 2}',
        b'{"kind": "train", "step": 2, "loss": [1]}',
        b'{"kind": "train", "step": ' + b"9" * 60_000 + b"}",
        b" " * run_log.MAX_ROW_BYTES + ROW,
    ],
)
def test_rows_of_metrics_end_with_the_first_line_that_is_none(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROW + ROW + line + b"\n" + ROW)
    rows = run_log.read_metrics(path)
    assert [row["step"] for row in rows] == [1, 1] and rows[0]["phase"] == "adapt"


def test_extended_metrics_are_not_read_to_their_end(tmp_path):
    path = extended(tmp_path / "metrics.jsonl", ROW)
    with LittleMemory():
        assert len(run_log.read_metrics(path)) == 1


# Found: onnxruntime kept a number of the machine and a store of its telemetry in the user's cache folder.


def test_inference_writes_nothing_into_the_users_folders(tmp_path, honest):
    from tests import helpers

    hostile_commands.make_files(tmp_path)
    places = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    for place in places.values():
        os.mkdir(place)
    words = [hostile_commands.ROOT / "infer.py", tmp_path / "photo.jpg", f"--model={honest('onnx')}"]
    done = helpers.forked([*words, "--device_target=CPU"], **places)
    assert done.returncode == 0 and "photo.jpg" in done.stdout
    assert [str(path) for place in places.values() for path in os.scandir(place)] == []


# Found: libpng printed three lines about a PNG without pixels.


@pytest.mark.parametrize(
    "content, reason",
    [
        (hostile_files._png(0, 0), "no pixels"),
        (hostile_files._png(0, 5), "no pixels"),
        (hostile_files._png(5, 5, depth=3), "impossible header"),
        (hostile_files._png(5, 5, colour=5), "impossible header"),
        (hostile_files._png(5, 5, interlace=2), "impossible header"),
        # Another chunk comes first.
        (
            hostile_files._png(5, 5).replace(b"\0\0\0\rIHDR", b"\0\0\0\0tEXt\x96\x42\xc5\x85\0\0\0\rIHDR"),
            "header",
        ),
    ],
)
def test_impossible_pngs_are_refused_without_a_word_of_libpng(content, reason, capfd):
    with pytest.raises(Unreadable, match=reason):
        decode.decode(content)
    assert capfd.readouterr() == ("", "")
