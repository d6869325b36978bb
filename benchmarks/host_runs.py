"""Training runs on several hosts of one machine, for the drills: started, watched, compared at the end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.namespaces import Hosts
from model_utils.config import ROOT
from model_utils.errors import UserError

TOKEN = "HOSTS_DRILL"  # marks the processes of a drill in their environment
PATIENCE = 25  # seconds, --cluster_time_out where hosts wait in vain
LONG = 120  # the same where they meet: the hosts share the cores of one machine
START_SECONDS = 240  # until a run trains
END_SECONDS = 240
DANN = {
    "config": "configs/demo.yaml",
    "n_pretrain_epochs": 1,
    "n_epoch": 2,
    "steps_per_epoch": 15,
    "log_interval": 1,
    "eval_interval": 10**6,
    "save_checkpoint_steps": 2,
    "tensorboard": "false",
}
HARDNET = {
    "config": "configs/hardnet39ds_imagenette.yaml",
    "num_classes": 0,
    "image_size": 32,
    "epoch_size": 3,
    "batch_size": 8,
    "eval_batch_size": 8,
    "warmup_epochs": 0,
    "pretrained": "none",
    "log_interval": 1,
    "tensorboard": "false",
}
MASF = {
    "domain_set": "demo",
    "train_iterations": 4,
    "eval_interval": 4,
    "train_size_per_domain": 0,
    "meta_batch_size": 30,
}
ADDA = {
    "source_dataset_name": "demo_digits",
    "target_dataset_name": "demo_photos",
    "validation_size": 100,
    "protocol": "full",
    "iterations": 4,
    "discriminator_iterations": 4,
    "adversary_iterations": 4,
}


class Process:
    """One host's launcher."""

    def __init__(self, start, command, folder, name, **more):
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # The same arithmetic on one host with two processes and on two hosts with one each.
            "DA_CPU_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            TOKEN: str(folder),
            **more,
        }
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = start(command, stdout=out, stderr=err, env=environment)

    def output(self):
        """What it has printed."""
        return self.out.read_text(encoding="utf-8", errors="replace")

    def errors(self):
        """The lines on its standard error."""
        return self.err.read_text(encoding="utf-8", errors="replace").splitlines()


class Drill:
    """A run on the hosts of one drill, and what was wrong with how it ended.

    Args:
        folder: of everything it writes. count: hosts.
        processes: on each host; None where the script takes no number.
    """

    def __init__(self, folder, count=2, processes=1, keys=None):
        self.folder, self.hosts, self.local = folder, Hosts(count), processes
        self.keys = DANN if keys is None else keys
        self.names = self.hosts.addresses
        self.launchers, self.begun, self.wrong, self.seconds = [], None, [], 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        self.hosts.__enter__()
        return self

    def __exit__(self, *_):
        for launcher in self.launchers:
            if launcher.process.poll() is None:
                launcher.process.kill()
                launcher.process.wait()
        for pid in processes_of(self.folder):
            os.kill(pid, signal.SIGKILL)
        self.hosts.close()

    def output_dir(self, index):
        """Each host has its own: they share no disk."""
        return self.folder / f"host{index}"

    def start(
        self,
        each=None,
        hosts=None,
        root=None,
        environment=None,
        script="run_train_cpu",
        folder_key="output_dir",
        **keys,
    ):
        """Start the command on the hosts.

        Args:
            each: {index: options that this host has besides}. hosts: indices, default all.
            root: {index: another copy of the repository}. environment: {index: variables}.
            script: what is started. folder_key: its option for the host's folder.
            keys: options of all hosts besides.
        """
        self.launchers, self.begun = [], time.monotonic()
        for index in range(self.hosts.count) if hosts is None else hosts:
            options = {
                **self.keys,
                "hosts": ",".join(self.names),
                "cluster_time_out": LONG,
                folder_key: self.output_dir(index),
                **keys,
                **(each or {}).get(index, {}),
            }
            path = Path((root or {}).get(index, ROOT)) / "scripts" / f"{script}.sh"
            words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
            command = ["bash", path, *([str(self.local)] if self.local else ()), *words]
            self.launchers.append(
                Process(
                    lambda command, index=index, **more: self.hosts.start(index, command, **more),
                    command,
                    self.folder,
                    f"host{index}",
                    **(environment or {}).get(index, {}),
                )
            )

    def until(self, text):
        """Wait until the first host has printed `text`."""
        limit = time.monotonic() + START_SECONDS
        while text not in self.launchers[0].output():
            if time.monotonic() > limit or self.launchers[0].process.poll() is not None:
                raise UserError(f"{self.folder}: the run did not come to {text!r}; {self.told()}")
            time.sleep(0.05)
        self.begun = time.monotonic()

    def end(self, within):
        """Wait for all launchers; what has not ended `within` seconds is wrong."""
        limit = time.monotonic() + max(within, END_SECONDS)
        while any(x.process.poll() is None for x in self.launchers) and time.monotonic() < limit:
            time.sleep(0.05)
        left = processes_of(self.folder)
        while left and time.monotonic() < self.begun + within:
            time.sleep(0.2)
            left = processes_of(self.folder)
        self.seconds = time.monotonic() - self.begun
        self.check(self.seconds <= within, f"took {self.seconds:.0f} s, more than {within}")
        self.check(not left, f"{len(left)} processes are left")

    @property
    def statuses(self):
        """Of all hosts; None of a launcher that runs still."""
        return [launcher.process.returncode for launcher in self.launchers]

    def told(self):
        """The last line on the standard error of each host, without the folders."""
        lines = [(launcher.errors() or [""])[-1] for launcher in self.launchers]
        return [re.sub(r"(?<=[\s:])/\S*/", ".../", line) for line in lines]

    def check(self, right, otherwise):
        """Keep what is wrong."""
        if not right:
            self.wrong.append(otherwise)

    def must(self, status, *parts, hosts=None):
        """All hosts (or those given) ended with this status and one line that holds all parts."""
        for index, launcher in enumerate(self.launchers):
            if hosts is not None and index not in hosts:
                continue
            lines = launcher.errors()
            self.check(
                launcher.process.returncode == status, f"host {index}: status {launcher.process.returncode}"
            )
            self.check(len(lines) == (1 if parts else 0), f"host {index}: {len(lines)} lines: {lines[-2:]}")
            for part in parts:
                self.check(part in "".join(lines[-1:]), f"host {index}: {part!r} is not in {lines[-1:]}")

    def weights(self, folders=None):
        """{rank: the digest of its weights at the end}. folders: of these hosts; default all."""
        found = {}
        for index in range(self.hosts.count) if folders is None else folders:
            found |= weights(self.output_dir(index))
        return found

    def must_equal(self, reference, folders=None):
        """All ranks ended with the same weights, those of `reference`, {rank: digest}."""
        mine = self.weights(folders)
        self.check(len(mine) == self.hosts.count * self.local, f"weights of ranks {sorted(mine)} only")
        self.check(
            len({*mine.values(), *reference.values()}) == 1, f"weights {mine}, and {reference} on one host"
        )

    def worker(self, rank):
        """The process id of a rank."""
        for pid in processes_of(self.folder):
            environment = environment_of(pid)
            if (environment.get("MS_ROLE"), environment.get("RANK_ID")) == ("MS_WORKER", str(rank)):
                if "train.py" in command_of(pid):
                    return pid
        raise UserError(f"{self.folder}: there is no rank {rank}")

    def outcome(self):
        """What is kept of the drill."""
        return {
            "seconds": round(self.seconds, 1),
            "statuses": self.statuses,
            "lines": self.told(),
            "wrong": self.wrong,
        }


def weights(folder):
    """{rank: digest} of the logs in a run's folder, at its last end."""
    found = {}
    for path in Path(folder).glob("train*.log"):
        rank = int((re.search(r"rank(\d+)", path.name) or [0, 0])[1])
        digests = re.findall(r"weights after step \d+: (\w+)", path.read_text(encoding="utf-8"))
        if digests:
            found[rank] = digests[-1]
    return found


def environment_of(pid):
    """{name: value} of a process; {} if it has gone."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in content.split("\0") if "=" in entry)


def command_of(pid):
    """The words of a process's command; "" if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def processes_of(folder):
    """The process ids of everything a drill has started and that lives."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if environment_of(pid).get(TOKEN) == str(folder) and command_of(pid)]


def one_host(folder, processes, keys=DANN, **more):
    """Run the same on one host, this machine; (its digests, the Process)."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {**keys, "output_dir": folder / "run", **more}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = ["bash", str(ROOT / "scripts" / "run_train_cpu.sh"), str(processes), *words]
    process = Process(subprocess.Popen, [str(word) for word in command], folder, "one")
    process.process.wait(timeout=START_SECONDS + END_SECONDS)
    return weights(folder / "run"), process


class small_disk:  # noqa: N801 - a context manager
    """A folder on a file system of 3 MB."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", self.folder], check=True)

    def __exit__(self, *_):
        subprocess.run(["umount", "--lazy", self.folder], check=True)


def images(folder):
    """A small folder of images, three classes of stripes, for HarDNet; made once."""
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for number in range(3):
            place = folder / split / f"class{number}"
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                image = generator.integers(0, 80, (40, 40, 3), np.uint8)
                image[:: number + 2] += 120
                cv2.imwrite(str(place / f"{index:02d}.png"), image)
    return folder
