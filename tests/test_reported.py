"""What users of other projects reported, tried here: each kind of mistake with its right outcome.

Ports and addresses, paths, text from elsewhere, exceptions that nobody caught, messages that name the wrong
cause, Ctrl-C. Failing ranks are in tests/test_failing_rank.py, devices in tests/test_device.py.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pth_files as pth
import pytest

from model_utils import checkpoint, launch, meeting, paths, processes
from model_utils.errors import UserError
from model_utils.keys import COMMON
from src import networks
from src.data import files
from src.exported import inference, model_files
from src.networks import _hardnet_weights
from src.setup import settings as experiment
from src.train_cells import method_names
from tests import helpers
from tests.helpers import ROOT, environment, refused

LONG = "x" * 300
ENDINGS = ("_root", "_path", "_dir", "_file", "_url")


# B. Ports, addresses and folders of logs


@pytest.fixture
def taken():
    """A port that another program listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def train_on_two(*arguments, script="run_train_cpu.sh"):
    return subprocess.run(
        ["bash", f"scripts/{script}", "2", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_reported_port_in_use_is_named_before_anything_starts(tmp_path, taken):
    done = train_on_two("--master_port", taken, "--output_dir", tmp_path / "run")
    refused(done, f"master_port: {taken} on 127.0.0.1 is in use", "choose another --master_port")
    assert not (tmp_path / "run").exists()
    shown = train_on_two("--master_port", taken, "--output_dir", tmp_path / "run", "--dry_run")
    assert shown.returncode == 0 and f"--master_port={taken}" in shown.stdout


def test_reported_port_held_without_listening_is_in_use(tmp_path):
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=f"master_port: {port} .* is in use"):
            meeting.Meeting("127.0.0.1", port).check()
    meeting.Meeting("127.0.0.1", port).check()


def test_reported_port_taken_after_the_check_is_named_too(tmp_path, taken):
    job = launch.Job([], {}, ranks=range(2), meeting=meeting.Meeting("127.0.0.1", taken))
    watch = processes.Watch(subprocess.Popen(["true"]), job, tmp_path)
    watch.msrun.wait()
    (tmp_path / "scheduler.log").write_text("[ERROR] x.cc:133] Failed to init the tcp server.\n")
    watch.scheduler = watch.first_failed = processes.Worker(None, None, tmp_path / "scheduler.log")
    watch.scheduler.status = 2
    outcome = watch._outcome()
    assert outcome.status == 2 and f"master_port: {taken} is in use" in outcome.line


@pytest.mark.parametrize(
    "address, parts",
    [
        ("203.0.113.1", ["master_addr: 203.0.113.1 is no address of this machine"]),
        ("no-such-host.invalid", ["master_addr: no-such-host.invalid has no address"]),
        ("a" * 80, ["master_addr: aaa", "has no address"]),
        ("", ["master_addr needs a value"]),
    ],
)
def test_reported_address_that_is_not_this_machines(tmp_path, address, parts):
    refused(train_on_two(f"--master_addr={address}", "--output_dir", tmp_path / "run"), *parts)


def test_reported_address_of_the_first_host_is_only_looked_up_on_the_others():
    meeting.Meeting("203.0.113.1", 8118, here=False).check()


@pytest.mark.parametrize("kind", ["file", "below a file", "log is a folder", "long", "link to itself"])
def test_reported_log_folder_that_cannot_be_written(tmp_path, kind):
    folder = tmp_path / "logs"
    if kind == "file":
        folder.write_text("mine")
    elif kind == "below a file":
        (tmp_path / "file").write_text("mine")
        folder = tmp_path / "file" / "logs"
    elif kind == "log is a folder":
        (folder / "worker_1.log").mkdir(parents=True)
    elif kind == "long":
        folder = tmp_path / LONG
    else:
        folder.symlink_to(folder)
    done = train_on_two("--log_dir", folder, "--output_dir", tmp_path / "run")
    refused(done, *(["log_dir", "too long"] if kind == "long" else ["processes' logs", "--log_dir"]))


# E. Text and paths from elsewhere


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", sorted(name for name, key in COMMON.items() if key.path))
def test_reported_home_folder_in_yaml_and_on_the_command_line(home, tmp_path, name):
    (tmp_path / "a.yaml").write_text(f"{name}: ~/x\n")
    assert getattr(experiment.load([f"--config={tmp_path / 'a.yaml'}"]), name) == str(home / "x")
    assert getattr(experiment.load([f"--{name}=~/x"]), name) == str(home / "x")
    with pytest.raises(UserError, match=f"{name} .command line.*user who does not exist"):
        experiment.load([f"--{name}=~nobody-of-this-name/x"])
    assert getattr(experiment.load([f"--{name}=./~/x"]), name) == "./~/x"


def test_reported_every_common_key_that_names_a_path_says_so():
    assert [name for name, key in COMMON.items() if name.endswith(ENDINGS) and not key.path] == []


def test_reported_every_key_of_a_method_that_names_a_path_says_so():
    keys = {name: key for method in method_names() for name, key in experiment.schema(method).items()}
    assert [name for name, key in keys.items() if name.endswith(ENDINGS) and not key.path] == []
    may_move = [name for name in keys if name.endswith("_image_root") or name == "kfold_root"]
    assert [name for name in (*may_move, "cache", "num_parallel_workers") if not keys[name].volatile] == []


def test_reported_configuration_files_in_the_home_folder(home, monkeypatch):
    home.mkdir()
    (home / "mine.yaml").write_text("seed: 7\n", encoding="utf-8-sig")  # as Windows' editors write it
    assert experiment.load(["--config=~/mine.yaml"]).seed == 7


def test_reported_home_folder_in_the_launchers_options(home, tmp_path):
    script = launch._read_script(["--program=train.py", f"--caller={tmp_path}", "--form", "N=@processes"])[0]
    options = {"dataset_path": "~/data", "source_image_root": "~/s", "config": "~/a.yaml", "lr": "0.1"}
    home.mkdir()
    (home / "a.yaml").write_text("output_dir: ~/out\n")
    jobs, _ = launch.plan(script, {"@processes": "2"}, options, {})
    words = jobs[0].command
    for name, value in (("dataset_path", "data"), ("source_image_root", "s"), ("config", "a.yaml")):
        assert words[words.index(f"--{name}") + 1] == str(home / value)
    assert any(word.startswith(f"--log_dir={home}/out/processes/") for word in words)
    jobs, _ = launch.plan(script, {"@processes": "2"}, {}, {"log_dir": "~/logs"})
    assert f"--log_dir={home}/logs" in jobs[0].command


def test_reported_home_folder_in_the_other_programs(home):
    import create_mnistm
    import infer

    home.mkdir()
    (home / "a.jpg").touch()
    given = infer.arguments(["--model=~/m", "--class_names=~/n", "--config=~/c", "~/a.jpg"])
    assert [given.model, given.class_names, given.config] == [str(home / name) for name in "mnc"]
    assert files.find(given.images) == [str(home / "a.jpg")]
    given = infer.arguments(["--model=m", "--dataset_path=~/d", "--result_dir=~/r"])
    assert [given.dataset_path, given.result_dir] == [str(home / name) for name in "dr"]
    given = create_mnistm.parse(["--bst_path=~/b", "--mnist_dir=~/m", "--mnistm_dir=~/o"])
    assert [given.bst_path, given.mnist_dir, given.mnistm_dir] == [str(home / name) for name in "bmo"]
    pth.write_state(home / "a.pth", {"w": np.ones(2, "f4")})
    assert list(_hardnet_weights.read_state("~/a.pth")) == ["w"]
    with pytest.raises(UserError, match=f"model: {home}/none.onnx does not exist"):
        model_files.open_model("~/none.onnx")


def named(known, content, folder, count=None):
    path = folder / "names.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    model = model_files.Model(Path("net.onnx"), None, {"class_names": list(known)})
    return inference.class_names(model, len(known) if count is None else count, path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reported_byte_order_mark_in_a_list_of_names(tmp_path, encoding, end):
    keyed = end.join(["n2 Käfer", "n1 Ameise, klein", ""]).encode(encoding)
    assert named(("n1", "n2"), keyed, tmp_path) == ["Ameise, klein", "Käfer"]
    plain = end.join(["Ameise", "Käfer", ""]).encode(encoding)
    assert named(("n1", "n2"), plain, tmp_path) == ["Ameise", "Käfer"]


WORDS = "zero one two three four five six seven eight nine ten eleven".split()


@pytest.mark.parametrize("beginning", ["", "class", "img-"])
def test_reported_natural_order_of_names_beside_folders_with_numbers(tmp_path, beginning):
    folders = sorted(f"{beginning}{number}" for number in range(12))
    with pytest.raises(UserError, match=f"line 3 would name folder {beginning}10; write lines .folder name."):
        named(folders, "\n".join(WORDS), tmp_path)
    keyed = "\n".join(f"{beginning}{number} {word}" for number, word in enumerate(WORDS))
    assert named(folders, keyed, tmp_path)[folders.index(f"{beginning}4")] == "four"
    padded = [f"{beginning}{number:02d}" for number in range(12)]
    assert named(padded, "\n".join(WORDS), tmp_path) == WORDS
    few = [f"{beginning}{number}" for number in range(10)]
    assert named(few, "\n".join(WORDS[:10]), tmp_path) == WORDS[:10]


def test_reported_list_of_names_that_fits_only_in_part(tmp_path):
    with pytest.raises(UserError, match="has no name for n3"):
        named(("n1", "n2", "n3"), "n1 a\nn2 b\nn4 c\n", tmp_path)
    with pytest.raises(UserError, match="names n1 twice, a and c"):
        named(("n1", "n2"), "n1 a\nn2 b\nn1 c\n", tmp_path)


# H. Ctrl-C


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(folder of images, checkpoint of an untrained HarDNet for them, folder of photographs)."""
    from PIL import Image

    from src.data import demo_photos

    folder = tmp_path_factory.mktemp("ctrl-c")
    settings = helpers.tiny_config("hardnet")
    network = networks.build(settings, settings.num_classes)
    meta = {"format": checkpoint.FORMAT, "config": settings.as_dict()}
    checkpoint.save_cell(network, folder / "net.ckpt", meta)
    (folder / "photos" / "train").mkdir(parents=True)
    for index, photo in enumerate(demo_photos.photos("train")):
        Image.fromarray(photo).save(folder / "photos" / "train" / f"{index}.png")
    return settings.dataset_path, folder / "net.ckpt", folder / "photos"


def commands(stored, out):
    data, network, photos = map(str, stored)
    tiny = [f"--config={helpers.TINY / 'hardnet.yaml'}", f"--dataset_path={data}"]
    mnist = Path(os.environ.get("DATA_ROOT", ROOT / "data")) / "mnist"
    return {
        "train.py": [*tiny, "--epoch_size=200", f"--output_dir={out / 'run'}"],
        "eval.py": [f"--ckpt_path={network}", f"--dataset_path={data}"],
        "export.py": [f"--ckpt_file={network}", f"--dataset_path={data}", f"--file_name={out / 'net'}"],
        "infer.py": [f"--model={network}", data],
        "create_mnistm.py": [f"--bst_path={photos}", f"--mnist_dir={mnist}", f"--mnistm_dir={out / 'made'}"],
    }


def guarded(process):
    """Wait until the process takes Ctrl-C itself: nobody can guard the start of Python before that."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        if blocked >> (signal.SIGINT - 1) & 1:
            return
        time.sleep(0.002)


@pytest.mark.parametrize("program", ["train.py", "eval.py", "export.py", "infer.py", "create_mnistm.py"])
@pytest.mark.parametrize("delay", [0.05, 0.5, 1.2])
def test_reported_ctrl_c_at_any_moment_is_one_line(stored, tmp_path, program, delay):
    process = subprocess.Popen(
        [sys.executable, program, *commands(stored, tmp_path)[program]],
        cwd=ROOT,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    guarded(process)
    try:
        _, errors = process.communicate(timeout=delay or None) if delay else (None, None)
    except subprocess.TimeoutExpired:
        errors = None
    if errors is not None:
        pytest.skip(f"{program} ended within {delay} s by itself: {errors}")
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    shown, errors = process.communicate(timeout=60)
    if process.returncode == 0 and time.monotonic() - sent < 1.0:
        pytest.skip(f"{program} was leaving by itself after {delay} s")
    lines = [line for line in errors.splitlines() if "MindSpore" not in line]
    assert process.returncode == 130, errors + shown
    assert lines == ["interrupted"] or "stopped by SIGINT" in shown, errors
    left = [path for path in tmp_path.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert left == [] and not list(tmp_path.glob("export-*"))


def test_reported_ctrl_c_while_a_file_is_written_leaves_nothing(tmp_path):
    program = (
        "from model_utils import interrupts\ninterrupts.guard()\n"
        "import sys, time\nfrom model_utils.checkpoint import atomic\n"
        "with atomic(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    (tmp_path / "a").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "a" / "file"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted\n"
    assert process.returncode == 130 and list((tmp_path / "a").iterdir()) == []


def test_reported_paths_keep_what_is_allowed():
    for text in ("", "a/b", "./~", "ä" * 127, "x" * 255, "/" + "/".join(["x" * 200] * 20)):
        assert paths.expanded(text, "key") == text
