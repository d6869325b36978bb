"""Runs `msrun` and watches its processes: one dead process ends the run at once, with a line that names it.

By itself msrun kills the others a second after one has died, but then waits half a minute for its scheduler,
ends in a traceback that names nobody, and has SIGKILL as its only answer to a signal. So it runs in a session
of its own here, and signals go to the training processes themselves, which save and leave.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from model_utils import optional
from model_utils.config import ROOT
from model_utils.errors import UserError

POLL_SECONDS = 0.05
FAILED_SECONDS = 3.0  # for the others to end after one has failed, before they are killed
SIGNALLED_SECONDS = 60.0  # to save and leave after a signal; the graph compiler may hold a process up
USER_ERROR = 2
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# MindSpore's own lines, e.g. "[WARNING] DISTRIBUTED(123,7f…,python):2026-…": for the log file only.
NOISE = re.compile(rb"\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\] [A-Z_]+\([0-9]+,")
EXCEPTION = re.compile(r"[A-Za-z_][A-Za-z_.]*(Error|Exception)\b")
STARTED = re.compile(r"^Start (scheduler|worker) process(?: with rank id:(\d+))?", re.MULTILINE)
NO_SERVER = "Failed to init the tcp server"  # MindSpore's scheduler, when its port is taken
PEER = "stopped because of an error on rank"


class Worker:
    """One training process: its rank on all hosts, and how it ended."""

    def __init__(self, process, rank, log_path):
        self.process, self.rank, self.log_path = process, rank, log_path
        self.ended = False
        self.status = None  # exit status, or minus the signal that killed it; None: not known
        self.told = 0  # signals passed on

    def poll(self):
        """Notice the end of the process.

        msrun is its parent and collects it within a second; until then /proc holds its exit status.
        """
        if self.ended:
            return
        try:
            with open(f"/proc/{self.process.pid}/stat", encoding="utf-8", errors="replace") as handle:
                # The name in brackets may hold spaces; the state is what follows it, the status comes last.
                fields = handle.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            self.ended = True
            return
        if fields[0] in "ZX":
            self.ended = True
            code = int(fields[-1])
            self.status = -(code & 127) if code & 127 else code >> 8

    def text(self):
        """What it wrote."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _lines(self):
        """What it wrote, without MindSpore's own lines."""
        return [line for line in self.text().splitlines() if line.strip() and not NOISE.match(line.encode())]

    def error(self):
        """The text of the `error: …` line that a command ends with after a user error; "" without one."""
        lines = [line for line in self._lines() if line.startswith("error: ")]
        return lines[-1][len("error: ") :] if lines and self.status in (USER_ERROR, -signal.SIGKILL) else ""

    def was_leaving(self):
        """Whether the last thing it wrote is an exception that nobody caught."""
        lines = self._lines()
        return bool(lines and EXCEPTION.match(lines[-1]))

    def last_line(self):
        """The line of the last exception it printed, else its last line; "" for an empty log."""
        lines = self._lines()
        exceptions = [line for line in lines if EXCEPTION.match(line)]
        return " ".join("".join(exceptions[-1:] or lines[-1:]).split())


class Watch:
    """The processes of one `msrun` on this host.

    Args:
        msrun: its Popen. job: the launch.Job it runs. log_dir: where the logs are.
    """

    def __init__(self, msrun, job, log_dir):
        import psutil

        ranks, alone = job.ranks, job.alone
        self.port = job.meeting.port if job.meeting else None

        self.msrun, self.ranks, self.log_dir = msrun, ranks, Path(log_dir)
        self.alone = alone
        self.tree = psutil.Process(msrun.pid)
        self.children = {}  # {process id: process}, in the order they were started in
        self.workers = {}
        self.scheduler = None
        self.first_failed = None  # the worker whose failure ended the run
        self.named = None  # process id of the one that msrun saw fail first
        self.signal = None
        self.signals = 0
        self.deadline = None
        self.shown = None

    def run(self):
        """Watch until all is over; returns the exit status."""
        while self.msrun.poll() is None and not self._all_ended():
            self._find_workers()
            for worker in [*self.workers.values(), *([self.scheduler] if self.scheduler else [])]:
                worker.poll()
                if worker.ended and worker.status is None:
                    worker.status = self._status_in_log(worker.process.pid)
                if worker.status and self.first_failed is None:
                    self._failed(worker)
            self._pass_on_signal()
            self.show()
            if self.deadline is not None and time.monotonic() > self.deadline:
                break
            time.sleep(POLL_SECONDS)
        self._finish()
        return self._status()

    def _all_ended(self):
        return len(self.workers) == len(self.ranks) and all(w.ended for w in self.workers.values())

    def _find_workers(self):
        """Match msrun's children with the ranks it says it starts.

        A child's environment tells which it is. msrun has other children for moments, and a worker may die
        before it was looked at: such ones are told by their order, once everything was started.
        """
        import psutil

        if len(self.workers) == len(self.ranks):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in sorted(self.tree.children(), key=lambda child: (child.create_time(), child.pid)):
                self.children.setdefault(child.pid, child)
        started = STARTED.findall(self._said())
        unknown = []
        for child in self.children.values():
            role, rank = _role(child)
            if role is None:
                unknown.append(child)
            else:
                self._found(child, role, rank)
        if sum(role == "worker" for role, _ in started) == len(self.ranks):
            waiting = [item for item in started if not self._has(*item)]
            gone = [child for child in unknown if not _lives(child)][-len(waiting) :] if waiting else []
            for child, (role, rank) in zip(gone, waiting):  # noqa: B905 - one may lag behind
                self._found(child, role, rank)

    def _has(self, role, rank):
        if role == "scheduler":
            return self.scheduler is not None
        return any(worker.rank == int(rank) for worker in self.workers.values())

    def _found(self, child, role, rank):
        if role == "scheduler" and self.scheduler is None:
            self.scheduler = Worker(child, None, self.log_dir / "scheduler.log")
        if role == "worker" and child.pid not in self.workers:
            self.workers[child.pid] = Worker(child, int(rank), self.log_dir / f"worker_{rank}.log")

    def _said(self):
        """What msrun has written itself."""
        return (self.log_dir / "msrun.log").read_text(encoding="utf-8", errors="replace")

    def _failed(self, worker):
        self.first_failed = worker
        limit = FAILED_SECONDS if self.signal is None else SIGNALLED_SECONDS
        self.deadline = min(self.deadline or float("inf"), time.monotonic() + limit)

    def _status_in_log(self, pid):
        """What msrun, the parent, says about a failed process that had gone before we looked at it."""
        found = re.search(rf"Worker process {pid} exit with exception. Error code: (-?\d+)", self._said())
        return int(found.group(1)) if found else None

    def on_signal(self, number, frame):
        """Signal handler: the loop passes it on. SIGHUP (the terminal was closed) counts as SIGTERM."""
        self.signal = self.signal or (signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number))
        self.signals += 1

    def _pass_on_signal(self):
        import psutil

        if self.signal is None:
            return
        if self.deadline is None:
            self.deadline = time.monotonic() + SIGNALLED_SECONDS
        for worker in self.workers.values():
            if not worker.ended and worker.told < self.signals:
                worker.told = self.signals
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.process.send_signal(self.signal)

    def show(self):
        """Copy what the first process of this host has written since to standard output."""
        if self.shown is None:
            try:
                self.shown = open(self.log_dir / f"worker_{self.ranks[0]}.log", "rb")  # noqa: SIM115
            except FileNotFoundError:
                return
        place = self.shown.tell()
        text = self.shown.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.shown.seek(place + len(whole))
        # Errors come once, at the end, with the rank they belong to.
        lines = [x for x in whole.splitlines(True) if not NOISE.match(x) and not x.startswith(b"error: ")]
        try:
            sys.stdout.write(b"".join(lines).decode(errors="replace"))
            sys.stdout.flush()
        except BrokenPipeError:
            # Nobody reads any more (`| head`): stop as one process would, and write nowhere meanwhile.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
            self.on_signal(signal.SIGTERM, None)

    def _finish(self):
        """End what is left: nothing of the run outlives the launcher."""
        import psutil

        well = self._all_ended() and self.first_failed is None and self.signal is None
        while well and not self.alone and self.msrun.poll() is None and self.signal is None:
            time.sleep(POLL_SECONDS)  # this host's scheduler may still serve the others
        # Now, before msrun sees the end of those that are killed here.
        named = re.search(r"Worker process (\d+) exit with exception", self._said())
        self.named = int(named.group(1)) if named else None
        left = [worker.process for worker in self.workers.values()]
        with contextlib.suppress(psutil.NoSuchProcess):
            left += [self.tree, *self.tree.children(recursive=True)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.msrun.wait()
        self.show()

    def _status(self):
        failed = self._culprit()
        if failed is not None:
            return self._report(failed)
        if self.signal is not None:
            return 128 + self.signal
        if not self._all_ended() and self.msrun.returncode != 0:
            raise UserError(f"the processes could not be started; {self.log_dir / 'msrun.log'} says why")
        return 0

    def _culprit(self):
        """The worker to blame, or None: the first that failed, and rather one with an error of its own."""
        # After a signal msrun kills whoever is left as soon as the first has gone.
        number = self.signal
        stopped = {128 + number, -number, -signal.SIGKILL} if number is not None else set()
        failed = [w for w in self.workers.values() if w.status and w.status not in stopped]
        if self.first_failed in failed and self.first_failed.status == -signal.SIGKILL:
            # msrun kills the others once one has failed, and says which one that was.
            self.first_failed = self.workers.get(self.named, self.first_failed)
        if self.first_failed is self.scheduler and self.scheduler is not None:
            return next((w for w in failed if w.error()), self.scheduler)
        if self.first_failed not in failed:
            return failed[0] if failed else None
        if self.first_failed.status == USER_ERROR:
            # A rank that only heard of another's error may end before that one does.
            candidates = [self.first_failed, *failed]
            own = [w for w in candidates if w.error() and not w.error().startswith(PEER)]
            bugs = [w for w in failed if not w.error() and EXCEPTION.match(w.last_line())]
            return (own or bugs or [self.first_failed])[0]
        return self.first_failed

    def _report(self, failed):
        if failed is self.scheduler:
            # The scheduler hears from every rank: one on another host has not answered for half a minute.
            ranks = re.search(r"node list is: \[const vector\]\{([0-9, ]+)\}", failed.text())
            who = f"rank {ranks.group(1)} is gone" if ranks else "the scheduler failed"
            if NO_SERVER in failed.text():
                raise UserError(f"master_port: {self.port} is in use; choose another --master_port")
            print(
                f"error: {who}; the others were stopped; scheduler's log: {failed.log_path}", file=sys.stderr
            )
            return 1
        if failed.error():
            raise UserError(f"rank {failed.rank}: {failed.error()}")
        if failed.status == -signal.SIGKILL and failed.was_leaving():
            how = "failed"  # msrun killed it on its way out
        elif failed.status < 0:
            how = f"was killed by {_name(-failed.status)}"
        else:
            how = f"failed ({failed.status})"
        said = failed.last_line()
        said = f"; its last line: {said[:300]}" if said else ""
        print(
            f"error: rank {failed.rank} {how}; the others were stopped{said}; its log: {failed.log_path}",
            file=sys.stderr,
        )
        return 1


def _role(process):
    """("scheduler", None) or ("worker", rank as text) by a process's environment; (None, None) if that says
    nothing, or the process has ended."""
    import psutil

    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None, None
    role = {"MS_SCHED": "scheduler", "MS_WORKER": "worker"}.get(environment.get("MS_ROLE"))
    rank = environment.get("RANK_ID", "")
    return (role, rank) if role == "scheduler" or (role and rank.isdigit()) else (None, None)


def _lives(process):
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _open_log(log_dir, ranks):
    """msrun's own log in the folder of logs; UserError unless msrun can write all of them there."""
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        for name in ("scheduler.log", *(f"worker_{rank}.log" for rank in ranks)):
            with open(log_dir / name, "ab"):
                pass
            (log_dir / name).unlink()  # of an earlier run
        return open(log_dir / "msrun.log", "wb")
    except OSError as error:
        place = error.filename or log_dir
        raise UserError(
            f"cannot write the processes' logs into {log_dir}: {place}: {error.strerror}; "
            "choose another --log_dir or --output_dir"
        ) from error


def run(job, environment):
    """Run a job of several processes (launch.Job); returns the exit status.

    0 when all processes ended well; 2 with one line on standard error when one of them met a user error; 1
    with a line that names the process when one of them died otherwise; 128 + number after a signal.
    """
    log_dir = next(word.split("=", 1)[1] for word in job.command if word.startswith("--log_dir="))
    optional.require("psutil", "to watch several processes")
    log = _open_log(Path(log_dir), job.ranks)
    early = []
    for number in HANDLED:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: early.append(number))
    with log:
        try:
            msrun = subprocess.Popen(
                job.command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches the whole foreground group; msrun would answer with SIGKILL.
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"cannot run msrun: {error.strerror}; it comes with MindSpore") from error
        watch = Watch(msrun, job, log_dir)
        for number in HANDLED:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, watch.on_signal)
        for number in early:
            watch.on_signal(number, None)
        return watch.run()
