"""The launchers, as users type them: what they run, on which host, and how they refuse."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from model_utils import processes
from tests.helpers import DEMO, ROOT, environment, options, refused
from tests.test_rank_table import server, table


def script(name, *arguments, cwd=ROOT, **variables):
    """Run scripts/<name>.sh; stdout and stderr are text."""
    variables = environment(**variables)
    for name_ in ("DA_CPU_THREADS", "OMP_NUM_THREADS"):
        variables.pop(name_, None)
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / f"{name}.sh"), *map(str, arguments)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def dry(name, *arguments, cwd=ROOT):
    """[(environment, command, comment line)] of each host, read back by a shell's rules."""
    done = script(name, *arguments, "--dry_run", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    jobs, comment = [], ""
    for line in done.stdout.splitlines():
        if line.startswith("# "):
            comment = line[2:]
            continue
        words = shlex.split(line)
        assert words[:3] == ["cd", str(ROOT), "&&"]
        first = next(i for i, word in enumerate(words[3:], 3) if not re.match(r"[A-Z_]+=", word))
        jobs.append((dict(word.split("=", 1) for word in words[3:first]), words[first:], comment))
    return jobs


@pytest.mark.parametrize("words", [("--dry_run",), ("--dry_run", "true"), ("--dry_run=true",)])
@pytest.mark.parametrize(
    "name", ["svhn-mnist", "usps-mnist", *sorted(path.stem for path in (ROOT / "scripts").glob("run_masf_*"))]
)
def test_scripts_of_several_commands_show_them_and_run_none(name, words, tmp_path):
    output = tmp_path / "runs"
    keys = ("--folder", output) if "masf" in name else ("--output_dir", output)
    done = script(name, "--seed" if "masf" not in name else "--seeds", 3, *words, *keys, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    commands = [line for line in done.stdout.splitlines() if line.startswith("+ python ")]
    assert len(commands) == (1 if "masf" in name else 4)
    assert all("dry_run" not in line and " 3 " in line and "runs" in line for line in commands)
    assert not list(tmp_path.iterdir())


def test_dry_run_may_be_false():
    """The word goes with its key, and the command runs: with a configuration that does not exist."""
    for words in (("--dry_run", "false"), ("--dry_run=false",)):
        done = script("usps-mnist", "--config", "none.yaml", *words)
        assert (
            done.returncode == 2
            and "none.yaml" in done.stderr
            and "false" not in done.stdout.split("--resume")[0]
        )
    done = script("usps-mnist", "--dry_run", "false", "--dry_run", "--seed", 3)
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_of_the_scripts_of_adda_are_the_caller_s(tmp_path):
    """Whatever name a key has."""
    output = tmp_path / "my runs"
    for words in (
        ("--output-dir", "my runs"),
        ("--model_root=my runs",),
        ("--save_checkpoint_path", "my runs/x.ckpt"),
        ("--output", output),
    ):
        done = script("svhn-mnist", "--dry_run", *words, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.count("my\\ runs") == 5, done.stdout
        assert "output_dir outputs" not in done.stdout and "root" not in done.stdout.replace(
            str(tmp_path), ""
        )
    names = ("list_root", "list_classes", "pretrained", "feature_folder", "source_image_root")
    keys = [word for name in names for word in (f"--{name}", f"my-{name}")]
    done = script("svhn-mnist", *keys, "--dry_run", cwd=tmp_path)
    assert all(done.stdout.count(f"--{name} {tmp_path}/my-{name} ") == 4 for name in names), done.stdout
    done = script(
        "svhn-mnist", "--pretrained=auto", "--dataset-path=d", *keys[-2:], "--dry_run", cwd=tmp_path
    )
    assert done.stdout.count("--pretrained auto ") == done.stdout.count(f"--dataset_path {tmp_path}/d ") == 4
    assert done.stdout.count("--source_image_root my-source_image_root ") == 4


def test_cdpath_is_no_way_to_the_repository():
    """With it, cd prints where it went."""
    line = 'set -eu; . scripts/common.sh; printf %s "$ROOT"'
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment(CDPATH=str(ROOT)), capture_output=True
    )
    assert (done.stdout, done.stderr) == (os.fsencode(ROOT), b"")


def msrun_options(command):
    """({msrun's option: value}, [program and its arguments])."""
    assert command[0] == "msrun"
    end = next(i for i, word in enumerate(command[1:], 1) if not word.startswith("--"))
    return dict(word[2:].split("=", 1) for word in command[1:end]), command[end:]


@pytest.mark.parametrize(
    "name, target",
    [
        ("run_train", "Ascend"),
        ("run_train_cpu", "CPU"),
        ("run_eval", "Ascend"),
        ("run_eval_gpu", "GPU"),
        ("run_eval_cpu", "CPU"),
    ],
)
def test_without_arguments_one_process_of_the_default_experiment(name, target):
    ((variables, command, _),) = dry(name)
    program = ["train.py"] if "train" in name else ["eval.py"]
    checkpoint = [] if "train" in name else ["--ckpt_path", "outputs/dann"]
    assert command[1:] == [*program, "--device_target", target, *checkpoint]
    assert os.path.basename(command[0]).startswith("python")
    assert variables == {}


def test_gpu_one_process_per_device():
    ((variables, command, _),) = dry("run_train_gpu", "8", "0,1,2,3,4,5,6,7", "--seed", "3")
    assert variables["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert os.path.exists(os.path.join(variables["PATH"].split(":")[0], "python"))
    given, program = msrun_options(command)
    assert (given["worker_num"], given["local_worker_num"], given["join"]) == ("8", "8", "True")
    assert 1024 <= int(given["master_port"]) <= 65535
    assert program == ["train.py", "--device_target", "GPU", "--seed", "3"]


def test_gpu_one_process_needs_no_msrun():
    ((variables, command, _),) = dry("run_train_gpu", "1", "5")
    assert variables == {"CUDA_VISIBLE_DEVICES": "5"}
    assert command[1:] == ["train.py", "--device_target", "GPU"]


def test_cpu_processes_share_the_cores():
    ((variables, command, _),) = dry("run_train_cpu", "2", "--config", "configs/demo.yaml")
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert variables["DA_CPU_THREADS"] == variables["OMP_NUM_THREADS"] == share
    given, program = msrun_options(command)
    assert given["worker_num"] == "2"
    assert given["log_dir"].startswith(str(ROOT / "outputs/demo/processes/"))
    assert program == ["train.py", "--device_target", "CPU", "--config", "configs/demo.yaml"]


def test_rank_table_of_one_host(tmp_path):
    path = tmp_path / "a b.json"
    path.write_text(json.dumps(table(server("203.0.113.1", range(8)))))
    ((variables, command, comment),) = dry("run_train", path)
    given, program = msrun_options(command)
    assert comment == "host 203.0.113.1: node_rank 0, ranks 0 to 7"
    assert (given["worker_num"], given["local_worker_num"]) == ("8", "8")
    assert given["rank_table_file"] == str(path)
    assert "node_rank" not in given
    assert "ASCEND_RT_VISIBLE_DEVICES" not in variables
    assert program == ["train.py", "--device_target", "Ascend"]


def test_rank_table_of_some_devices(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table(server("203.0.113.1", range(4), (4, 5, 6, 7)))))
    assert dry("run_train", path)[0][0]["ASCEND_RT_VISIBLE_DEVICES"] == "4,5,6,7"
    path.write_text(json.dumps(table(server("203.0.113.1", (0,), (3,)))))
    ((variables, command, _),) = dry("run_train", path)
    assert variables == {"ASCEND_RT_VISIBLE_DEVICES": "3"}
    assert command[1:] == ["train.py", "--device_target", "Ascend"]


def test_rank_table_of_two_hosts(tmp_path):
    (tmp_path / "table.json").write_text(
        json.dumps(table(server("203.0.113.2", range(8, 16)), server("203.0.113.1", range(8))))
    )
    jobs = dry("run_train", "table.json", cwd=tmp_path)  # relative to where it was typed
    for index, (_, command, comment) in enumerate(jobs):
        given, _ = msrun_options(command)
        assert (
            comment == f"host 203.0.113.{index + 1}: node_rank {index}, ranks {8 * index} to {8 * index + 7}"
        )
        assert (given["worker_num"], given["local_worker_num"], given["node_rank"]) == ("16", "8", str(index))
        assert (given["master_addr"], given["master_port"]) == ("203.0.113.1", "8118")
    refused(script("run_train", "table.json", cwd=tmp_path), "no entry for this host")
    ((_, first, _), _) = dry(
        "run_train", "table.json", "--master_addr", "head", "--master_port", "9000", cwd=tmp_path
    )
    assert msrun_options(first)[0]["master_addr"] == "head"
    assert msrun_options(first)[0]["master_port"] == "9000"


def test_wrong_rank_table_is_one_line(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("{}")
    refused(script("run_train", path, "--dry_run"), "rank table", str(path))
    refused(script("run_train", tmp_path / "none.json"), "No such file")


def test_eval_arguments(tmp_path):
    for name, target in (("run_eval", "Ascend"), ("run_eval_gpu", "GPU"), ("run_eval_cpu", "CPU")):
        ((_, command, _),) = dry(name, "my data", "2", "my.ckpt", "--batch_size", "8", cwd=tmp_path)
        keys = [
            "--dataset_path",
            str(tmp_path / "my data"),
            "--device_id",
            "2",
            "--ckpt_path",
            str(tmp_path / "my.ckpt"),
        ]
        assert command[1:] == ["eval.py", "--device_target", target, *keys, "--batch_size", "8"]


def test_eval_takes_the_output_dir_of_the_experiment_asked_for():
    for given, expected in (
        (("--config", "configs/demo.yaml"), "outputs/demo"),
        (("--config", "configs/demo.yaml", "--output_dir", "outputs/mine"), "outputs/mine"),
    ):
        assert dry("run_eval_cpu", *given)[0][1][-2:] == ["--ckpt_path", expected]
    ((_, command, _),) = dry("run_eval_cpu", "--backbone_ckpt_file", "a", "--classifier_ckpt_file", "b")
    assert "--ckpt_path" not in command


def test_paths_are_those_of_the_folder_the_script_was_called_from(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "mine.yaml").write_text("seed: 3\n")
    ((_, command, _),) = dry(
        "run_train_cpu",
        "--config",
        "mine.yaml",
        "--output_dir",
        "new run",
        "--source_image_root",
        "configs",
        cwd=folder,
    )
    assert command[-6:] == [
        *("--config", str(folder / "mine.yaml"), "--output_dir", str(folder / "new run")),
        *("--source_image_root", "configs"),  # not here, but in the repository
    ]


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("run_train", ("a", "b")),
        ("run_train_gpu", ()),
        ("run_train_gpu", ("2",)),
        ("run_train_gpu", ("2", "0,1", "x")),
        ("run_train_cpu", ("1", "2")),
        ("run_eval", ("data",)),
        ("run_eval_gpu", ("data", "0")),
        ("run_eval_cpu", ("data", "0", "a.ckpt", "more")),
        ("run_eval_cpu", ("data", "0", "")),
    ],
)
def test_wrong_argument_counts_are_refused_with_the_usage(name, arguments):
    refused(script(name, *arguments), f"usage: bash scripts/{name}.sh")


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("run_train_gpu", ("2", "0"), "N is 2, but DEVICE_IDS names 1"),
        ("run_train_gpu", ("2", "0,0"), "names a device twice"),
        ("run_train_gpu", ("2", "0;ls"), "not a list of device numbers"),
        ("run_train_cpu", ("0",), "whole number from 1"),
        ("run_train_cpu", ("two",), "whole number from 1"),
        ("run_train_cpu", ("1000000",), "whole number from 1"),
        ("run_train_cpu", ("2", "--master_port", "80"), "master_port"),
        ("run_train_cpu", ("2", "--cluster_time_out", "soon"), "cluster_time_out"),
        ("run_train_cpu", ("2", "--config", "no.yaml"), "no.yaml"),
        ("run_train_cpu", ("--dry_run", "perhaps"), "dry_run"),
        ("run_train_cpu", ("--seed", "1", "stray"), "unexpected argument 'stray'"),
    ],
)
def test_wrong_arguments_are_one_line(name, arguments, said):
    refused(script(name, *arguments), said)


def test_help_prints_the_usage():
    done = script("run_train_gpu", "--help")
    assert done.returncode == 0
    assert "usage: bash scripts/run_train_gpu.sh N DEVICE_IDS" in done.stdout


def test_one_process_prints_its_command_and_returns_its_status(tmp_path):
    done = script("run_train_cpu", "--lr", "fast", cwd=tmp_path)
    refused(done, "lr: 'fast'")
    assert done.stdout.startswith("+ cd ") and done.stdout.rstrip().endswith(
        "train.py --device_target CPU --lr fast"
    )


def test_run_command_prints_runs_in_the_root_and_returns_the_status(tmp_path):
    (tmp_path / "s.sh").write_text(
        f'source "{ROOT}/scripts/common.sh"\n'
        'run_command -c "import os, sys; print(os.getcwd(), sys.argv[1]); sys.exit(7)" "a b"\n'
        "echo status $?\n"
    )
    done = subprocess.run(
        ["bash", tmp_path / "s.sh"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("+ python -c ") and lines[0].rstrip().endswith("a\\ b")
    assert lines[1:] == [f"{ROOT} a b", "status 7"]


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_run_command_passes_a_signal_on_once(number, tmp_path):
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "got = []\n"
        "for n in (2, 15): signal.signal(n, lambda n, f: got.append(n))\n"
        "print('up', flush=True)\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "print(len(got), flush=True)\n"
        "sys.exit(128 + got[0])\n"
    )
    (tmp_path / "s.sh").write_text(f'source "{ROOT}/scripts/common.sh"\nrun_command "{tmp_path}/child.py"\n')
    process = subprocess.Popen(["bash", tmp_path / "s.sh"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("+ python")
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "1\n"
    assert process.returncode == 128 + number


# What watches msrun, with a stand-in that starts processes as msrun does.

STAND_IN = """
import os, subprocess, sys, time
log_dir = sys.argv[1].split("=", 1)[1]
children = []
subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"])  # msrun asks other programs, too
for rank, body in sorted(enumerate(sys.argv[2:]), key=lambda pair: pair[0] != 2):  # msrun's order
    scheduler = rank == 2
    print("Start scheduler process" if scheduler else f"Start worker process with rank id:{rank}", flush=True)
    with open(f"{log_dir}/" + ("scheduler.log" if scheduler else f"worker_{rank}.log"), "w") as log:
        command = [sys.executable, "-c", body]
        role = {"MS_ROLE": "MS_SCHED"} if scheduler else {"MS_ROLE": "MS_WORKER", "RANK_ID": str(rank)}
        where = dict(stdout=log, stderr=log, env={**os.environ, **role})
        children.append(subprocess.Popen(command, start_new_session=True, **where))
said = set()
while any([child.poll() is None for child in children]):
    for child in children:
        if child.returncode and child not in said:
            said.add(child)
            code = child.returncode
            print(f"Worker process {child.pid} exit with exception. Error code: {code}.", flush=True)
    time.sleep(0.3)
sys.exit(any(child.returncode for child in children))
"""
LONG = "import time; print('working', flush=True); time.sleep(100)"


def watched(tmp_path, *bodies, poll_seconds=processes.POLL_SECONDS):
    """Run bodies as the processes of a job; the launcher's part as a process of its own.

    poll_seconds: how often the launcher looks at them.
    """
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    command = [sys.executable, str(tmp_path / "stand_in.py"), f"--log_dir={tmp_path}", *bodies]
    main = (
        "import os\nfrom model_utils import cli, launch, processes\n"
        f"processes.POLL_SECONDS = {poll_seconds}\n"
        f"job = launch.Job({command!r}, {{}}, ranks=range(2))\n"
        "cli.run(lambda: processes.run(job, dict(os.environ)), check_versions=False)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", main], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    "body, status, said",
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            1,
            "error: rank 1 was killed by SIGKILL; the others were stopped",
        ),
        (
            "raise KeyError('lost')",
            1,
            "error: rank 1 failed (1); the others were stopped; its last line: KeyError: 'lost'",
        ),
        ("import sys; print('error: no such file'); sys.exit(2)", 2, "error: rank 1: no such file"),
    ],
)
def test_the_first_failure_is_named_and_the_others_stopped(body, status, said, tmp_path):
    found, output, errors = ended(watched(tmp_path, LONG, body))
    assert (found, output) == (status, "working\n")
    assert errors.startswith(said) and len(errors.splitlines()) == 1
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_the_rank_with_an_error_of_its_own_is_named(tmp_path):
    # As in a real run: a rank hears of the other's error after that has been raised there.
    log = tmp_path / "worker_1.log"
    peer = (
        f"import pathlib, sys, time\nlog = pathlib.Path({str(log)!r})\n"
        "while not (log.exists() and 'mine' in log.read_text()):\n    time.sleep(0.05)\n"
        f"print('error: {processes.PEER} 1')\nsys.exit(2)"
    )
    own = "import sys, time; print('error: mine', flush=True); time.sleep(1); sys.exit(2)"
    assert ended(watched(tmp_path, peer, own))[::2] == (2, "error: rank 1: mine\n")


def test_a_lost_host_is_reported_by_the_scheduler(tmp_path):
    said = "Timed out node list is: [const vector]{9}, worker 9"
    scheduler = f"import sys, time; time.sleep(1); print('{said}'); sys.exit(2)"
    status, _, errors = ended(watched(tmp_path, LONG, LONG, scheduler))
    assert status == 1
    assert errors.startswith("error: rank 9 is gone; the others were stopped")


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_signals_reach_the_processes(number, tmp_path):
    saves = (
        "import signal, sys, time\n"
        "def leave(n, f): print('saved', flush=True); sys.exit(128 + n)\n"
        "for n in (2, 15): signal.signal(n, leave)\n"
        "print('up', flush=True)\n"
        "time.sleep(100)\n"
    )
    process = watched(tmp_path, saves, saves)
    assert process.stdout.readline() == "up\n"
    deadline = time.monotonic() + 30
    while "up" not in (tmp_path / "worker_1.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert ended(process) == (128 + number, "saved\n", "")
    assert "saved" in (tmp_path / "worker_1.log").read_text()


def test_all_well_and_only_the_programs_own_lines_are_shown(tmp_path):
    body = "print('[WARNING] DISTRIBUTED(1,7f,python):2026 [x.cc] noise'); print('a figure')"
    assert ended(watched(tmp_path, body, "")) == (0, "a figure\n", "")


def test_processes_that_end_before_anyone_looks_have_ended_well_if_msrun_says_so(tmp_path):
    assert ended(watched(tmp_path, "print('a figure')", "", poll_seconds=5)) == (0, "a figure\n", "")


def test_a_reader_that_leaves_stops_the_run(tmp_path):
    body = "import time\nwhile True: print('line', flush=True); time.sleep(0.05)"
    process = watched(tmp_path, body, LONG)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) != 0


def test_a_real_run_whose_rank_is_killed(tmp_path):
    """msrun itself: a killed rank is named, the others stop, the status is not 0."""
    keys = options(**{**DEMO, "steps_per_epoch": 100000, "output_dir": tmp_path})
    process = subprocess.Popen(
        ["bash", "scripts/run_train_cpu.sh", "2", *keys],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "iter: 3" in line:
            break
    import psutil

    (rank1,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK_ID") == "1" and child.environ().get("MS_ROLE") == "MS_WORKER"
    ]
    rank1.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: rank 1 was killed by SIGKILL; the others were stopped"), errors
    assert len(errors.splitlines()) == 1
