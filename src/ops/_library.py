"""Builds, caches and loads the shared object behind the CPU operators."""

import contextlib
import ctypes
import glob
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile

from model_utils import cache, interrupts

_SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
_BUILD_SECONDS = 300

_loaded = None  # (ctypes library, its path)


class Unavailable(Exception):
    """Why the operators cannot be used here; expected on such a machine, not a fault."""


class Broken(Exception):
    """Why the operators failed although everything they need is there."""


def path():
    """File name of the loaded shared object."""
    return _loaded[1]


def handle():
    """The loaded shared object."""
    return _loaded[0]


def threads():
    """Threads to use: DA_CPU_THREADS, else OMP_NUM_THREADS, else this process's share of the cores."""
    for name in ("DA_CPU_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").split(",")[0].strip()
        if value.isdigit() and int(value) > 0:
            return int(value)
    workers = os.environ.get("MS_WORKER_NUM", "1")
    workers = int(workers) if workers.isdigit() else 1
    return max(1, len(os.sched_getaffinity(0)) // max(1, workers))


def bundled_onednn():
    """The oneDNN library that MindSpore has loaded into this process."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            name = line.split(maxsplit=5)[-1].strip()
            if os.path.basename(name).startswith("libdnnl.so"):
                return name
    raise Unavailable("MindSpore has loaded no oneDNN library (libdnnl.so)")


def _check_onednn(name):
    """csrc/dnnl_abi.h is the interface of oneDNN 3; MindSpore 2.7 ships oneDNN 2."""
    version = ctypes.CDLL(name).dnnl_version
    version.restype = ctypes.POINTER(ctypes.c_int)  # dnnl_version_t begins with major, minor, patch
    numbers = version()[:3]
    if numbers[0] != 3:
        raise Unavailable(f"MindSpore ships oneDNN {'.'.join(map(str, numbers))}, not 3")


def cpu_flags():
    """Instruction sets of this processor, as the kernel names them."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
        for line in info:
            if line.startswith("flags"):
                return sorted(line.split(":", 1)[1].split())
    return []


def _compiler():
    found = shutil.which("g++")
    if not found:
        raise Unavailable("no C++ compiler (g++) was found")
    return found


def _key(compiler, mindspore_version):
    """Changes with everything that the shared object depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)
    digest = hashlib.sha256()
    for item in (version.stdout, mindspore_version, platform.machine(), *cpu_flags(), *_FLAGS):
        digest.update(item.encode() + b"\0")
    for name in sorted(glob.glob(os.path.join(_SOURCES, "*"))):
        with open(name, "rb") as file:
            digest.update(os.path.basename(name).encode() + b"\0" + file.read() + b"\0")
    return digest.hexdigest()[:32]


def _intact(name):
    """Whether the file ends in the SHA-256 of the rest. Loading a damaged one could kill the process."""
    try:
        with open(name, "rb") as file:
            content = file.read()
    except OSError:
        return False
    return len(content) > 32 and hashlib.sha256(content[:-32]).digest() == content[-32:]


def _build(compiler, target):
    """Compile into a temporary file beside `target` and rename: two processes at once do no harm."""
    sources = sorted(glob.glob(os.path.join(_SOURCES, "*.cpp")))
    number, temporary = tempfile.mkstemp(suffix=".so", dir=os.path.dirname(target))
    os.close(number)
    try:
        with interrupts.raising():  # so that Ctrl-C ends the compiler, too
            run = subprocess.run(
                [compiler, *_FLAGS, *sources, "-o", temporary, "-ldl"],
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS,
                check=False,
            )
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "error" in line] or run.stderr.splitlines()
            raise Broken(f"{compiler} failed: {errors[0] if errors else 'no message'}")
        with open(temporary, "rb") as file:
            content = file.read()
        with open(temporary, "ab") as file:
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except subprocess.TimeoutExpired:
        raise Broken(f"{compiler} took more than {_BUILD_SECONDS} seconds") from None
    except OSError as error:
        raise Broken(f"could not build in {os.path.dirname(target)}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _shared_object(mindspore_version):
    """(path, where it came from); builds unless an intact copy is cached."""
    compiler = _compiler()
    folder, how = cache.folder(), "built"
    if folder is None:
        folder, how = tempfile.mkdtemp(prefix=cache.PROJECT + "-"), "built in a temporary folder"
    target = os.path.join(folder, f"operators-{_key(compiler, mindspore_version)}.so")
    if _intact(target):
        return target, "from the cache"
    _build(compiler, target)
    return target, how


def load():
    """Build or fetch the shared object, load it and connect it to MindSpore's oneDNN; returns a description.

    Raises:
        Unavailable: this machine lacks what is needed.
        Broken: building or loading failed.
    """
    global _loaded
    import mindspore

    if platform.machine() not in ("x86_64", "AMD64"):
        raise Unavailable(f"it is made for x86-64, not {platform.machine()}")
    if "avx2" not in cpu_flags():
        raise Unavailable("the processor has no AVX2")
    onednn = bundled_onednn()
    _check_onednn(onednn)
    name, how = _shared_object(mindspore.__version__)
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise Broken(f"could not load {name}: {error}") from error
    finally:
        if how == "built in a temporary folder":
            _remove_at_exit(os.path.dirname(name))
    library.da_start.restype = ctypes.c_char_p
    library.da_converted_size.restype = ctypes.c_int64
    reason = library.da_start(os.fsencode(onednn), threads()).decode()
    if reason:
        raise Unavailable(reason)
    _self_check(library)
    _loaded = (library, name)
    width = "AVX-512" if library.da_block() == 16 else "AVX2"
    return f"{width}, {threads()} thread{'s' if threads() > 1 else ''}, {how}"


def _self_check(library):
    """One small convolution against its definition; raises Broken when they differ."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape, np.float32) for shape in ((2, 3, 6, 5), (4, 3, 3, 2), (4,)))
    geometry = np.array((1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1), np.int64)
    y = np.zeros((2, 4, 4, 4), np.float32)
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 2), (2, 3))
    expected = np.einsum("nchwij,ocij->nohw", patches, w) + b[:, None, None]
    arrays = (x, w, b, geometry, y)
    data = (ctypes.c_void_p * 5)(*(array.ctypes.data for array in arrays))
    dims = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    shapes = (ctypes.c_void_p * 5)(*(ctypes.addressof(shape) for shape in dims))
    failed = library.conv_forward(5, data, None, shapes, None, None, None)
    if failed or np.abs(y - expected).max() > 1e-5 * np.abs(expected).max():
        raise Broken("a convolution made to check the operators gave a wrong result")


def _remove_at_exit(folder):
    """MindSpore opens the file by name, again and again, so it stays as long as the process."""
    import atexit

    owner = os.getpid()

    def remove():
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    interrupts.unfinished_for_good(folder)
