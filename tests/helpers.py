"""What several test files share: tiny configurations, a driver of train cells, commands as subprocesses."""

import atexit
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
import yaml

from model_utils.errors import UserError
from src.setup import settings as experiment

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny"

# Of hypothesis, for tests that take milliseconds: always the same examples.
quick = hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def fails(call, *parts):
    """`call` raises a UserError of one line with all `parts` in it; returns the line."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message


# The real commands on the data inside the dependencies, a handful of steps.
DEMO = {
    "device_target": "CPU",
    "source_dataset_name": "demo_digits",
    "target_dataset_name": "demo_photos",
    "validation_size": 20,
    "batch_size": 8,
    "steps_per_epoch": 3,
    "n_pretrain_epochs": 1,
    "n_epoch": 2,
    "log_interval": 1,
}

# Compiling a training step takes seconds, a tiny step in PyNative mode milliseconds. tests/test_contract.py
# and tests/test_matrix.py show that both compute the same, so a test asks for mode="graph" only where
# compilation is what it is about.
UNCOMPILED = {"mode": "pynative"}


def options(**keys):
    """{'lr': 1} -> ['--lr=1'], what a command line holds."""
    return [f"--{name}={str(value).lower() if value is True else value}" for name, value in keys.items()]


def tiny_config(method, **changes):
    """The configuration of tests/tiny/<method>.yaml, with changes; in PyNative mode (UNCOMPILED)."""
    path = TINY / f"{method}.yaml"
    assert path.is_file(), (
        f"method {method} has no {path.relative_to(ROOT)}: add one, as tests/tiny/dann.yaml"
    )
    return experiment.load([f"--config={path}", *options(**{**tiny_data(method), **UNCOMPILED, **changes})])


@functools.cache
def tiny_data(method):
    """The keys that name the method's data, {} if it needs none; made once per test process.

    tests/tiny/<method>.py, where there is one, writes them: make(folder) -> {key: value}.
    """
    return make_data(method) if (TINY / f"{method}.py").is_file() else {}


def make_data(method, *arguments, **keys):
    """What tests/tiny/<method>.py makes in a new folder, which goes away with the process."""
    spec = importlib.util.spec_from_file_location(f"tiny_{method}", TINY / f"{method}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{method}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return module.make(folder, *arguments, **keys)


def tiny_phases(method):
    """{phase: beginnings of the checkpoint names it trains} of tests/tiny/<method>.phases.yaml."""
    return yaml.safe_load((TINY / f"{method}.phases.yaml").read_text(encoding="utf-8"))


def demo_config(**changes):
    """DANN's configuration on the demo data, with changes; in PyNative mode (UNCOMPILED)."""
    return experiment.load(options(**{**DEMO, **UNCOMPILED, **changes}))


def open_task(settings, place, classes=None):
    """The data of a configuration by role, as train.py opens them."""
    from src.data import tasks
    from src.train_cells import find_method

    method = find_method(settings.method)
    classes = classes or method.known_classes(settings)
    return tasks.open_task(settings, place, classes, method.LEAST_SOURCES)


def build(settings, place, seed=None):
    """A new train cell, as in a new process. `seed` overrides that of the initial weights, and only that."""
    import mindspore as ms

    from src.train_cells import find_method

    task = open_task(settings, place)
    ms.set_seed(settings.seed if seed is None else seed)
    return find_method(settings.method)(settings, place, task)


def build_network(settings, place):
    """The untrained network of a configuration, with the classes of its data, as eval.py builds it."""
    from src import networks

    return networks.build(settings, len(open_task(settings, place).classes))


def test_sets(settings, place):
    """{domain: test loader} of a configuration, prepared for its network."""
    from src import networks

    return open_task(settings, place).test(networks.preparation(settings))


test_sets.__test__ = False  # a helper, not a test case


def graphs():
    """The graphs that MindSpore has compiled in this process."""
    try:
        from mindspore.graph.api import ms_compile_cache
    except ImportError:  # before MindSpore 2.9
        from mindspore.common.api import ms_compile_cache
    return ms_compile_cache


def train(cell, first=0, last=None):
    """Drive steps `first` to `last` (all phases counted through) as the loop does.

    Returns [(phase's name, {scalar: float})], one for each step.
    """
    logged, begin = [], 0
    cell.ready()
    last = sum(phase.steps for phase in cell.phases) if last is None else last
    for phase in cell.phases:
        steps = range(max(0, first - begin), min(phase.steps, last - begin))
        for step in steps:
            phase.step = step
            if step == steps.start:
                cell.start_phase(phase)
            values = cell.train_step(phase, phase.batch(step))
            logged.append((phase.name, {name: float(value) for name, value in values.items()}))
        begin += phase.steps
    return logged


def values(cell):
    """{name: copied numpy array} of everything a training checkpoint of `cell` holds."""
    from model_utils.checkpoint import named_parameters

    return {name: p.asnumpy().copy() for name, p in named_parameters(cell.state()).items()}


def environment(**changes):
    """This process's environment without what would change what a command prints."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GLOG_v", "PYTHONPATH")}
    return {**kept, **changes}


def command(program, *arguments, cwd=ROOT, timeout=120, prefix=(), fresh=False, **keys):
    """Run train.py, eval.py or export.py to its end; stdout and stderr are text.

    fresh: in a new Python, as a user starts it; else in a fork of one that has imported MindSpore already.
    """
    words = [str(ROOT / program), *map(str, arguments), *options(**keys)]
    if not (fresh or prefix):
        return forked(words, cwd, timeout)
    return subprocess.run(
        [*prefix, sys.executable, *words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def forked(words, cwd=ROOT, timeout=120, **changes):
    """Run Python with these words (a program and its arguments, or -m and a module) to its end.

    See tests/command_server.py. changes: of the environment.
    """
    return _server().run(words, cwd, environment(**changes), timeout)


@functools.cache
def _server():
    from tests import command_server

    return command_server.Server()


def succeeded(done):
    """`done` ended well and said nothing on standard error; returns its standard output."""
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    return done.stdout


def refused(done, *parts):
    """`done` ended with status 2 and one line on standard error that holds `parts`."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr + done.stdout
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert str(part) in lines[0]
    return lines[0]


def stop_after(line, number, *arguments, **keys):
    """Start train.py, send signal `number` when standard output shows `line`; (status, stdout, stderr)."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, *options(**keys)],
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.alarm(120)  # a run that never prints the line must not hang the tests
    try:
        shown = []
        for text in process.stdout:
            shown.append(text)
            if line in text:
                process.send_signal(number)
                break
        rest, errors = process.communicate(timeout=60)
        return process.returncode, "".join(shown) + rest, errors
    finally:
        signal.alarm(0)
        if process.poll() is None:
            process.kill()
            process.wait()


def same_at_every_call(function, draw):
    """A compiled gradient gives the same bits at each of 12 calls, for 8 inputs `draw(generator)`.

    MindSpore tries out numbers of threads from the fifth call on; a resumed run begins to count anew.
    """
    import mindspore as ms
    import numpy as np

    gradient = ms.jit(ms.value_and_grad(function))
    for seed in range(8):
        given = ms.Tensor(draw(np.random.default_rng(seed)).astype(np.float32))
        found = [(value.asnumpy(), slope.asnumpy()) for value, slope in (gradient(given) for _ in range(12))]
        assert all(
            np.array_equal(one, other) for pair in found for one, other in zip(pair, found[0], strict=True)
        )
