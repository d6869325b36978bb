"""Building and loading the library of CPU operators, and doing without it, mostly in other processes."""

import os
import shutil
import subprocess
import sys

import mindspore as ms
import pytest
from test_ops import ROOT

from model_utils import cache
from src.ops import _library

# What depends on the environment runs in a process of its own.

PROBE = """
import logging, mindspore as ms, numpy as np
from mindspore import nn
from src import ops
logging.basicConfig(level=logging.WARNING)
print(ops.prepare())
conv = nn.Conv2d(3, 4, 3)
print("accelerated", ops.accelerate(conv))
print("shape", conv(ms.Tensor(np.ones((1, 3, 8, 8), np.float32))).shape)
import os
print("isa", os.environ.get("ONEDNN_MAX_CPU_ISA"))
"""


def probe(tmp_path, code=PROBE, **environment):
    script = tmp_path / "probe.py"
    script.write_text(code)
    kept = {k: v for k, v in os.environ.items() if k not in ("ONEDNN_MAX_CPU_ISA", "DA_CPU_OPS")}
    env = {**kept, "PYTHONPATH": ROOT, "GLOG_v": "3", **environment}
    run = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


def limited():
    return "AVX2" if "avx512f" in _library.cpu_flags() else "None"


def suitable():
    """Whether only the compiler decides: an x86-64 processor with AVX2, and a MindSpore with oneDNN 3."""
    bundled = os.path.join(os.path.dirname(ms.__file__), "lib", "libdnnl.so.3")
    machine = _library.platform.machine() == "x86_64" and "avx2" in _library.cpu_flags()
    return machine and os.path.exists(bundled)


def test_no_compiler(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    out, err = probe(tmp_path, PATH=str(empty))
    if suitable():
        assert "plain MindSpore, because no C++ compiler (g++) was found" in out
    assert "accelerated 0" in out and "shape (1, 4, 8, 8)" in out and f"isa {limited()}" in out


def test_switched_off(tmp_path):
    out, _ = probe(tmp_path, DA_CPU_OPS="0", ONEDNN_MAX_CPU_ISA="SSE41")
    assert "plain MindSpore, because DA_CPU_OPS=0" in out and "accelerated 0" in out
    assert "isa SSE41" in out  # the user's own choice


def test_compiler_that_fails(tmp_path):
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "g++").write_text("#!/bin/sh\necho 'fatal error: no luck' >&2\nexit 1\n")
    (broken / "g++").chmod(0o755)
    out, err = probe(tmp_path, PATH=f"{broken}:{os.environ['PATH']}", XDG_CACHE_HOME=str(tmp_path / "cache"))
    if suitable():
        assert "no luck" in out and "could not be used" in err
        assert not list((tmp_path / "cache").rglob("*.so"))
    assert "accelerated 0" in out and "shape (1, 4, 8, 8)" in out


def test_wrong_results_are_noticed(operators):
    class Wrong:
        def conv_forward(self, *_):
            return 0  # and the output stays zero

    _library._self_check(_library.handle())
    with pytest.raises(_library.Broken, match="wrong result"):
        _library._self_check(Wrong())


def test_first_layer_computes_no_data_gradient(operators, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {ROOT!r})
import mindspore as ms, numpy as np
from mindspore import nn
from src import ops
ops.prepare()
network = nn.SequentialCell(nn.Conv2d(3, 4, 3, has_bias=True), nn.Conv2d(4, 5, 3), nn.ReLU())
ops.accelerate(network)
class Loss(nn.Cell):
    def __init__(self):
        super().__init__()
        self.network = network
    def construct(self, x):
        return self.network(x).sum()
gradient = ms.value_and_grad(Loss(), None, network.trainable_params())
@ms.jit
def step(x):
    return gradient(x)
step(ms.Tensor(np.ones((2, 3, 8, 8), np.float32)))[0].asnumpy()
"""
    out, _ = probe(tmp_path, code, ONEDNN_VERBOSE="1")
    calls = [line for line in out.splitlines() if "convolution" in line and ",exec," in line]
    assert sum("backward_data" in line for line in calls) == 1  # the second layer's
    assert sum("backward_weights" in line for line in calls) == 2


# Building and caching, without MindSpore.


@pytest.fixture
def compiler():
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler (g++)")


@pytest.mark.thorough
def test_cache(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, how = _library._shared_object("1.0")
    assert how == "built" and name.startswith(str(tmp_path))
    assert _library._shared_object("1.0") == (name, "from the cache")
    whole = open(name, "rb").read()
    for damaged in (b"", whole[:5000] + b"?" + whole[5001:], whole[: len(whole) // 2]):
        with open(name, "wb") as file:
            file.write(damaged)
        assert not _library._intact(name)
    assert _library._shared_object("1.0") == (name, "built")
    assert _library._intact(name)
    assert _library._key(shutil.which("g++"), "1.0") != _library._key(shutil.which("g++"), "1.1")
    assert os.listdir(os.path.dirname(name)) == [os.path.basename(name)]  # nothing left behind


def test_cache_folder_must_be_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache.folder()
    assert os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o777)  # anybody could have put a library there
    assert cache.folder() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.folder() is None


@pytest.mark.thorough
def test_unwritable_cache_builds_in_a_temporary_folder(operators, compiler, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    out, _ = probe(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path / "tmp"))
    assert "built in a temporary folder" in out and "accelerated 1" in out
    assert not list((tmp_path / "tmp").glob("*.so")) and not list(
        (tmp_path / "tmp").glob(cache.PROJECT + "*")
    )


@pytest.mark.thorough
def test_two_processes_build_at_once(compiler, tmp_path):
    code = (
        "from src.ops import _library\n"
        "name, _ = _library._shared_object('2')\n"
        "assert _library._intact(name)\n"
        "print(name)"
    )
    env = {**os.environ, "PYTHONPATH": ROOT, "XDG_CACHE_HOME": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and outs[0] == outs[1] and outs[0].strip()


def test_threads(monkeypatch):
    for name in ("DA_CPU_THREADS", "OMP_NUM_THREADS", "MS_WORKER_NUM"):
        monkeypatch.delenv(name, raising=False)
    cores = len(os.sched_getaffinity(0))
    assert _library.threads() == cores
    monkeypatch.setenv("MS_WORKER_NUM", str(cores))
    assert _library.threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _library.threads() == 5
    monkeypatch.setenv("DA_CPU_THREADS", "3")
    assert _library.threads() == 3


def test_constants_are_those_of_the_headers(compiler, tmp_path):
    """Where oneDNN's own headers are installed: our copy of its interface against them."""
    places = (os.environ.get("DNNL_INCLUDE", ""), os.path.join(sys.prefix, "include"), "/usr/include")
    include = next((p for p in places if p and os.path.exists(os.path.join(p, "oneapi/dnnl/dnnl.h"))), None)
    if include is None:
        pytest.skip("oneDNN's headers are not installed (package onednn-devel, or DNNL_INCLUDE)")
    pairs = {
        "kRuntimeThreadpool": "DNNL_RUNTIME_THREADPOOL", "kCpu": "dnnl_cpu", "kFloat32": "dnnl_f32",
        "kForwardTraining": "dnnl_forward_training", "kConvolutionDirect": "dnnl_convolution_direct",
        "kScratchpadUser": "dnnl_scratchpad_mode_user", "kStreamDefault": "dnnl_stream_default_flags",
        "kAny": "dnnl_format_tag_any", "kA": "dnnl_a", "kNchw": "dnnl_nchw", "kGoihw": "dnnl_goihw",
        "kNchw16c": "dnnl_nChw16c", "kNchw8c": "dnnl_nChw8c",
        "kQueryImplementation": "dnnl_query_impl_info_str", "kQuerySource": "dnnl_query_src_md",
        "kQueryDiffSource": "dnnl_query_diff_src_md", "kQueryWeights": "dnnl_query_weights_md",
        "kQueryDiffWeights": "dnnl_query_diff_weights_md", "kQueryDestination": "dnnl_query_dst_md",
        "kQueryDiffDestination": "dnnl_query_diff_dst_md", "kQueryScratchpad": "dnnl_query_scratchpad_md",
        "kArgSource": "DNNL_ARG_SRC", "kArgDestination": "DNNL_ARG_DST", "kArgWeights": "DNNL_ARG_WEIGHTS",
        "kArgBias": "DNNL_ARG_BIAS", "kArgScratchpad": "DNNL_ARG_SCRATCHPAD",
        "kArgDiffSource": "DNNL_ARG_DIFF_SRC", "kArgDiffDestination": "DNNL_ARG_DIFF_DST",
        "kArgDiffWeights": "DNNL_ARG_DIFF_WEIGHTS", "kArgDiffBias": "DNNL_ARG_DIFF_BIAS",
        "kIsaAvx512": "dnnl_cpu_isa_avx512_core",
    }  # fmt: skip
    checks = "\n".join(
        f'static_assert(int(da::{ours}) == int({theirs}), "");' for ours, theirs in pairs.items()
    )
    program = tmp_path / "check.cpp"
    program.write_text(
        '#include <oneapi/dnnl/dnnl.h>\n#include "dnnl_abi.h"\n'
        + checks
        + "\nstatic_assert(sizeof(da::Version) == sizeof(dnnl_version_t) && "
        'sizeof(da::Arg) == sizeof(dnnl_exec_arg_t), "");'
    )
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{include}", f"-I{_library._SOURCES}", str(program)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
