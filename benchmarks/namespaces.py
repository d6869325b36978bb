"""Several hosts on one machine: network namespaces, each with an address of its own, joined by a bridge.

with Hosts(2) as hosts:
    process = hosts.start(1, ["bash", "scripts/run_train_cpu.sh", …])   # on the second host
    hosts.cut(1)                                                      # pull its plug
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time

from model_utils.config import ROOT
from model_utils.errors import UserError

NETWORK = "10.77.0"
SWITCH = [sys.executable, "-m", "benchmarks.slow_switch"]
FRAMES = 1000  # of 1,500 bytes, that may wait before a limited link; what the kernel gives an interface
BURST = 16 * 1024  # bytes that leave it at once after a pause
PASSED = ("DA_CPU_THREADS", "OMP_NUM_THREADS", "HOSTS_DRILL")  # variables that reach the other side of ssh


def missing():
    """Why hosts cannot be made here, in one line; "" if they can."""
    if shutil.which("ip") is None:
        return "there is no command ip (package iproute2)"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    try:
        with Hosts(2):
            return ""
    except UserError as error:
        return str(error)


def without_limits():
    """Why links cannot be limited here, in one line; "" if they can."""
    if shutil.which("tc") is None:
        return "there is no command tc (package iproute2)"
    try:
        with Hosts(2) as hosts:
            hosts.cubic()
            hosts.limit(1)
            return ""
    except UserError as error:
        return str(error)


def ip(*words, namespace=None, program="ip"):
    """Run `ip` or `tc`, in a namespace if one is given; UserError with what it says where it fails."""
    command = [program, *(("-n", namespace) if namespace else ()), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


class Hosts:
    """`count` hosts with the addresses 10.77.0.1, .2, …, and the switch between them; a context manager.

    Everything, the switch too, lies in namespaces of its own: the machine's network is left alone.
    """

    def __init__(self, count):
        self.count, self._name, self._limited = count, f"drill{os.getpid()}", False
        self.addresses = [f"{NETWORK}.{index + 1}" for index in range(count)]
        self._switch = f"{self._name}-switch"

    def namespace(self, index):
        """The name of a host's namespace."""
        return f"{self._name}-{index}"

    def __enter__(self):
        try:
            ip("netns", "add", self._switch)
            ip("link", "add", "switch", "type", "bridge", namespace=self._switch)
            ip("link", "set", "switch", "up", namespace=self._switch)
            for index, address in enumerate(self.addresses):
                own = self.namespace(index)
                ip("netns", "add", own)
                ip("link", "set", "lo", "up", namespace=own)
                port = f"port{index}"
                ip(
                    "link",
                    "add",
                    port,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    own,
                    namespace=self._switch,
                )
                ip("link", "set", port, "master", "switch", "up", namespace=self._switch)
                ip("addr", "add", f"{address}/24", "dev", "eth0", namespace=own)
                ip("link", "set", "eth0", "up", namespace=own)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Remove the hosts; what still runs in one keeps its namespace until it ends."""
        for name in (*(self.namespace(index) for index in range(self.count)), self._switch):
            with contextlib.suppress(UserError):  # where it could not be made
                ip("netns", "del", name)

    def start(self, index, command, **keys):
        """Popen of a command on a host."""
        return subprocess.Popen(["ip", "netns", "exec", self.namespace(index), *map(str, command)], **keys)

    def slow(self, seconds):
        """Put a switch between two hosts that keeps every frame for `seconds`; returns its Popen."""
        for index in range(2):
            ip("link", "set", f"port{index}", "nomaster", "promisc", "on", namespace=self._switch)
        self.plain()
        command = ["ip", "netns", "exec", self._switch, *SWITCH, "port0", "port1", str(seconds)]
        return subprocess.Popen(command, cwd=ROOT)

    def plain(self):
        """Have the hosts send frames no larger than the network allows, as they leave a real interface."""
        for index in range(self.count):
            self.start(index, [*SWITCH, "plain", "eth0"], cwd=ROOT).wait()

    def cubic(self):
        """Have new connections use TCP's usual congestion control, whatever that of this machine is."""
        for index, address in enumerate(self.addresses):
            route = "route", "replace", f"{NETWORK}.0/24", "dev", "eth0", "proto", "kernel", "scope", "link"
            ip(*route, "src", address, "congctl", "cubic", namespace=self.namespace(index))

    def limit(self, megabits):
        """Let no host send more than this many 10^6 bits a second; None takes the limit away.

        It is the kernel's token bucket (tc-tbf): frames wait in a queue of FRAMES, and what comes when that
        is full is lost. Frames count with their Ethernet header of 14 bytes.

        Raises:
            UserError: the kernel has none.
        """
        for index in range(self.count):
            where = "dev", "eth0", "root"
            own = {"namespace": self.namespace(index), "program": "tc"}
            if megabits is not None:
                rate = "rate", f"{megabits}mbit", "burst", BURST, "limit", FRAMES * 1500
                ip("qdisc", "replace", *where, "tbf", *rate, **own)
            elif self._limited:
                ip("qdisc", "del", *where, **own)
        self._limited = megabits is not None

    def cut(self, index):
        """Pull the cable of a host out of the switch; its own interface stays up."""
        ip("link", "set", f"port{index}", "nomaster", namespace=self._switch)

    def mend(self, index):
        """Put the cable back."""
        ip("link", "set", f"port{index}", "master", "switch", namespace=self._switch)


class SshServers:
    """An sshd on each host that lets in whoever has the key it makes; a context manager.

    Args:
        hosts: Hosts that are up. folder: Path for keys and settings.

    Attributes:
        command: the ssh that reaches them.
    """

    def __init__(self, hosts, folder):
        self.hosts, self.folder, self._servers = hosts, folder, []
        self.command = f"ssh -F {folder / 'client'}"

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        os.makedirs("/run/sshd", exist_ok=True)
        for name in ("server", "user"):
            key = self.folder / f"{name}-key"
            if not key.exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        keys = (self.folder / "user-key.pub").read_text()
        (self.folder / "authorized").write_text(keys)
        (self.folder / "server").write_text(
            f"HostKey {self.folder / 'server-key'}\nAuthorizedKeysFile {self.folder / 'authorized'}\n"
            "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPidFile none\n"
            f"AcceptEnv {' '.join(PASSED)}\n"
        )
        (self.folder / "client").write_text(
            f"IdentityFile {self.folder / 'user-key'}\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
            f"UserKnownHostsFile {self.folder / 'known'}\nLogLevel ERROR\nSendEnv {' '.join(PASSED)}\n"
        )
        for index in range(self.hosts.count):
            command = [shutil.which("sshd"), "-D", "-e", "-f", self.folder / "server"]
            with open(self.folder / f"server{index}.log", "ab") as log:
                self._servers.append(self.hosts.start(index, command, stderr=log))
        time.sleep(1)
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.terminate()
            server.wait()
