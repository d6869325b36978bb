"""train.py, eval.py and export.py as a user runs them, in processes of their own, on the demo data."""

import fcntl
import json
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from helpers import DEMO, ROOT, UNCOMPILED, command, environment, options, refused, stop_after, succeeded

from model_utils import checkpoint
from model_utils.run_log import read_metrics

pytestmark = pytest.mark.slow

LINE = (
    r"epoch: \d+, \[iter: \d+ / all \d+\],  err_D_domain: \d+\.\d+, err_G_domain: \d+\.\d+,err_sum:\d+\.\d+"
)
LAST = "step-00000009.ckpt"  # 3 steps of pre-training, 6 of adaptation
RESULT_KEYS = {
    "experiment",
    "method",
    "seed",
    "network",
    "images",
    "left_out",
    "device",
    "processes",
    "steps",
    "seconds",
    "samples_per_second",
    "peak_memory_mb",
    "accuracy",
    "oracle_accuracy",
    "selection",
    "command",
    "machine",
    "versions",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, with everything a run can write, in a folder whose name is not plain."""
    folder = tmp_path_factory.mktemp("a rün")
    keys = {**DEMO, "output_dir": folder, "plot_features": True, "keep_checkpoint_max": 9}
    shown = succeeded(command("train.py", **keys, save_checkpoint_steps=2, fresh=True))
    return folder, shown


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run's checkpoints, to be damaged."""
    shutil.copytree(run[0] / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def result_shape(path, keys):
    result = json.loads(path.read_text())
    assert set(result) == keys
    assert set(result["accuracy"]) == {"source", "target"}
    assert all(0 <= value <= 1 for value in result["accuracy"].values())
    assert (result["method"], result["network"], result["device"]) == ("dann", "dann", "CPU")
    assert (result["seed"], result["left_out"]) == (0, {}) and min(result["images"].values()) > 0
    return result


# Training


def test_training_writes_every_file_it_promises(run):
    folder, _ = run
    names = {path.name for path in folder.iterdir()}
    pictures = {"hyper_parameters.png", "accuracies.png", "losses.png", "features.png", "selection.png"}
    published = {"best_backbone_t.ckpt", "best_class_classifier.ckpt", "network.ckpt"}
    files = {"config.yaml", "train.log", "metrics.jsonl", "result.json", "events", "checkpoints", ".lock"}
    files |= {"predictions.npz"}
    assert names == pictures | published | files
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and (folder / name).stat().st_size > 5000
    steps = [2, 4, 6, 8, 9]
    assert [p.name for p in checkpoint.listed(folder)] == [f"step-{s:08d}.ckpt" for s in reversed(steps)]
    result = result_shape(folder / "result.json", RESULT_KEYS)
    assert result["steps"] == 9 and result["samples_per_second"] > 0 and result["seconds"] > 0
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["output_dir"] == str(folder) and written["batch_size"] == DEMO["batch_size"]


def test_what_is_shown_is_logged_and_can_be_grepped(run):
    folder, shown = run
    logged = (folder / "train.log").read_text()
    assert len(re.findall(LINE, shown)) == len(re.findall(LINE, logged)) == 6
    accuracy = json.loads((folder / "result.json").read_text())["accuracy"]
    for domain, value in accuracy.items():
        assert f"{domain} domain accuracy: {value:.4f}" in shown
        assert f"{domain} domain accuracy: {value:.4f}" in logged
    assert "\x1b" not in shown + logged and "\r" not in shown + logged


def test_metrics_hold_every_logged_step_and_events_the_same(run):
    folder, _ = run
    rows = read_metrics(folder / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 10))
    assert {"loss", "class_loss", "domain_loss", "class_accuracy", "domain_accuracy", "lr", "lambda"} <= set(
        train[-1]
    )
    validation = [row for row in rows if row["kind"] == "validation"]
    assert {"class_loss", "class_accuracy", "domain_loss", "domain_accuracy"} <= set(validation[-1])
    events = read_events(folder / "events")
    for row in rows:
        for name, value in row.items():
            if name not in ("kind", "step", "steps", "phase", "seconds"):
                assert events[f"{row['kind']}/{name}", row["step"]] == np.float32(value)


def read_events(folder):
    """{(tag, step): value} of all event files, read with TensorBoard's record format by hand."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            length = int.from_bytes(content[place : place + 8], "little")
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
            place += 16 + length
    return found


def test_pynative_mode_trains(tmp_path):
    keys = {**DEMO, "n_pretrain_epochs": 0, "n_epoch": 1, "steps_per_epoch": 1, "tensorboard": "false"}
    shown = succeeded(command("train.py", **keys, mode="pynative", output_dir=tmp_path / "run"))
    assert len(re.findall(LINE, shown)) == 1


@pytest.mark.parametrize(
    "number, statuses",
    [(signal.SIGTERM, {143}), pytest.param(signal.SIGINT, {130}, marks=pytest.mark.thorough)],
)
def test_stopped_by_a_signal_and_resumed_ends_bit_identical(run, tmp_path, number, statuses):
    whole, _ = run
    folder = tmp_path / "run"
    phase_line = (
        "pretrain epoch: 0, [iter: 2" if number == signal.SIGTERM else "epoch: 0, [iter: 2 / all 3],  err_D"
    )
    keys = {**DEMO, "output_dir": folder, "keep_checkpoint_max": 9}
    code, shown, errors = stop_after(phase_line, number, **keys)
    assert code in statuses and errors == "", shown
    assert "continue with --resume true" in shown
    stopped = checkpoint.newest(folder)[2]["step"]
    assert 0 < stopped < 9
    succeeded(command("train.py", **keys, resume=True))
    wanted, _ = checkpoint.read(whole / "checkpoints" / LAST)
    ended, _ = checkpoint.read(folder / "checkpoints" / LAST)
    assert ended.keys() == wanted.keys()
    assert [name for name in wanted if not np.array_equal(wanted[name], ended[name])] == []
    assert losses(folder) == losses(whole)
    same = [json.loads((f / "result.json").read_text())["accuracy"] for f in (whole, folder)]
    assert same[0] == same[1]


def losses(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]


def test_diverging_run_stops_with_phase_step_and_last_good_checkpoint(tmp_path):
    keys = {**DEMO, **UNCOMPILED, "output_dir": tmp_path, "save_checkpoint_steps": 1}
    keys |= {"lr": 1e30, "lr_schedule": "constant"}
    line = refused(command("train.py", **keys), "in phase pretrain, step ", " of 3", "lower learning rate")
    assert "last good checkpoint" in line or "there is no good checkpoint" in line


# Evaluation and export


def test_eval_repeats_the_run_s_accuracies_and_writes_the_same_shape(run, tmp_path):
    folder, _ = run
    trained = json.loads((folder / "result.json").read_text())
    file = tmp_path / "new folder" / "eval.json"
    # From another folder: nothing may depend on where the command is run.
    keys = {"ckpt_path": folder, "result": file, "device_target": "CPU"}
    shown = succeeded(command("eval.py", cwd=tmp_path, fresh=True, **keys))
    # The rules of selection look on while a run trains; an evaluation has none.
    evaluated = result_shape(file, RESULT_KEYS - {"selection"})
    assert evaluated["accuracy"] == trained["accuracy"]
    assert evaluated["steps"] == 0
    for domain, value in trained["accuracy"].items():
        assert f"{domain} domain accuracy: {value:.4f}" in shown
    assert LAST in shown


def test_eval_of_the_published_files_gives_the_same_accuracies(run, tmp_path):
    folder, _ = run
    keys = {
        "backbone_ckpt_file": "best_backbone_t.ckpt",
        "classifier_ckpt_file": "best_class_classifier.ckpt",
    }
    keys = {name: folder / value for name, value in keys.items()}
    written = folder / "config.yaml"
    succeeded(command("eval.py", config=written, result=tmp_path / "a.json", **keys))
    trained = json.loads((folder / "result.json").read_text())
    assert json.loads((tmp_path / "a.json").read_text())["accuracy"] == trained["accuracy"]


@pytest.mark.parametrize("file_format, ending", [("MINDIR", ".mindir"), ("ONNX", ".onnx")])
def test_export_writes_a_file_and_prints_the_difference(run, tmp_path, file_format, ending):
    folder, _ = run
    name = tmp_path / "with späce" / "net"
    keys = {"ckpt_file": folder, "file_format": file_format, "file_name": name}
    shown = succeeded(command("export.py", fresh=True, **keys))
    assert float(re.search(r"maximal logits difference (\S+)", shown)[1]) <= 1e-4
    beside = {".mindir": ["net.mindir.json"]}.get(ending, [])  # the format has no place for class names
    assert sorted(path.name for path in name.parent.iterdir()) == [f"net{ending}", *beside]


def test_exported_onnx_classifies_as_eval_does(run, tmp_path):
    import onnxruntime

    from src.data import load
    from src.data.loaders import Arrays, ArrayTestLoader
    from src.data.preparation import Preparation

    folder, _ = run
    path = tmp_path / "net.onnx"
    keys = {"file_format": "onnx", "file_name": path, "batch_size": 50}
    succeeded(command("export.py", ckpt_file=folder / "network.ckpt", **keys))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [50, 3, 28, 28]
    hits = count = 0
    split = load("demo_digits", "", "test")
    for images, labels in ArrayTestLoader(Arrays([split], Preparation(28)), split.labels, 50):
        filled = np.resize(images, (50, 3, 28, 28))
        logits = session.run(None, {"images": filled})[0][: len(labels)]
        hits, count = hits + (logits.argmax(1) == labels).sum(), count + len(labels)
    trained = json.loads((folder / "result.json").read_text())
    assert hits / count == pytest.approx(trained["accuracy"]["source"], abs=1.5 / count)


# Refused


def test_training_into_an_existing_run_is_refused_and_nothing_is_lost(run):
    folder, _ = run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused(command("train.py", **DEMO, output_dir=folder), "already holds a run", "--resume true")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    with open(tmp_path / ".lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        refused(command("train.py", **DEMO, output_dir=tmp_path), "another run is writing")


BAD_TRAINING = [
    (["--batch_sise=9"], ["unknown key batch_sise", "batch_size"]),
    (["--batch_size=0"], ["batch_size", ">= 1"]),
    (["--lr=-1"], ["lr", "> 0"]),
    (["--lr=abc"], ["lr", "a number"]),
    (["--batch_size=100000"], ["batch_size", "smaller"]),
    (["--batch_size=1"], ["batch_size", "at least 2"]),
    (["--n_epoch=0", "--n_pretrain_epochs=0"], ["nothing to train"]),
    (["--output_dir="], ["output_dir", "outputs/mine"]),
    ([f"--output_dir={ROOT}"], ["output_dir", "outputs/mine"]),
    (["--device_target=Ascend"], ["device_target", "Ascend", "--device_target CPU"]),
    (["--device_target=GPU"], ["device_target", "GPU", "--device_target CPU"]),
    (["--source_dataset_name=mnist", "--source_image_root=/nowhere"], ["/nowhere"]),
    (["--target_dataset_name=mnist_m", "--target_image_root=/nowhere"], ["/nowhere"]),
    (["--source_dataset_name=mnits"], ["mnits", "mnist"]),
    (["--resume=true"], ["resume", "no checkpoint"]),
    (["--output_dir=/proc/nothing"], ["output_dir", "/proc/nothing"]),
    (["--output_dir={file}"], ["output_dir", "is a file"]),
    (["--config=missing.yaml"], ["missing.yaml"]),
    (["batch_size=3"], ["unexpected argument"]),
]


@pytest.mark.parametrize("arguments, parts", BAD_TRAINING, ids=[" ".join(a) for a, _ in BAD_TRAINING])
def test_bad_input_to_training_is_one_line(tmp_path, arguments, parts):
    present = [target for target in ("Ascend", "GPU") if f"--device_target={target}" in arguments]
    if any(has_device(target) for target in present):
        pytest.skip(f"this machine has a device {present[0]}")
    (tmp_path / "file").write_text("mine")
    given = options(**DEMO, output_dir=tmp_path / "run")
    done = command("train.py", *given, *[a.format(file=tmp_path / "file") for a in arguments])
    refused(done, *parts)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "run" / "checkpoints").exists()


def has_device(target):
    from model_utils.device import _has_driver

    return _has_driver(target)


def test_bad_checkpoints_are_one_line(copy, tmp_path):
    good = (copy / "checkpoints" / LAST).read_bytes()
    files = {"cut": good[: len(good) // 2], "empty": b"", "text": b"not a checkpoint\n" * 20}
    for name, content in files.items():
        (tmp_path / f"{name}.ckpt").write_bytes(content)
    for name in (*files, "missing"):
        refused(command("eval.py", ckpt_path=tmp_path / f"{name}.ckpt"), f"{name}.ckpt")
    refused(command("export.py", ckpt_file=tmp_path / "cut.ckpt"), "cut.ckpt", "damaged")
    refused(command("eval.py", ckpt_path=tmp_path), "no training checkpoint", "there is none")
    refused(command("eval.py"), "--ckpt_path")


def test_checkpoint_of_another_network_is_refused(run, tmp_path):
    half = run[0] / "best_backbone_t.ckpt"
    refused(
        command("eval.py", ckpt_path=half),
        "best_backbone_t.ckpt",
        "does not fit",
        "missing: class_classifier",
    )
    refused(command("eval.py", backbone_ckpt_file=half), "classifier_ckpt_file")


def test_air_without_ascend_and_unwritable_exports_are_one_line(run, tmp_path):
    if has_device("Ascend"):
        pytest.skip("this machine has an Ascend device")
    folder, _ = run
    refused(
        command("export.py", ckpt_file=folder, file_format="AIR", file_name=tmp_path / "a"),
        "AIR",
        "MINDIR or ONNX",
    )
    (tmp_path / "file").write_text("mine")
    refused(command("export.py", ckpt_file=folder, file_name=tmp_path / "file" / "net"), "--file_name")
    refused(command("eval.py", ckpt_path=folder, result=tmp_path / "file" / "a.json"), "a.json")
    refused(command("export.py", ckpt_file=folder, file_format="PTH"), "file_format", "MINDIR | ONNX | AIR")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_damaged_latest_checkpoint_is_passed_over_with_a_warning(copy):
    latest = copy / "checkpoints" / LAST
    latest.write_bytes(latest.read_bytes()[:-1000])
    done = command("eval.py", ckpt_path=copy)
    assert done.returncode == 0, done.stderr
    assert "step-00000008.ckpt" in done.stdout
    assert LAST in done.stdout + done.stderr


# A full disk


def test_file_size_limit_ends_in_one_line_and_keeps_the_checkpoint_before(copy):
    """A limit on file sizes stands for a full disk on machines where none can be made."""
    (copy / "checkpoints" / LAST).unlink()
    keys = {**DEMO, "output_dir": copy, "resume": True, "tensorboard": "false", "save_checkpoint_steps": 1}
    limit = 200_000
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *options(**keys)],
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    refused(done, "could not be written", "--resume true")
    assert checkpoint.newest(copy)[2]["step"] == 8
    assert [p.name for p in (copy / "checkpoints").iterdir() if p.name.startswith(".")] == []


def small_disk(size, folder, *arguments):
    """Run a command with a tmpfs of `size` on `folder`, in a mount namespace of its own that ends with it."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare on this machine")
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    script = f'mount -t tmpfs -o size={size} tmpfs "$1" && shift && exec "$@"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(folder), sys.executable, *map(str, arguments)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("size", ["8k", pytest.param("5m", marks=pytest.mark.thorough)])
def test_training_onto_a_full_disk_ends_in_one_line(tmp_path, size):
    keys = {**DEMO, **UNCOMPILED, "output_dir": tmp_path / "run", "save_checkpoint_steps": 4}
    done = small_disk(size, tmp_path, "train.py", *options(**keys))
    refused(done, "could not be written", "make room")
    assert "warning: checkpoint" in done.stdout


def test_exporting_onto_a_full_disk_ends_in_one_line(run, tmp_path):
    done = small_disk("300k", tmp_path, "export.py", *options(ckpt_file=run[0], file_name=tmp_path / "net"))
    refused(done, "net.mindir")


# The terminal


def test_help_can_be_cut_off_by_its_reader():
    program = f'"{sys.executable}" "{ROOT / "train.py"}" --help | head -1'
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("usage: python train.py")
    assert done.stderr == "" and done.returncode == 0


@pytest.mark.parametrize("program", ["train.py", "eval.py", "export.py"])
def test_help_of_each_command_names_it_and_needs_no_mindspore(program):
    shown = succeeded(command(program, "--help"))
    assert shown.startswith(f"usage: python {program}")
    assert "--lr_backbone_s" in shown


def test_output_to_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: the disk is full")


def test_output_that_cannot_hold_every_letter_shows_escapes():
    prefix = ("env", "PYTHONIOENCODING=ascii")
    done = command("train.py", "--help", prefix=prefix)
    assert "\\u03bb" in succeeded(done) and "λ" not in done.stdout
    refused(command("train.py", "--config=λ.yaml", prefix=prefix), "\\u03bb.yaml")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(closed, tmp_path):
    # A file opened now must not become standard output: what is printed would be written into it.
    program = (
        "from model_utils import cli\n"
        "def main():\n"
        "    import os, sys\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        print('printed', flush=True); print('printed', file=sys.stderr, flush=True)\n"
        "        file.write('ours ' + str(file.fileno() > 2))\n"
        "cli.run(main)"
    )
    line = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable, program], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "ours True"


def test_log_file_holds_a_path_that_is_no_utf8(tmp_path):
    import logging

    from model_utils import run_log

    log = logging.getLogger("run")
    before = list(log.handlers), log.level, log.propagate
    try:
        run_log.setup(tmp_path, rank=1)
        log.info("results in %s", b"\xce\xbb".decode("ascii", "surrogateescape"))
        log.handlers[0].close()
    finally:
        log.handlers[:], log.level, log.propagate = before
    assert (tmp_path / "train.rank1.log").read_text(encoding="utf-8").endswith("results in λ\n")


def test_a_bug_keeps_its_traceback_and_status_1():
    program = "from model_utils import cli\ndef main():\n    raise KeyError('bug')\ncli.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "KeyError: 'bug'" in done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import numpy; numpy.empty(2**50)",
        "import mindspore; mindspore.ops.zeros((2**20, 2**20, 2**10), mindspore.float32).asnumpy()",
    ],
    ids=["numpy", "mindspore"],
)
def test_too_little_memory_is_one_line(statement):
    program = f"from model_utils import cli\ndef main():\n    {statement}\ncli.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(GLOG_v="4"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused(done, "not enough memory", "smaller batch_size")


def test_another_runtime_error_keeps_its_traceback():
    program = "from model_utils import cli\ndef main():\n    raise RuntimeError('bug')\ncli.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "RuntimeError: bug" in done.stderr


def test_ctrl_c_outside_of_training_is_one_line():
    program = "from model_utils import cli\ndef main():\n    raise KeyboardInterrupt\ncli.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_mindspores_warnings_are_hidden_and_its_errors_are_not():
    program = (
        "from model_utils import cli\n"
        "def main():\n"
        "    import mindspore.log as log\n"
        "    log.warning('a warning')\n    log.error('an error')\n"
        "cli.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "a warning" not in done.stderr and "an error" in done.stderr
