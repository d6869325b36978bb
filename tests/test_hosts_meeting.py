"""How the launchers of several hosts meet, are started from one, and hand out checkpoints."""

import os
import shlex
import socket
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_hosts import wait_until

from model_utils import gathering, handing_out, jobs, link, over_ssh
from model_utils.errors import UserError
from model_utils.link import Link, Outcome
from model_utils.meeting import Team
from tests.helpers import ROOT, quick
from tests.test_launch import script

# How the launchers meet


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def team(port, node, count=2, patience=20.0, **facts):
    names = tuple(f"h{index}" for index in range(count))
    return Team(names, node, "127.0.0.1", port, patience, {"hosts": ",".join(names), **facts})


def at_once(call, count):
    """call(0) to call(count - 1), each in a thread of its own."""
    threads = [threading.Thread(target=call, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def met(*teams, stopped=lambda: False):
    """[a Link, or the line of its UserError] of each team, met at the same time."""
    found = [None] * len(teams)

    def one(index):
        there = Link(teams[index])
        try:
            found[index] = there if there.meet(stopped) else "stopped"
            if found[index] is there:
                there.keep()
        except UserError as error:
            found[index] = str(error)

    at_once(one, len(teams))
    return found


def concluded(links, outcomes):
    """[the verdict of each link], where every host tells its outcome at the same time."""
    found = [None] * len(links)

    def one(index):
        found[index] = links[index].conclude(outcomes[index], lambda: False)

    at_once(one, len(links))
    return found


def test_hosts_that_end_well_end_together(port):
    links = met(*(team(port, node, 3) for node in range(3)))
    assert concluded(links, [Outcome(0)] * 3) == [Outcome(0)] * 3


def test_the_first_failure_is_what_all_hosts_say(port):
    links = met(*(team(port, node, 3) for node in range(3)))
    links[2].failing()
    wait_until(lambda: all(there.stopping for there in links[:2]))
    said = [Outcome(1, "stopped", True), Outcome(1, "rank 1 failed (1)"), Outcome(1, "rank 2 was killed")]
    assert concluded(links, said) == [Outcome(1, "host h2: rank 2 was killed")] * 3


def test_an_error_of_its_own_goes_before_one_that_follows(port):
    links = met(team(port, 0), team(port, 1))
    links[0].failing()
    wait_until(lambda: links[1].stopping)
    said = [Outcome(2, "rank 0: stopped because of an error on rank 1", True), Outcome(2, "rank 1: a.jpg")]
    assert concluded(links, said) == [Outcome(2, "host h1: rank 1: a.jpg")] * 2


def test_signals_reach_the_other_hosts_and_their_status_is_that_of_all(port):
    links = met(*(team(port, node, 3) for node in range(3)))
    links[1].signalled(15)
    heard = {0: [], 2: []}
    for node in heard:
        wait_until(lambda node=node: heard[node].extend(links[node].signals()) or heard[node] == [15])
    assert links[1].signals() == []
    assert concluded(links, [Outcome(143)] * 3) == [Outcome(143)] * 3


def test_a_host_whose_launcher_ends_is_gone(port):
    links = met(*(team(port, node, 3) for node in range(3)))
    links[1].wires[0].close()
    wait_until(lambda: links[0].stopping and links[2].stopping)
    verdicts = concluded([links[0], links[2]], [Outcome(1, "stopped", True)] * 2)
    assert verdicts == [Outcome(1, "host h1 is gone: its launcher has ended; the others were stopped")] * 2


def test_without_the_first_host_the_others_stop(port):
    links = met(*(team(port, node, 3) for node in range(3)))
    for wire in links[0].wires.values():
        wire.close()
    wait_until(lambda: links[1].stopping and links[2].stopping)
    for verdict in concluded(links[1:], [Outcome(1, "stopped", True)] * 2):
        assert verdict == Outcome(1, "host h0 is gone: its launcher has ended; the others were stopped")


def test_a_silent_host_is_lost(port, monkeypatch):
    monkeypatch.setattr(link, "SILENCE", 0.5)
    monkeypatch.setattr(link, "BEAT", 100.0)
    links = met(team(port, 0), team(port, 1))
    wait_until(lambda: links[0].stopping and links[1].stopping)
    verdicts = [there.conclude(Outcome(1, "stopped", True), lambda: False) for there in reversed(links)]
    assert {verdict.status for verdict in verdicts} == {1}
    assert "host h0 has not answered for" in verdicts[0].line
    assert "host h1 has not answered for" in verdicts[1].line


@pytest.mark.parametrize("fact", ["hosts", "processes per host"])
def test_hosts_that_were_started_differently_say_so_at_once(port, fact):
    begun = time.monotonic()
    facts = [{"processes per host": "1"}, {"processes per host": "1"}]
    facts[1][fact] = "2"
    lines = met(team(port, 0, **facts[0]), team(port, 1, **facts[1]))
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"host h1 was started with {fact} 2, host h0 with")
    assert time.monotonic() - begun < 15


def test_the_first_host_s_word_is_that_of_all(port):
    found = [None, None]

    def one(node):
        found[node] = link.first_says(team(port, node), {"resume": node == 0})

    threads = [threading.Thread(target=one, args=(node,)) for node in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [{"resume": True}] * 2


def test_a_node_rank_given_twice_is_named(port):
    lines = met(*(team(port, node, 3, patience=5) for node in (0, 1, 1)))
    assert lines[0] == "node_rank: 1 was given on two hosts; give each host its own"
    assert lines[1:] == [lines[0]] * 2


def test_a_host_that_does_not_come_is_named(port):
    lines = met(*(team(port, node, 4, patience=1) for node in (0, 2)))
    assert (
        lines
        == ["host h1, h3 did not start within 1 s (cluster_time_out); start the same command on every host"]
        * 2
    )


def test_hosts_too_far_apart_for_mindspore_are_told_so(port, monkeypatch):
    monkeypatch.setattr(gathering, "_connected", lambda team, patience: (_near(team), 0.08))
    lines = met(team(port, 0, patience=5), team(port, 1, patience=5))
    assert lines == [lines[0]] * 2
    assert lines[0].startswith("host h1 is 80 ms away from host h0; MindSpore waits 30 ms for a connection")


def _near(there):
    return socket.create_connection((there.address, there.port), 5)


def test_a_first_host_that_does_not_come_is_named(port):
    (line,) = met(team(port, 1, patience=1))
    assert line.startswith(f"the first host, h0, did not answer at 127.0.0.1, port {port}, within 1 s")


def test_a_stranger_at_the_port_disturbs_nobody(port, monkeypatch):
    monkeypatch.setattr(gathering, "ASIDE", 1.0)
    links = []
    thread = threading.Thread(target=lambda: links.extend(met(team(port, 0))))
    thread.start()
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"greeting": 5}\n', b"[1]\n", b"x" * 100_000):
        limit = time.monotonic() + 20
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port), 5)
                break
            except OSError:
                assert time.monotonic() < limit
                time.sleep(0.05)
        stranger.sendall(words)
        stranger.close()
    links += met(team(port, 1))
    thread.join(60)
    assert all(isinstance(there, Link) for there in links)
    assert concluded(sorted(links, key=lambda there: not there.first), [Outcome(0)] * 2) == [Outcome(0)] * 2


def test_a_signal_ends_the_wait_for_the_others(port):
    begun = time.monotonic()
    assert met(team(port, 0, patience=600), stopped=lambda: True) == ["stopped"]
    assert met(team(port, 1, patience=600), stopped=lambda: True) == ["stopped"]
    assert time.monotonic() - begun < 20


def test_a_port_in_use_is_named(port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        (line,) = met(team(port, 0))
    assert f"port {port} (the one after master_port): Address already in use" in line


# All hosts from one


def test_a_command_over_ssh_is_the_one_for_each_host(tmp_path):
    keys = ("--experiment", "a b; 'q' $(id)", "--hosts", "h1,h2", "--output_dir", "new run")
    done = script("run_train_cpu", 2, *keys, "--ssh", "ssh -p 22", "--dry_run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[::2] == ["# host h1", "# host h2"]
    for node, line in enumerate(lines[1::2]):
        words = shlex.split(line)
        assert words[:3] == ["ssh", "-p", "22"] and words[-2] == f"h{node + 1}"
        there = shlex.split(words[-1])
        assert there[:4] == ["cd", str(ROOT), "&&", "DA_TIED=1"]
        assert there[there.index("--caller") + 1] == str(tmp_path)
        assert there[there.index("--") + 1 :] == ["2", *keys, "--node_rank", str(node)]


@quick
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)))
def test_words_over_ssh_arrive_as_they_were(words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", "/usr/bin/env")
        ((*_, there),) = over_ssh.commands(["ssh"], ["h"], words)
    shown = there.replace("exec /usr/bin/env", "printf '%s\\0'", 1)
    done = subprocess.run(["sh", "-c", shown], capture_output=True, check=True)
    found = done.stdout.decode().split("\0")[:-1]
    assert found == ["-m", "model_utils.launch", *words, "--node_rank", "0"]


def started(*bodies):
    """`over_ssh.run` in a process of its own, with programs in the place of ssh."""
    planned = [[sys.executable, "-c", body] for body in bodies]
    main = (
        "from model_utils import cli, over_ssh\n"
        f"cli.run(lambda: over_ssh.run({planned!r}, ['h1', 'h2']), check_versions=False)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", main], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


UNTIL_END = "import sys; print('up', flush=True); sys.stdin.read(); print('saved', flush=True); sys.exit(143)"


def test_the_first_host_is_shown_and_equal_lines_once():
    body = "import sys; print('figure'); print('error: rank 1 failed', file=sys.stderr); sys.exit(1)"
    process = started(body, body)
    assert process.communicate(timeout=60) == ("figure\n", "error: rank 1 failed\n")
    assert process.returncode == 1


def test_a_signal_to_the_command_over_ssh_ends_its_launchers():
    process = started(UNTIL_END, UNTIL_END)
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.communicate(timeout=60) == ("saved\n", "")
    assert process.returncode == 143


def test_a_host_that_ssh_does_not_reach_ends_the_others():
    refuses = "import sys; print('ssh: connect to host h2: No route', file=sys.stderr); sys.exit(255)"
    process = started(UNTIL_END, refuses)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "saved" in output
    assert errors == (
        "error: ssh: host h2 could not be reached, or was lost: ssh: connect to host h2: No route\n"
    )


# Checkpoints of the first host


def handed(port, tmp_path, monkeypatch, words, folder="copies"):
    """[the command of each of two hosts] after the first has handed out its checkpoints; lines of errors."""
    monkeypatch.setattr(handing_out, "ROOT", tmp_path / "first")
    found = [None, None]

    def one(node):
        there = Link(team(port, node))
        there.meet(lambda: False)
        job = jobs.Job(["msrun", *(["--more", "x"] if node else []), *words], {})
        try:
            found[node] = handing_out.run(there.team, there.wires, job, tmp_path / folder).command
        except UserError as error:
            found[node] = str(error)

    threads = [threading.Thread(target=one, args=(node,)) for node in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_checkpoints_are_copied_from_the_first_host(port, tmp_path, monkeypatch):
    content = os.urandom(3_000_000)
    (tmp_path / "first" / "run").mkdir(parents=True)
    (tmp_path / "first" / "run" / "network.ckpt").write_bytes(content)
    (tmp_path / "first" / "empty.ckpt").write_bytes(b"")
    words = ["--ckpt_path", "run", "--lr", "1", "--source_ckpt_file", "empty.ckpt", "--pre_ckpt_path", "none"]
    first, second = handed(port, tmp_path, monkeypatch, words)
    assert first[2] == str(tmp_path / "first" / "run" / "network.ckpt")
    copies = [tmp_path / "copies" / "ckpt_path" / "network.ckpt"]
    copies.append(tmp_path / "copies" / "source_ckpt_file" / "empty.ckpt")
    assert second[1:3] == ["--more", "x"]
    assert second[3:] == [*words[:1], str(copies[0]), *words[2:5], str(copies[1]), "--pre_ckpt_path", "none"]
    assert copies[0].read_bytes() == content and copies[1].read_bytes() == b""


def test_a_copy_that_cannot_be_written_is_one_line(port, tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "a.ckpt").write_bytes(b"x" * 1000)
    (tmp_path / "copies").write_text("a file")
    _, line = handed(port, tmp_path, monkeypatch, ["--ckpt_path", "a.ckpt"])
    assert line.startswith("no checkpoint could be fetched from host h0 into") and "\n" not in line
