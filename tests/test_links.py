"""Links of a limited rate between hosts, and what is made of the steps measured over them."""

import json
import subprocess
import sys

import pytest

from benchmarks import links, namespaces

# Host 1 counts what comes until the other has no more; host 0 sends, and prints the seconds until it is told.
COUNT = """
import socket
server = socket.create_server(("10.77.0.2", 9000))
print("ready", flush=True)
connection, _ = server.accept()
total = 0
while part := connection.recv(1 << 16):
    total += len(part)
connection.sendall(b"%d" % total)
"""
SEND = """
import socket, sys, time
connection = socket.create_connection(("10.77.0.2", 9000), timeout=60)
begun = time.monotonic()
connection.sendall(bytes(int(sys.argv[1])))
connection.shutdown(socket.SHUT_WR)
assert connection.recv(100) == sys.argv[1].encode()
print(time.monotonic() - begun)
"""


@pytest.fixture
def hosts():
    if reason := namespaces.missing() or namespaces.without_limits():
        pytest.skip(f"no hosts with limited links can be made here: {reason}")
    with namespaces.Hosts(2) as made:
        made.plain()
        made.cubic()
        yield made


def seconds_of(hosts, count):
    """Seconds that `count` bytes take from the first host to the second, through TCP."""
    counting = hosts.start(1, [sys.executable, "-c", COUNT], stdout=subprocess.PIPE)
    assert counting.stdout.readline() == b"ready\n"
    sending = hosts.start(0, [sys.executable, "-c", SEND, count], stdout=subprocess.PIPE)
    told, _ = sending.communicate(timeout=60)
    assert (sending.returncode, counting.wait(timeout=10)) == (0, 0)
    counting.stdout.close()
    return float(told)


@pytest.mark.parametrize("megabits", [4, 16])
def test_a_limited_link_passes_on_what_it_says(hosts, megabits):
    count = megabits * 125_000  # bytes of a second
    hosts.limit(megabits)
    taken = seconds_of(hosts, count)
    # A burst goes at once, and a frame of 1,448 bytes has 66 of headers. The machine may be busy, not faster.
    least = (count - namespaces.BURST) * 1514 / 1448 / count
    assert 0.98 * least < taken < 2, taken
    hosts.limit(None)
    assert seconds_of(hosts, count) < 0.5


def test_hosts_without_tc_are_one_line(monkeypatch):
    monkeypatch.setattr(namespaces.shutil, "which", lambda name: None)
    assert namespaces.without_limits() == "there is no command tc (package iproute2)"


def test_the_benchmark_says_why_it_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(namespaces, "missing", lambda: "only root may make network namespaces")
    monkeypatch.setattr(sys, "argv", ["links"])
    assert links.main() == 0
    assert "only root may make network namespaces" in capsys.readouterr().out


# What is made of the steps


def test_each_rate_has_its_steps_in_each_pass():
    rates = links.schedule((8, 1), 2)
    each = [None] * 3 + [8] * 3 + [1] * 3
    assert rates == [None] * links.WARM + each * links.PASSES + [None] * 2


def test_the_step_in_which_the_rate_changes_is_not_measured():
    rates = links.schedule((8,), 1)
    # A step takes 1 s without a limit, 3 s with it, and 100 s where the rate changes.
    moments = [(0.0, 0, 0)]
    for index in range(1, len(rates)):
        same = rates[index] == rates[index - 1] and index > links.WARM
        taken = {None: 1.0, 8: 3.0}[rates[index]] if same else 100.0
        last = moments[-1]
        moments.append((last[0] + taken, last[1] + 10, last[2] + 20))
    found = links.measured(rates, moments, 1)
    assert found[8] == {
        "seconds": [3.0] * links.PASSES,
        "sent": [10] * links.PASSES,
        "received": [20] * links.PASSES,
    }
    assert found[None]["seconds"] == [1.0] * links.PASSES


KEPT = {
    "alone": [0.9, 1.0, 5.0],
    "links": [
        {"megabits": None, "seconds": [1.0, 2.0, 3.0], "sent": [1_000_000], "received": [2_000_000]},
        {"megabits": 8, "seconds": [4.0, 4.0, 9.0], "sent": [1_000_000], "received": [2_000_000]},
    ],
}


def test_rows_compare_the_medians_with_the_ring():
    free, limited = links.rows_of(KEPT, 1_000_000)
    assert free == "| no limit | 1.00, 2.00 | 2.00 | | | | | | | |"
    # 1 MB at 8 Mbit/s is a second, but the link took 4 - 2. A ring would do two steps of 2 s in 2 + 1 s, one
    # that answers in 2 + 2 s.
    assert limited == "| 8 Mbit/s | 1.00, 2.00 | 4.00 | 2.00 | 1.00 | 2.00 | 3.00 | 1.000 | 1.333 | 1.000 |"


def test_the_section_names_its_command_and_what_it_took():
    lines = links.section({"command": "a command", "networks": {"A": KEPT}}, {"A": {"bytes": 1_000_000}})
    text = "\n".join(lines)
    assert "Measured by `a command`" in text and "### A, 1.00 MB of gradients" in text
    assert "Medians of 3 steps" in text and "0.90 to 5.00 s a step, the median of 3 is 1.00 s" in text
    assert len([line for line in lines if line.startswith("|")]) == 4


def test_what_is_measured_again_replaces_its_network_only(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "KEPT", tmp_path / "links.json")
    links.save({"A": 1, "B": 2}, links.STEPS)
    links.save({"B": 3}, links.STEPS)
    kept = json.loads(links.KEPT.read_text())
    assert kept["networks"] == {"A": 1, "B": 3}
    assert kept["command"] == "python -m benchmarks.links --save"
