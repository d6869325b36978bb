"""What is done to runs on several hosts, and how each must end; benchmarks/hosts_drill.py runs them."""

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from benchmarks.host_runs import (
    ADDA,
    DANN,
    END_SECONDS,
    HARDNET,
    LONG,
    MASF,
    PATIENCE,
    Drill,
    images,
    one_host,
    small_disk,
    weights,
)
from benchmarks.namespaces import SshServers
from model_utils.config import ROOT
from model_utils.errors import UserError


class Drills:
    """All drills; each method `drill_…` is one: its docstring says what must be.

    Args:
        folder: everything is written there.
    """

    def __init__(self, folder):
        self.folder = folder
        self._references = {}

    def reference(self, name, processes, keys=DANN):
        """{rank: digest} of one host with as many processes; trained once."""
        if name not in self._references:
            found, process = one_host(self.folder / f"reference-{name}", processes, keys)
            if process.process.returncode or not found:
                raise UserError(f"the run on one host failed: {process.errors()[-1:]}")
            self._references[name] = found
        return self._references[name]

    def _plain(self, drill, *reference):
        """The outcome of a run that nothing is done to; `reference`: arguments of `reference`."""
        drill.start()
        drill.end(END_SECONDS)
        drill.must(0)
        drill.must_equal(self.reference(*reference))
        return drill.outcome()

    def drill_plain(self):
        """DANN, two hosts, a process each | weights equal on all ranks, and to one host with two processes"""
        with Drill(self.folder / "plain") as drill:
            return self._plain(drill, "dann2", 2)

    def drill_plain_two_each(self):
        """DANN, two hosts, two processes each | the same, one host with four"""
        with Drill(self.folder / "two-each", processes=2) as drill:
            return self._plain(drill, "dann4", 4)

    def drill_plain_three_hosts(self):
        """DANN, three hosts, a process each | the same, one host with three"""
        with Drill(self.folder / "three", count=3) as drill:
            return self._plain(drill, "dann3", 3)

    def drill_plain_hardnet(self):
        """HarDNet-39DS on a small folder, two hosts | the same, one host with two"""
        keys = {**HARDNET, "dataset_path": images(self.folder / "images")}
        with Drill(self.folder / "hardnet", keys=keys) as drill:
            return self._plain(drill, "hardnet2", 2, keys)

    def drill_worker_killed(self):
        """SIGKILL to the worker of the second host, then --resume true | status 1 within 60 s, host and rank
        named; identical end"""
        with Drill(self.folder / "worker") as drill:
            drill.start()
            drill.until("iter: 7 ")
            os.kill(drill.worker(1), signal.SIGKILL)
            drill.end(60)
            drill.must(1, f"host {drill.names[1]}: rank 1 was killed by SIGKILL")
            return self._resumed(drill)

    def _resumed(self, drill):
        """The outcome so far, after the run was continued on all hosts to an identical end."""
        kept = drill.outcome()
        drill.start(resume="true")
        drill.end(END_SECONDS)
        drill.must(0)
        drill.must_equal(self.reference("dann2", 2))
        return {**kept, "resumed": drill.statuses, "wrong": drill.wrong}

    def drill_launcher_killed(self):
        """SIGKILL to the launcher of the second host, then --resume true | the same, no process left"""
        with Drill(self.folder / "launcher") as drill:
            drill.start()
            drill.until("iter: 7 ")
            drill.launchers[1].process.kill()
            drill.end(60)
            drill.must(1, f"host {drill.names[1]} is gone: its launcher has ended", hosts=[0])
            return self._resumed(drill)

    def drill_first_launcher_killed(self):
        """SIGKILL to the launcher of the first host | the other ends with status 1 within 60 s, no process
        left"""
        with Drill(self.folder / "first") as drill:
            drill.start()
            drill.until("iter: 7 ")
            drill.launchers[0].process.kill()
            drill.end(60)
            drill.must(1, f"host {drill.names[0]} is gone: its launcher has ended", hosts=[1])
            return drill.outcome()

    def drill_launcher_killed_of_three(self):
        """SIGKILL to the launcher of the third host of three | both others name it within 60 s"""
        with Drill(self.folder / "third", count=3) as drill:
            drill.start()
            drill.until("iter: 7 ")
            drill.launchers[2].process.kill()
            drill.end(60)
            drill.must(1, f"host {drill.names[2]} is gone: its launcher has ended", hosts=[0, 1])
            return drill.outcome()

    def drill_link_cut_for_5_s(self):
        """The link is cut for 5 s | it goes on to the same end, or all stop"""
        with Drill(self.folder / "short-cut") as drill:
            drill.start()
            drill.until("iter: 7 ")
            drill.hosts.cut(1)
            time.sleep(5)
            drill.hosts.mend(1)
            drill.end(120)
            if drill.statuses == [0, 0]:
                drill.must_equal(self.reference("dann2", 2))
            else:
                drill.must(1, "host ")
            return drill.outcome()

    def drill_link_cut(self):
        """The link is cut for good | both stop within 120 s, each names the other"""
        with Drill(self.folder / "cut") as drill:
            drill.start()
            drill.until("iter: 7 ")
            drill.hosts.cut(1)
            drill.end(120)
            drill.must(1, f"host {drill.names[1]} has not answered", hosts=[0])
            drill.must(1, f"host {drill.names[0]} has not answered", hosts=[1])
            return drill.outcome()

    def drill_sigterm(self):
        """SIGTERM to the launcher of the second host, then --resume true | all save at the same step, status
        143; identical end"""
        with Drill(self.folder / "sigterm") as drill:
            drill.start()
            drill.until("iter: 7 ")
            drill.launchers[1].process.terminate()
            drill.end(60)
            drill.must(143)
            logs = [path.read_text() for i in (0, 1) for path in drill.output_dir(i).glob("train*.log")]
            steps = [re.findall(r"stopped by SIGTERM after step (\d+)", log) for log in logs]
            drill.check(len(steps) == 2 and steps[0] and steps[0] == steps[1], f"stopped at steps {steps}")
            return {**self._resumed(drill), "steps": steps}

    def drill_wrong_address(self):
        """--master_addr of nobody | one line, status 2, within cluster_time_out"""
        with Drill(self.folder / "address") as drill:
            drill.start(cluster_time_out=PATIENCE, master_addr="10.77.0.9")
            drill.end(PATIENCE + 15)
            drill.must(2, "10.77.0.9 is no address of this machine", hosts=[0])
            drill.must(2, "did not answer at 10.77.0.9", hosts=[1])
            return drill.outcome()

    def drill_port_in_use(self):
        """The port on the first host is another program's | the same"""
        held = "import socket,time; s=socket.socket(); s.bind(('0.0.0.0', 8118)); s.listen(); time.sleep(600)"
        with Drill(self.folder / "port") as drill:
            other = drill.hosts.start(0, [sys.executable, "-c", held])
            try:
                time.sleep(1)
                drill.start(cluster_time_out=PATIENCE)
                drill.end(PATIENCE + 15)
            finally:
                other.kill()
                other.wait()
            drill.must(2, "master_port: 8118 on 10.77.0.1 is in use", hosts=[0])
            drill.must(2, "did not answer at 10.77.0.1", hosts=[1])
            return drill.outcome()

    def drill_host_missing(self):
        """The third host of three never starts | the same, it is named on both others"""
        with Drill(self.folder / "missing", count=3) as drill:
            drill.start(cluster_time_out=PATIENCE, hosts=[0, 1])
            drill.end(PATIENCE + 15)
            drill.must(2, f"host {drill.names[2]} did not start within {PATIENCE} s")
            return drill.outcome()

    def drill_first_host_missing(self):
        """The first host never starts | the same"""
        with Drill(self.folder / "first-missing") as drill:
            drill.start(cluster_time_out=PATIENCE, hosts=[1])
            drill.end(PATIENCE + 15)
            drill.must(2, f"the first host, {drill.names[0]}, did not answer")
            return drill.outcome()

    def drill_hosts_disagree(self):
        """One host is told of two hosts, the other of three | the same"""
        with Drill(self.folder / "disagree") as drill:
            drill.start(cluster_time_out=PATIENCE, each={1: {"hosts": ",".join([*drill.names, "10.77.0.3"])}})
            drill.end(PATIENCE + 15)
            drill.must(2, f"host {drill.names[1]} was started with hosts")
            return drill.outcome()

    def drill_other_configuration(self):
        """--lr differs between the hosts | the same, it is named"""
        with Drill(self.folder / "configuration") as drill:
            drill.start(each={1: {"lr": 0.5}})
            drill.end(LONG)
            drill.must(2, f"rank 1 on {drill.names[1]} has lr 0.5 instead of")
            return drill.outcome()

    def drill_other_code(self):
        """A file of code differs between the hosts | the same, it is named"""
        copy = self.folder / "copy"
        for name in ("src", "model_utils", "scripts", "configs", "config.yaml"):
            source, target = ROOT / name, copy / name
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        for path in ROOT.glob("*.py"):
            shutil.copy(path, copy / path.name)
        with open(copy / "src" / "losses" / "adversarial.py", "a", encoding="utf-8") as handle:
            handle.write("# changed\n")
        with Drill(self.folder / "code") as drill:
            drill.start(root={1: copy})
            drill.end(LONG)
            drill.must(2, f"rank 1 on {drill.names[1]} has another src/losses/adversarial.py")
            return drill.outcome()

    def drill_clocks_an_hour_apart(self):
        """The clock of the second host is an hour ahead | the same weights"""
        library = self.folder / "later.so"
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, ROOT / "benchmarks" / "later.c"]
        if shutil.which("cc") is None:
            return {"not run": "there is no C compiler"}
        subprocess.run(command, check=True)
        with Drill(self.folder / "clocks") as drill:
            drill.start(environment={1: {"LD_PRELOAD": str(library)}})
            drill.end(END_SECONDS)
            drill.must(0)
            drill.must_equal(self.reference("dann2", 2))
            stamps = [
                datetime.datetime.fromisoformat(log.read_text(encoding="utf-8")[:19])
                for index in range(2)
                for log in drill.output_dir(index).glob("train*.log")
            ]
            apart = abs((stamps[1] - stamps[0]).total_seconds())
            drill.check(3500 < apart < 3700, f"the logs' clocks are {apart:.0f} s apart")
            return drill.outcome()

    def drill_slow_link(self):
        """Every frame between the hosts takes 10 ms each way | the same weights"""
        with Drill(self.folder / "slow") as drill:
            switch = drill.hosts.slow(0.01)
            try:
                drill.start()
                drill.end(END_SECONDS)
            finally:
                switch.kill()
                switch.wait()
            drill.must(0)
            drill.must_equal(self.reference("dann2", 2))
            return drill.outcome()

    def drill_too_slow_link(self):
        """50 ms each way, more than MindSpore waits for a connection | one line, status 2, within
        cluster_time_out"""
        with Drill(self.folder / "too-slow") as drill:
            switch = drill.hosts.slow(0.05)
            try:
                drill.start(cluster_time_out=PATIENCE)
                drill.end(PATIENCE + 15)
            finally:
                switch.kill()
                switch.wait()
            drill.must(2, f"host {drill.names[1]} is 10", "ms away")
            return drill.outcome()

    def drill_evaluation(self):
        """Evaluation on two hosts, the checkpoint on the first alone | the accuracies of one host, each image
        counted once"""
        self.reference("dann2", 2)
        run = self.folder / "reference-dann2" / "run"
        result = self.folder / "evaluation" / "result.json"
        keys = {"config": "configs/demo.yaml"}
        with Drill(self.folder / "evaluation", processes=None, keys=keys) as drill:
            drill.start(each={0: {"output_dir": run, "result": result}}, script="run_eval_cpu")
            drill.end(END_SECONDS)
            drill.must(0)
            found = json.loads(result.read_text(encoding="utf-8"))["accuracy"]
            before = json.loads((run / "result.json").read_text(encoding="utf-8"))["accuracy"]
            drill.check(found == before, f"accuracies {found}, on one host {before}")
            images = re.findall(r"(\d+) images in", drill.launchers[0].output())
            drill.check(images == ["1776"], f"{images} images, there are 1776")
            return drill.outcome()

    def drill_masf_script(self):
        """scripts/run_masf_digits.sh on made digits, twice | the same table on both hosts; the second time
        every run is kept"""
        keys = {**MASF, "methods": "masf", "targets": 50, "seeds": 0}
        with Drill(self.folder / "masf", processes=None, keys=keys) as drill:
            total = 0.0
            for round_ in range(2):
                drill.start(script="run_masf_digits", folder_key="folder")
                drill.end(END_SECONDS)
                total += drill.seconds
                drill.must(0)
                shown = [launcher.output() for launcher in drill.launchers]
                tables = [text[text.find("| left out") :] for text in shown]
                drill.check(tables[0] == tables[1] and "| 50 |" in tables[0], f"tables {tables}")
                for text in shown:
                    drill.check(("kept: " in text) == (round_ == 1), f"round {round_}: {text[-200:]}")
            drill.seconds = total
            return drill.outcome()

    def drill_adda_script(self):
        """scripts/usps-mnist.sh on made digits: two trainings and two evaluations | all four end well;
        the second training goes on with the first one's network"""
        with Drill(self.folder / "adda", processes=None, keys=ADDA) as drill:
            drill.start(script="usps-mnist")
            drill.end(2 * END_SECONDS)
            drill.must(0)
            text = drill.launchers[0].output()
            drill.check(text.count("domain accuracy") >= 4, f"it printed {text[-300:]}")
            drill.check((drill.output_dir(0) / "adapted" / "result.json").is_file(), "there is no result")
            return drill.outcome()

    def drill_over_ssh(self):
        """One command on the first host starts both over ssh, with a real sshd on each | the same weights
        as on one host; a value full of quotes arrives as it is"""
        if shutil.which("sshd") is None:
            return {"not run": "there is no sshd"}
        value = """a b; 'q' "r" $(id) `id` \\ é"""
        with Drill(self.folder / "ssh") as drill, SshServers(drill.hosts, self.folder / "ssh-keys") as ssh:
            drill.start(hosts=[0], ssh=ssh.command, experiment=value)
            drill.end(END_SECONDS)
            drill.must(0)
            drill.check(len(weights(drill.output_dir(0))) == 2, "there are not two ranks")
            drill.must_equal(self.reference("dann2", 2), folders=[0])
            said = json.loads((drill.output_dir(0) / "result.json").read_text(encoding="utf-8"))
            drill.check(said["experiment"] == value, f"it arrived as {said['experiment']}")
            return drill.outcome()

    def drill_over_ssh_signalled(self):
        """SIGKILL to that command | both hosts save and leave within 60 s, no process left"""
        if shutil.which("sshd") is None:
            return {"not run": "there is no sshd"}
        with Drill(self.folder / "ssh2") as drill, SshServers(drill.hosts, self.folder / "ssh-keys") as ssh:
            drill.start(hosts=[0], ssh=ssh.command)
            drill.until("iter: 7 ")
            drill.launchers[0].process.kill()
            drill.end(60)
            logs = [path.read_text() for path in drill.output_dir(0).glob("train*.log")]
            steps = [re.findall(r"stopped by SIGTERM after step (\d+)", log) for log in logs]
            drill.check(len(steps) == 2 and steps[0] and steps[0] == steps[1], f"stopped at steps {steps}")
            return drill.outcome()

    def drill_full_disk(self):
        """The disk of the first host is full | status 2 and the same line as on one host"""
        lines = []
        with Drill(self.folder / "disk") as drill:
            full = drill.output_dir(0)
            with small_disk(full):
                drill.start(each={0: {"log_dir": self.folder / "disk" / "logs"}})
                drill.end(END_SECONDS)
            lines.append(drill.told()[0])
            drill.must(2, f"host {drill.names[0]}: rank 0: ")
            alone = self.folder / "disk-alone"
            with small_disk(alone / "run"):
                _, process = one_host(alone, 2, log_dir=alone / "logs")
            lines.append(re.sub(r"(?<=[\s:])/\S*/", ".../", (process.errors() or [""])[-1]))
            plain = [re.sub(r"host \S+: ", "", line) for line in lines]
            drill.check(plain[0] == plain[1], f"on one host: {lines[1]}")
            return {**drill.outcome(), "one host": lines[1]}
