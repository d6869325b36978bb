"""Checkpoints: whole or absent, and every damage told in one line."""

import errno
import json
import logging
import os
import resource
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mindspore import nn

from model_utils import checkpoint
from model_utils.errors import UserError

META = {
    "format": 1,
    "method": "dann",
    "step": 3,
    "seconds": 1.5,
    "trained": [192, 1.5],
    "oracle": {},
    "config": {"method": "dann"},
}


class Net(nn.Cell):
    """Two parameters and a running statistic."""

    def __init__(self, width=3):
        super().__init__()
        self.fc = nn.Dense(2, width)
        self.bn = nn.BatchNorm1d(width)


def state(width=3):
    network = Net(width)
    return {"network": network, "optimizer": nn.Adam(network.trainable_params())}


def save(folder, step, **changes):
    path = checkpoint.step_path(folder, step)
    checkpoint.save_state(state(), {**META, "step": step, **changes}, path)
    return path


def fails(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)


@pytest.fixture
def warnings(monkeypatch):
    """The lines logged as warnings."""
    lines = []
    monkeypatch.setattr(checkpoint.log, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small training checkpoint."""
    return save(tmp_path_factory.mktemp("whole"), 1).read_bytes()


# What is written


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text() | st.booleans()))
def test_meta_comes_back_as_it_was(tmp_path, meta):
    checkpoint.save_state(state(), {**META, "config": meta}, tmp_path / "a.ckpt")
    assert checkpoint.read(tmp_path / "a.ckpt")[1] == {**META, "config": meta}


def test_state_comes_back_bit_for_bit(tmp_path):
    before = state()
    rng = np.random.default_rng(0)
    named = checkpoint.named_parameters(before)
    for parameter in named.values():
        noise = rng.normal(size=parameter.shape).astype(parameter.asnumpy().dtype)
        parameter.set_data(ms.Tensor(noise, parameter.dtype))
    checkpoint.save_state(before, META, tmp_path / "a.ckpt")
    after = state()
    checkpoint.restore_state(after, checkpoint.read(tmp_path / "a.ckpt")[0], "here")
    restored = checkpoint.named_parameters(after)
    assert restored.keys() == named.keys()
    assert any(name.startswith("optimizer/") for name in named)
    for name, parameter in named.items():
        assert restored[name].dtype == parameter.dtype
        np.testing.assert_array_equal(restored[name].asnumpy(), parameter.asnumpy())


def test_mindspores_own_functions_read_the_network(tmp_path):
    before, after = state(), Net()
    checkpoint.save_state(before, META, tmp_path / "a.ckpt")
    missing, _ = ms.load_param_into_net(after, ms.load_checkpoint(str(tmp_path / "a.ckpt")))
    assert missing == []
    np.testing.assert_array_equal(after.fc.weight.asnumpy(), before["network"].fc.weight.asnumpy())


def test_file_can_be_read_by_others_and_nothing_else_is_left(tmp_path):
    path = save(tmp_path, 1)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["step-00000001.ckpt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failing_while_writing_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, error):
    path = save(tmp_path, 1)
    before = path.read_bytes()

    def fail(entries, name, **_):
        with open(name, "wb") as handle:
            handle.write(b"half")
        raise error

    monkeypatch.setattr(ms, "save_checkpoint", fail)
    with pytest.raises(type(error)):
        save(tmp_path, 1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_file_size_limit_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    program = (
        "import sys, resource, numpy as np, mindspore as ms; from mindspore import nn\n"
        "from model_utils import checkpoint\n"
        "cell = nn.Dense(300, 300)\n"
        "checkpoint.save_cell(cell, sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    checkpoint.save_cell(cell, sys.argv[1])\n"
        "except (OSError, RuntimeError) as error:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000
    assert done.stdout == "refused\n", done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert checkpoint.read(path)[0]["weight"].shape == (300, 300)


# What is read


def test_a_checkpoint_cut_short_anywhere_is_refused(tmp_path, whole):
    path = tmp_path / "cut.ckpt"
    for length in range(0, len(whole), 10):
        path.write_bytes(whole[:length])
        try:
            values, meta = checkpoint.read(path)
        except UserError as error:
            assert "damaged" in str(error) and "cut.ckpt" in str(error)
            continue
        # Cut between two entries, the file is well formed: what is missing gives it away.
        fails(
            lambda values=values: checkpoint.restore_state(state(), values, path), "does not fit", "missing"
        )
        assert not checkpoint._has_crc(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_is_noticed(tmp_path, whole, data):
    place = data.draw(st.integers(0, len(whole) - 18))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.ckpt"
    path.write_bytes(changed)
    fails(lambda: checkpoint.read(path), "changed.ckpt", "damaged")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_give_arrays_or_a_user_error(tmp_path, content):
    path = tmp_path / "any.ckpt"
    path.write_bytes(content)
    try:
        checkpoint.load_network(Net(), path)
    except UserError as error:
        assert "any.ckpt" in str(error)
    else:
        pytest.fail("random bytes filled a network")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is no checkpoint\n" * 50,
        bytes(1000),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04]q\x00.",
    ],
    ids=["empty", "text", "zeros", "zip", "pickle"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    fails(lambda: checkpoint.load_network(Net(), tmp_path / "a.ckpt"), "a.ckpt")


def test_missing_files_wrong_endings_and_empty_folders_are_refused(tmp_path):
    fails(lambda: checkpoint.read(tmp_path / "no.ckpt"), "does not exist")
    (tmp_path / "a.txt").write_text("x")
    fails(lambda: checkpoint.read(tmp_path / "a.txt"), "must be a .ckpt file")
    fails(lambda: checkpoint.load_network(Net(), tmp_path), "no training checkpoint", "there is none")
    (tmp_path / "checkpoints").mkdir()
    fails(lambda: checkpoint.newest(tmp_path), "there is none")


def test_another_network_is_refused_with_what_differs_and_nothing_is_changed(tmp_path):
    checkpoint.save_cell(Net(4), tmp_path / "a.ckpt")
    network = Net(3)
    before = network.bn.gamma.asnumpy().copy()
    fails(
        lambda: checkpoint.load_network(network, tmp_path / "a.ckpt"),
        "other shape",
        "bn.beta (4,) for (3,)",
    )
    checkpoint.save_cell(nn.Dense(2, 3), tmp_path / "b.ckpt")
    fails(
        lambda: checkpoint.load_network(network, tmp_path / "b.ckpt"), "missing: bn.beta", "left over: bias"
    )
    fails(lambda: checkpoint.load_network(network, tmp_path / "b.ckpt"), "and 2 more", "--config")
    np.testing.assert_array_equal(network.bn.gamma.asnumpy(), before)


@pytest.mark.parametrize(
    "meta", [[], "x", {"step": 1}, {**META, "step": "3"}, {**META, "config": None}, {**META, "oracle": []}]
)
def test_damaged_meta_is_passed_over(tmp_path, meta, warnings):
    checkpoint.save_state(state(), meta or [0], checkpoint.step_path(tmp_path, 9))
    fails(lambda: checkpoint.newest(tmp_path), "none of them is good")
    assert len(warnings) == 1


@pytest.mark.parametrize("stored", ["x", [1], {"lr": 1}, {"method": 3}])
def test_damaged_stored_configuration_is_refused(tmp_path, stored):
    checkpoint.save_cell(Net(), tmp_path / "a.ckpt", {**META, "config": stored})
    fails(lambda: checkpoint.stored_config(tmp_path / "a.ckpt"), "a.ckpt", "damaged")


@pytest.mark.parametrize("newer", [2, "two", None, [[1] * 50]])
def test_newer_format_is_refused(tmp_path, newer):
    path = save(tmp_path, 1, format=newer)
    fails(lambda: checkpoint.load_network(Net(), path), path, "format", "reads 1")
    fails(lambda: checkpoint.stored_config(path), path, "format")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_network_that_is_not_finite_is_refused(tmp_path, value):
    damaged = Net()
    weight = damaged.fc.weight.asnumpy().copy()
    weight[1, 1] = value
    damaged.fc.weight.set_data(ms.Tensor(weight))
    path = checkpoint.step_path(tmp_path, 1)
    checkpoint.save_state({"network": damaged}, META, path)
    fails(lambda: checkpoint.load_network(Net(), path), path, "fc.weight", "not a number")
    checkpoint.save_cell(damaged, tmp_path / "cell.ckpt")
    fails(lambda: checkpoint.load_cell(Net(), tmp_path / "cell.ckpt", "cell"), "cell.ckpt", "fc.weight")


def test_meta_of_endless_brackets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda meta: "[" * 200_000)
    checkpoint.save_cell(Net(), tmp_path / "a.ckpt", META)
    fails(lambda: checkpoint.read(tmp_path / "a.ckpt"), "damaged")


# A run's folder


def test_damaged_latest_is_passed_over_with_a_warning(tmp_path, warnings):
    good, damaged = save(tmp_path, 2), save(tmp_path, 4)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    save(tmp_path, 6).write_bytes(b"")
    path, _, meta = checkpoint.newest(tmp_path)
    assert (path, meta["step"]) == (good, 2)
    assert len(warnings) == 2 and str(damaged) in warnings[1] and "one before" in warnings[1]


def test_checkpoint_that_lost_its_checksum_does_not_count_as_good(tmp_path, warnings):
    path = save(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:-17])
    fails(lambda: checkpoint.newest(tmp_path), "none of them is good")


def test_prune_keeps_the_newest_and_touches_nothing_else(tmp_path):
    paths = [save(tmp_path, step) for step in (2, 10, 300)]
    other = paths[0].with_name("step-old.ckpt")
    other.write_bytes(b"mine")
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(
        [paths[1].name, paths[2].name, other.name]
    )


def test_damaged_newer_checkpoints_do_not_push_good_ones_out(tmp_path):
    good, damaged = save(tmp_path, 2), save(tmp_path, 9)
    damaged.write_bytes(b"")
    checkpoint.set_aside_newer(tmp_path, good)
    newer = save(tmp_path, 3)
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.listed(tmp_path) == [newer]
    assert damaged.with_name(damaged.name + ".damaged").exists()


def test_mindspores_own_log_is_quiet_while_a_broken_file_is_read_and_heard_again(tmp_path, capfd):
    (tmp_path / "a.ckpt").write_bytes(b"x" * 100)
    fails(lambda: checkpoint.read(tmp_path / "a.ckpt"), "damaged")
    assert capfd.readouterr().err == ""
    assert not logging.getLogger(f"ME.mindspore.log.{os.getpid()}").disabled
