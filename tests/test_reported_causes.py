"""Exceptions nobody caught and messages that named the wrong cause, reported by users of other projects."""

import importlib
import logging
import subprocess
import sys

import numpy as np
import pth_files as pth
import pytest
from test_reported import LONG

from model_utils import checkpoint, config, optional, run_log
from model_utils.errors import UserError
from model_utils.keys import COMMON
from model_utils.restricted_pickle import load_numpy_pickle, load_torch
from src import pth2ckpt
from src.data.files import find
from src.exported import model_files, onnx_file
from src.networks import _hardnet_weights
from src.setup import settings as experiment
from src.training import run_folder
from tests.helpers import ROOT, refused

# F. Exceptions outside the set that is caught


@pytest.mark.parametrize("name", sorted(name for name, key in COMMON.items() if key.path))
@pytest.mark.parametrize("path", [LONG, f"a/{LONG}/b", "/".join(["x" * 200] * 25), "ä" * 150])
def test_reported_path_too_long_in_a_key(name, path):
    with pytest.raises(UserError, match=f"{name} .command line.*is too long: .* at most"):
        experiment.load([f"--{name}={path}"])


def test_reported_path_too_long_in_the_other_programs(tmp_path, monkeypatch):
    import create_mnistm
    import eval_onnx
    import infer

    monkeypatch.setattr(sys, "argv", ["pth2ckpt", f"--pth={LONG}", "--ckpt=a.ckpt"])
    for call in (
        lambda: infer.arguments([f"--model={LONG}", "a.jpg"]),
        lambda: infer.arguments([f"--class_names={LONG}", "--model=m", "a.jpg"]),
        lambda: find([LONG]),
        lambda: model_files.open_model(LONG),
        lambda: create_mnistm.parse([f"--bst_path={LONG}"]),
        lambda: create_mnistm.parse([f"--mnist_dir={LONG}"]),
        lambda: create_mnistm.parse([f"--mnistm_dir={LONG}"]),
        lambda: eval_onnx.load([f"--onnx_path={LONG}.onnx"]),
        lambda: checkpoint.stored_config(LONG),
        lambda: config.read_yaml(LONG),
        lambda: load_torch(LONG),
        lambda: load_numpy_pickle(LONG),
        pth2ckpt.main,
    ):
        with pytest.raises(UserError, match="too long"):
            call()


def test_reported_refusals_of_the_operating_system_are_one_line():
    """What slips through: wherever it is raised, `cli.run` makes a line of it."""
    for words in ("os.stat('x' * 300)", "os.stat('/etc/passwd/x')", "open('/proc/self/mem', 'rb').read(1)"):
        program = f"import os\nfrom model_utils import cli\ndef main():\n    {words}\ncli.run(main)"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        refused(done)


def test_reported_link_to_itself(tmp_path):
    link = tmp_path / "link.ckpt"
    link.symlink_to(link)
    with pytest.raises(UserError, match="output_dir"), run_folder.claim(link):
        pass
    with pytest.raises(UserError, match="output_dir"), run_folder.claim(link / "below"):
        pass
    for call in (
        lambda: checkpoint.read(link),
        lambda: checkpoint.stored_config(link),
        lambda: load_torch(link),
        lambda: model_files.open_model(link),
        lambda: model_files.onnx_about(link),
        lambda: config.read_yaml(link),
        lambda: onnx_file.read(link),
    ):
        with pytest.raises(UserError, match="link.ckpt"):
            call()


@pytest.fixture
def run_lines():
    """The lines that the run's log gets."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    before = list(run_log.log.handlers), run_log.log.level
    run_log.log.handlers[:] = [handler]
    run_log.log.setLevel(logging.INFO)
    yield lines
    run_log.log.handlers[:], run_log.log.level = before


def without(monkeypatch, folder, package, content):
    """`package` is not installed (content None), or its first lines are `content`."""
    importlib.import_module(package)  # so that there is something to put back afterwards
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    if content is None:
        monkeypatch.setitem(sys.modules, package, None)
        return
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(str(folder))


BROKEN = [None, "raise RuntimeError('built for another protobuf')", "import no_such_package", "x = 1"]


@pytest.mark.parametrize("content", BROKEN)
def test_reported_tensorboard_that_does_not_work_is_a_warning(monkeypatch, tmp_path, run_lines, content):
    without(monkeypatch, tmp_path, "tensorboardX", content)
    (tmp_path / "run").mkdir()
    metrics = run_log.Metrics(tmp_path / "run")
    for step in range(3):
        metrics.write("train", step, {"loss": 1.0})
    metrics.close()
    assert len(run_log.read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3
    assert len(run_lines) == 1
    assert run_lines[0].startswith("warning: no TensorBoard events are written") and "\n" not in run_lines[0]


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
@pytest.mark.parametrize("content", BROKEN[:2])
def test_reported_package_that_is_missing_or_broken_is_named(monkeypatch, tmp_path, package, content):
    without(monkeypatch, tmp_path, package, content)
    calls = {
        "onnxruntime": lambda: model_files.open_onnx("net.onnx"),
        "onnx": lambda: onnx_file.parse(b"", "net.onnx"),
    }
    with pytest.raises(UserError, match=f"the package {package} is needed .*pip install"):
        calls[package]()


def test_reported_package_needed_is_given():
    assert optional.require("json", "for this") is __import__("json")


def write_onnx(path, location="weights.bin", size=8, values=None):
    """An ONNX classifier (N, 3, size, size) -> (N, 2), its weights in a second file beside it."""
    from onnx import TensorProto, helper, numpy_helper

    values = np.arange(6, dtype=np.float32).reshape(2, 3) if values is None else values
    weight = numpy_helper.from_array(values, "w")
    (path.parent / "weights.bin").write_bytes(b"other" + values.tobytes())
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "5"), ("length", str(values.nbytes))):
        weight.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"], transB=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "net", [images], [logits], [weight])
    opset = [helper.make_opsetid("", 13)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    return path


def test_reported_onnx_file_with_weights_beside_it_runs_from_any_folder(tmp_path, monkeypatch, run_lines):
    path = write_onnx(tmp_path / "net.onnx")
    (tmp_path / "elsewhere").mkdir()
    for folder, name in ((tmp_path / "elsewhere", path), (tmp_path, "net.onnx")):
        monkeypatch.chdir(folder)
        model = model_files.open_model(name, "CPU")
        logits = model.logits(np.ones((4, 3, 8, 8), np.float32))
        np.testing.assert_allclose(logits, np.tile([3, 12], (4, 1)))
        assert model_files.onnx_about(name) == {}
    assert [line for line in run_lines if "weights read from weights.bin beside it" in line]


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "", "..\\weights.bin"]
)
def test_reported_onnx_file_reads_nothing_outside_its_folder(tmp_path, location):
    (tmp_path / "in").mkdir()
    path = write_onnx(tmp_path / "in" / "net.onnx", location)
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    with pytest.raises(UserError, match="net.onnx names .* which is not beside it"):
        model_files.open_model(path, "CPU")


def test_reported_onnx_file_without_its_second_file_says_so(tmp_path):
    path = write_onnx(tmp_path / "net.onnx")
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="its weights in weights.bin are cut short"):
        model_files.open_model(path, "CPU")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UserError, match="second file, weights.bin, .*copy both into one folder"):
        model_files.open_model(path, "CPU")


def test_reported_onnx_network_that_does_not_take_the_images_is_one_line(tmp_path, capfd):
    model = model_files.open_model(write_onnx(tmp_path / "net.onnx"), "CPU")
    with pytest.raises(UserError, match=r"net.onnx can't be run on images \(1, 1, 8, 8\)"):
        model.logits(np.ones((1, 1, 8, 8), np.float32))
    assert capfd.readouterr().err == ""


# G. Messages that name the wrong cause


def entry(key, body):
    return pth.text(key) + body


OTHER_THINGS = {
    "argparse.Namespace": pth.name("argparse", "Namespace") + b")R}" + pth.text("lr") + b"K\x01sb",
    "numpy.core.multiarray.scalar": pth.name("numpy.core.multiarray", "scalar")
    + b"("
    + pth.name("numpy", "dtype")
    + b"("
    + pth.text("f8")
    + b"\x89\x88tRtR",
    "omegaconf.dictconfig.DictConfig": pth.name("omegaconf.dictconfig", "DictConfig") + b")\x81",
    "pathlib.PosixPath": pth.name("pathlib", "PosixPath") + b"(" + pth.text("a") + b"tR",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", OTHER_THINGS)
def test_reported_object_beside_the_weights_is_named_with_its_mend(tmp_path, name, legacy):
    weights, content = pth.state({"w": np.ones(2, "f4")})
    body = b"}(" + entry("state_dict", weights) + entry("args", OTHER_THINGS[name]) + b"u"
    write = pth.write_legacy if legacy else pth.write_zip
    with pytest.raises(UserError) as refusal:
        load_torch(write(tmp_path / "a.pth", body, content))
    said = str(refusal.value)
    assert f"holds '{name}' (under 'args') beside its weights" in said
    assert "torch.save(loaded['state_dict'], 'weights.pth')" in said and "nothing of it was run" in said


def test_reported_whole_network_in_place_of_weights_is_named(tmp_path):
    with pytest.raises(UserError, match="is an object of the type .* 'models.Net', .*network.state_dict"):
        load_torch(pth.write_zip(tmp_path / "a.pth", pth.name("models", "Net") + b")\x81"))


def several(path, *names):
    items, content = b"", {}
    for index, name in enumerate(names):
        array = np.full(2, index, "f4")
        items += entry(name, pth.mapping({"w": pth.tensor("FloatStorage", name, 2, 0, (2,), (1,))}))
        content[name] = array.tobytes()
    return pth.write_zip(path, b"}(" + items + entry("epoch", b"K\x03") + b"u", content)


def test_reported_averaged_weights_are_offered(tmp_path, run_lines):
    path = several(tmp_path / "a.pth", "state_dict", "state_dict_ema")
    assert _hardnet_weights.read_state(path)["w"].tolist() == [0, 0]
    assert "weights state_dict taken; it also holds state_dict_ema (--weights state_dict_ema)" in run_lines[0]
    for asked in ("ema", "state_dict_ema"):
        assert _hardnet_weights.read_state(path, asked)["w"].tolist() == [1, 1]
    assert _hardnet_weights.read_state(path, "state_dict")["w"].tolist() == [0, 0]
    with pytest.raises(UserError, match="has no single entry 'teacher'.*it has state_dict, state_dict_ema"):
        _hardnet_weights.read_state(path, "teacher")


def test_reported_weights_under_other_names(tmp_path):
    assert list(_hardnet_weights.read_state(several(tmp_path / "a.pth", "model"))) == ["w"]
    path = several(tmp_path / "b.pth", "model", "model_ema")
    with pytest.raises(UserError, match="several sets of weights, model, model_ema; choose one"):
        _hardnet_weights.read_state(path)
    assert _hardnet_weights.read_state(path, "ema")["w"].tolist() == [1, 1]


OTHER_FILES = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 17\n",
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "packed with gzip": b"\x1f\x8b\x08\0" + bytes(30),
    "empty": b"",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "a safetensors file": (40).to_bytes(8, "little") + b'{"w":{}}' + bytes(40),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_reported_file_that_is_something_else_is_recognised(tmp_path, kind):
    for name, read in (("a.ckpt", checkpoint.read), ("a.pth", load_torch), ("a.npy", load_numpy_pickle)):
        (tmp_path / name).write_bytes(OTHER_FILES[kind])
        with pytest.raises(UserError, match=f"{name} .*it is {kind}"):
            read(tmp_path / name)


def test_reported_pytorch_file_called_ckpt_is_recognised(tmp_path):
    weights = {"w": np.ones(2, "f4")}
    for legacy in (False, True):
        path = pth.write_state(tmp_path / "a.ckpt", weights, legacy)
        with pytest.raises(UserError, match="it is a PyTorch file .*src.pth2ckpt"):
            checkpoint.read(path)
