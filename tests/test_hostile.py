"""Files that nobody should trust: cut short, with flipped bits, with other numbers, with more behind them.

Whatever is done to a good file, a reader gives something back or refuses it with a UserError: never another
exception, never a process that dies or hangs. The same examples every time;
`EXAMPLES=1000 python -m pytest tests/test_hostile.py` makes more of them.
"""

import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.hostile_files import NUMBERS, a_mat, a_mindir, a_pickle, a_rank_table, a_state
from model_utils import checkpoint, rank_table
from model_utils.errors import UserError
from model_utils.restricted_pickle import load_numpy_pickle, load_torch
from src.data import idx, svhn
from src.exported import model_files
from src.networks import _hardnet_weights
from src.setup import settings as experiment
from tests.test_reported_causes import write_onnx

EXAMPLES = settings(
    max_examples=int(os.environ.get("EXAMPLES", "60")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LIMIT = 30  # seconds for one file; a good one takes milliseconds


@st.composite
def damage(draw):
    """A list of changes, each (kind, where as a share of the file, how)."""
    share = st.floats(0, 1, exclude_max=True)
    changes = st.one_of(
        st.tuples(st.just("cut"), share, st.just(0)),
        st.tuples(st.just("flip"), share, st.integers(0, 7)),
        st.tuples(st.just("number"), share, st.sampled_from(NUMBERS)),
        st.tuples(st.just("twice"), share, st.integers(1, 400)),
        st.tuples(st.just("insert"), share, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("more"), st.just(0.0), st.sampled_from([b"\0", b"}", b"\xff"])),
    )
    return draw(st.lists(changes, min_size=1, max_size=4))


def damaged(content, changes):
    content = bytearray(content)
    for kind, share, how in changes:
        at = int(share * len(content))
        if kind == "cut":
            del content[at:]
        elif kind == "flip" and content:
            content[at] ^= 1 << how
        elif kind == "number":
            content[at : at + len(how)] = how
        elif kind == "twice":
            content[at:at] = content[at : at + how]
        elif kind == "insert":
            content[at:at] = how
        elif kind == "more":
            content += how * 100_000
    return bytes(content)


def read_or_refuse(read, path):
    """`read` gives something or raises a UserError of one line, in time."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        signal.alarm(0)


def _too_long(number, frame):
    raise AssertionError(f"reading took more than {LIMIT} s")


# Good files


def a_checkpoint(folder):
    import mindspore as ms
    from mindspore import nn

    path = folder / "good.ckpt"
    meta = {"format": 1, "step": 1, "seconds": 1.0, "trained": [1, 1.0], "oracle": {}}
    cell = nn.Dense(3, 2)
    checkpoint.save_state({"network": cell}, {**meta, "config": {"method": "dann"}}, path)
    assert isinstance(cell, ms.nn.Cell)
    return path.read_bytes()


def an_idx(folder):
    return idx.header((5, 4, 4)) + bytes(range(80))


def an_onnx(folder):
    return write_onnx(folder / "good.onnx").read_bytes()


def open_mindir(path):
    model = model_files.open_model(path, "CPU")
    model.logits(np.ones((2, 3, 8, 8), np.float32))


def read_configuration(path):
    experiment.load([f"--config={path}"])


def open_onnx(path):
    model = model_files.open_onnx(path, "CPU")
    model.logits(np.ones((2, 3, 8, 8), np.float32))


def read_svhn(path):
    svhn.load(path.parent, "test")


READERS = {
    "ckpt": (a_checkpoint, "bad.ckpt", checkpoint.read),
    "ckpt of a run": (a_checkpoint, "bad.ckpt", checkpoint.stored_config),
    "pth": (lambda folder: a_state(folder, False), "bad.pth", load_torch),
    "pth before 1.6": (lambda folder: a_state(folder, True), "bad.pth", _hardnet_weights.read_state),
    "npy": (a_pickle, "bad.npy", load_numpy_pickle),
    "idx": (an_idx, "bad-idx3-ubyte", lambda path: idx.read(path, 3)),
    "mat": (a_mat, "test_32x32.mat", read_svhn),
    "rank table": (a_rank_table, "bad.json", rank_table.read),
    "onnx": (an_onnx, "bad.onnx", open_onnx),
    "mindir": (a_mindir, "bad.mindir", open_mindir),
    "metadata of onnx": (an_onnx, "bad.onnx", model_files.onnx_about),
}
GOOD_YAML = b"method: dann\nlr: 0.1\nbatch_size: 8\noutput_dir: 'a b'\nseed: [1, {a: 2}]\n# comment\n"
READERS["yaml"] = (lambda folder: GOOD_YAML, "bad.yaml", read_configuration)


@pytest.mark.parametrize("kind", READERS)
def test_hostile_file_is_read_or_refused(tmp_path, kind):
    make, name, read = READERS[kind]
    good = make(tmp_path)
    path = tmp_path / name
    path.write_bytes(good)
    read_or_refuse(read, path)

    @EXAMPLES
    @given(damage())
    def attack(changes):
        path.write_bytes(damaged(good, changes))
        read_or_refuse(read, path)

    attack()


@pytest.mark.parametrize("kind", READERS)
def test_hostile_file_cut_anywhere_is_read_or_refused(tmp_path, kind):
    make, name, read = READERS[kind]
    good = make(tmp_path)
    path = tmp_path / name
    for length in range(0, len(good), max(1, len(good) // 40)):
        path.write_bytes(good[:length])
        read_or_refuse(read, path)
