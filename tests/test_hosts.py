"""Several hosts: what is started on each, how their launchers meet, part and end together.

Drills with real runs in network namespaces are in benchmarks/hosts_drill.py; some of them are run here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from benchmarks import hosts_drill, namespaces
from model_utils import agreement, hosts
from model_utils.device import Device
from src.setup import settings as experiment
from tests.helpers import ROOT, fails, refused
from tests.test_launch import dry, msrun_options, script, watched
from tests.test_rank_table import server, table

TWO = "203.0.113.1,203.0.113.2"


def wait_until(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


# What is started on each host


@pytest.mark.parametrize(
    "name, arguments, local",
    [
        ("run_train_cpu", (), 1),
        ("run_train_cpu", (3,), 3),
        ("run_train_gpu", (2, "4,5"), 2),
        ("run_train", (), 1),
        ("run_train", ("0,1,2,3",), 4),
        ("run_eval_cpu", (), 1),
        ("run_eval_gpu", ("data", 3, "my.ckpt"), 1),
        ("run_eval", (), 1),
        ("run_distribute_train", ("data", "2,3"), 2),
        ("run_distribute_train_cpu", (2, "data"), 2),
        ("run_distribute_train_gpu", (2, "0,1", "data"), 2),
        ("run_single_train", ("data", 5), 1),
        ("run_single_train_cpu", ("data",), 1),
        ("run_single_train_gpu", (5, "data"), 1),
    ],
)
def test_every_script_starts_its_processes_on_each_host(name, arguments, local):
    jobs = dry(name, *arguments, "--hosts", TWO, "--seed", "3")
    assert [comment for _, _, comment in jobs] == [
        f"host 203.0.113.{node + 1}: node_rank {node}, ranks {node * local} to {node * local + local - 1}"
        for node in range(2)
    ]
    for node, (_, command, _) in enumerate(jobs):
        given, program = msrun_options(command)
        assert (given["worker_num"], given["local_worker_num"]) == (str(2 * local), str(local))
        assert (given["node_rank"], given["master_addr"], given["master_port"]) == (
            str(node),
            "203.0.113.1",
            "8118",
        )
        assert program[program.index("--seed") + 1] == "3"
        assert not any("hosts" in word for word in program)


@pytest.mark.parametrize(
    "name, arguments, variable, devices",
    [
        ("run_train_gpu", (2, "4,5"), "CUDA_VISIBLE_DEVICES", "4,5"),
        ("run_single_train_gpu", (5, "data"), "CUDA_VISIBLE_DEVICES", "5"),
        ("run_eval_gpu", ("data", 3, "my.ckpt"), "CUDA_VISIBLE_DEVICES", "3"),
        ("run_train", ("0,1,2,3",), "ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3"),
        ("run_single_train", ("data", 5), "ASCEND_RT_VISIBLE_DEVICES", "5"),
    ],
)
def test_devices_are_those_the_script_names_on_each_host(name, arguments, variable, devices):
    for variables, command, _ in dry(name, *arguments, "--hosts", TWO):
        assert variables[variable] == devices
        assert "--device_id" not in command  # under msrun each process has its own


def test_ascend_devices_take_the_place_of_a_rank_table_on_one_host_too():
    ((variables, command, _),) = dry("run_train", "0,1,2")
    assert variables["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2"
    given, _ = msrun_options(command)
    assert given["worker_num"] == "3" and "rank_table_file" not in given


def test_address_and_port_may_be_chosen():
    for _, command, _ in dry(
        "run_train_cpu", "--hosts", TWO, "--master_addr", "10.0.0.9", "--master_port", "9000"
    ):
        given, _ = msrun_options(command)
        assert (given["master_addr"], given["master_port"]) == ("10.0.0.9", "9000")


def test_one_host_in_the_list_is_one_host():
    ((variables, command, comment),) = dry("run_train_cpu", "--hosts", "203.0.113.1")
    assert command[1:] == ["train.py", "--device_target", "CPU"]
    refused(script("run_train_cpu", "--hosts", "203.0.113.1"), "no entry for this host")


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("run_train_cpu", ("--hosts", TWO), "--hosts has no entry for this host"),
        ("run_train_cpu", ("--hosts", "a,b,a", "--dry_run"), "hosts: a stands there twice"),
        ("run_train_cpu", ("--hosts", "a,,b", "--dry_run"), "'' is no address or host name"),
        ("run_train_cpu", ("--hosts", "a,b;ls", "--dry_run"), "'b;ls' is no address or host name"),
        ("run_train_cpu", ("--hosts", "a,--join=False", "--dry_run"), "is no address or host name"),
        (
            "run_train_cpu",
            ("--hosts", "127.0.0.1,a", "--dry_run"),
            "127.0.0.1 is another machine on each host",
        ),
        ("run_train_cpu", ("--hosts", "localhost,a", "--dry_run"), "localhost is another machine"),
        ("run_train_cpu", ("--hosts",), "hosts needs a value"),
        ("run_train_cpu", ("--ssh", "true"), "ssh: it starts all of --hosts"),
        ("run_train_cpu", ("--hosts", TWO, "--ssh", "true", "--node_rank", "0"), "leave out --node_rank"),
        ("run_train_cpu", ("--hosts", TWO, "--ssh", "reboot"), "ssh: 'reboot' is not allowed"),
        ("run_train_cpu", ("--hosts", TWO, "--ssh", "ssh '"), 'ssh: "ssh \'" is no command'),
        ("run_train_cpu", ("--hosts", TWO, "--node_rank", "2", "--dry_run"), "number from 0 to 1"),
        ("run_train_cpu", ("--hosts", TWO, "--node_rank", "-1"), "number from 0 to 1"),
        ("run_train_cpu", ("--node_rank", "0"), "name them with --hosts"),
        ("run_train_cpu", ("--hosts", TWO, "--master_port", "65535", "--dry_run"), "from 1024 to 65534"),
        ("run_onnx_eval_cpu", ("d", "m.onnx", "--hosts", TWO), "eval_onnx.py is one process"),
        ("run_infer_310", ("m.mindir", "d", "--hosts", TWO), "infer.py is one process"),
    ],
)
def test_wrong_hosts_are_one_line(name, arguments, said):
    refused(script(name, *arguments), said)


def test_the_launchers_options_are_none_of_the_programs():
    line = fails(lambda: experiment.load(["--hosts=a,b"]), "hosts (command line)", "option of the launcher")
    assert "bash scripts/run_train_cpu.sh --hosts" in line


def test_rank_table_and_hosts_are_one_too_many(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table(server("203.0.113.1", range(2)))))
    refused(script("run_train", path, "--hosts", TWO), "the rank table names them already")


def test_this_host_is_found_by_its_name_and_its_addresses(monkeypatch):
    monkeypatch.setattr(hosts, "names_of_this_machine", lambda: {"10.0.0.2", "fd00::2", "head"})
    known = {"other": "10.0.0.1", "by-name": "10.0.0.2", "looped": "127.0.1.1"}

    def lookup(name, *_):
        if name not in known:
            raise socket.gaierror("unknown")
        return [(None, None, None, None, (known[name], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert hosts.node_rank(["10.0.0.1", "10.0.0.2"], None) == 1
    assert hosts.node_rank(["head", "nobody"], None) == 0
    assert hosts.node_rank(["other", "by-name"], None) == 1
    assert hosts.node_rank(["fd00::1", "fd00::2"], None) == 1
    assert hosts.node_rank(["other", "nobody"], "1") == 1
    fails(lambda: hosts.node_rank(["other", "looped"], None), "no entry for this host")
    fails(lambda: hosts.node_rank(["head", "by-name"], None), "head and by-name are both this machine")


# Nothing is left behind


def test_a_killed_launcher_leaves_no_process(tmp_path):
    body = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from model_utils import leash; leash.obey();"
        "print('tied', flush=True); time.sleep(100)"
    )
    launcher = watched(tmp_path, body, body, body)
    logs = [tmp_path / name for name in ("worker_0.log", "worker_1.log", "scheduler.log")]
    wait_until(lambda: all(log.exists() and "tied" in log.read_text() for log in logs))
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=30)
    found = ["pgrep", "-f", str(tmp_path)]
    wait_until(lambda: subprocess.run(found, capture_output=True, check=False).stdout == b"")
    wait_until(lambda: not [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_body(pid, str(ROOT))])


def _is_body(pid, text):
    """Whether a process is one of the test's workers."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as handle:
            words = handle.read()
    except OSError:
        return False
    return "leash.obey()" in words and text in words and str(os.getpid()) != pid


def test_a_killed_script_ends_its_command(tmp_path):
    (tmp_path / "child.py").write_text(
        f"import signal, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nfrom model_utils import leash\n"
        f"def leave(*_): open({str(tmp_path / 'saved')!r}, 'w').close(); sys.exit(143)\n"
        "signal.signal(15, leave)\nleash.obey()\nprint('up', flush=True)\ntime.sleep(100)\n"
    )
    (tmp_path / "s.sh").write_text(f'source "{ROOT}/scripts/common.sh"\nrun_command "{tmp_path}/child.py"\n')
    shell = subprocess.Popen(["bash", tmp_path / "s.sh"], stdout=subprocess.PIPE, text=True)
    assert shell.stdout.readline().startswith("+ python")
    assert shell.stdout.readline() == "up\n"
    shell.kill()
    shell.communicate(timeout=30)
    wait_until((tmp_path / "saved").exists)


def test_a_process_whose_launcher_has_gone_before_it_asked_ends_at_once():
    program = "from model_utils import leash; leash.obey(); print('still here')"
    environment = {**os.environ, "DA_LAUNCHER": "1", "MS_ROLE": "MS_WORKER"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (137, "")


# All processes mean the same


def told(monkeypatch, *facts):
    """What `agreement.same` says on rank 0 of processes with these facts."""
    texts = [json.dumps([f"h{rank}", own]) for rank, own in enumerate(facts)]

    def gather(text, device):
        return [str(own) for own in facts] if len(text) == 64 and text.isalnum() else texts

    monkeypatch.setattr("model_utils.collectives.gather_texts", gather)
    agreement.same(facts[0], Device("CPU", 0, len(facts)), "mend it")


def test_processes_that_differ_are_named_with_what_differs(monkeypatch):
    one = {"lr": "0.1", "src/a.py": "1", "src/b.py": "2", "mindspore": "2.10.0"}
    told(monkeypatch, one, dict(one))
    line = fails(
        lambda: told(monkeypatch, one, one, {**one, "lr": "0.5", "src/a.py": "9"}),
        agreement.DIFFER + "rank 2 on h2 has lr 0.5 instead of 0.1, another src/a.py",
        "seen from rank 0 on h0; mend it",
    )
    assert "mindspore" not in line
    less = {name: value for name, value in one.items() if name != "src/b.py"}
    fails(lambda: told(monkeypatch, one, less), "rank 1 on h1 has no src/b.py")
    fails(lambda: told(monkeypatch, less, one), "rank 1 on h1 has a new src/b.py")


def test_code_is_every_file_that_a_run_may_execute():
    files = agreement.code()
    assert {"train.py", "src/training/loop.py", "model_utils/link.py"} <= files.keys()
    assert any(name.endswith(".cpp") for name in files)
    assert not any(name.startswith(("tests", "benchmarks", ".venv")) for name in files)


# Real runs


def test_the_table_of_drills_is_what_was_kept():
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    outcomes = hosts_drill.kept()
    assert list(outcomes) == hosts_drill.names()
    assert hosts_drill.table(outcomes) in page


@pytest.fixture
def drills(tmp_path):
    if reason := namespaces.missing():
        pytest.skip(f"no hosts can be made here: {reason}")
    return hosts_drill.Drills(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("plain", marks=pytest.mark.thorough),
        "hosts_disagree",
        pytest.param("worker_killed", marks=pytest.mark.thorough),
        pytest.param("launcher_killed_of_three", marks=pytest.mark.thorough),
    ],
)
def test_drill(name, drills):
    assert getattr(drills, f"drill_{name}")()["wrong"] == []
