"""Runs `msrun` and watches its processes: one dead process ends the run at once, with a line that names it.

By itself msrun kills the others a second after one has died, but then waits half a minute for its scheduler,
ends in a traceback that names nobody, and has SIGKILL as its only answer to a signal. So it runs in a session
of its own here, and signals go to the training processes themselves, which save and leave.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from model_utils import agreement, leash, optional
from model_utils.config import ROOT
from model_utils.errors import UserError
from model_utils.link import Link, Outcome
from model_utils.worker import EXCEPTION, NOISE, USER_ERROR, Worker, lives, name_of, role_of

POLL_SECONDS = 0.05
FAILED_SECONDS = 3.0  # for the others to end after one has failed, before they are killed
SIGNALLED_SECONDS = 60.0  # to save and leave after a signal; the graph compiler may hold a process up
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STARTED = re.compile(r"^Start (scheduler|worker) process(?: with rank id:(\d+))?", re.MULTILINE)
NO_SERVER = "Failed to init the tcp server"  # MindSpore's scheduler, when its port is taken
CHECKPOINTS = "checkpoints"  # copies of the first host's, in the folder of logs
PEER = "stopped because of an error on rank"


class Watch:
    """The processes of one `msrun` on this host.

    Args:
        msrun: its Popen. job: the launch.Job it runs. log_dir: where the logs are.
        link: to the launchers of the other hosts; None where the run is on one.
    """

    def __init__(self, msrun, job, log_dir, link=None):
        import psutil

        self.port = job.meeting.port if job.meeting else None
        self.msrun, self.ranks, self.log_dir, self.link = msrun, job.ranks, Path(log_dir), link
        self.tree = psutil.Process(msrun.pid)
        self.children = {}  # {process id: process}, in the order they were started in
        self.workers = {}
        self.scheduler = None
        self.first_failed = None  # the worker whose failure ended the run
        self.named = None  # process id of the one that msrun saw fail first
        self.signal = None
        self.signals = 0
        self.untold = []  # signals that the other hosts have not heard of
        self.stopped = False  # because of another host
        self.deadline = None
        self.shown = None

    def run(self):
        """Watch until all is over; returns the Outcome of the run."""
        while self.msrun.poll() is None and not self._all_ended():
            self.hear()
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
        return self._outcome()

    def hear(self):
        """Tell the other hosts of signals, and take up what they told; returns whether any signal came."""
        if self.link is not None:
            while self.untold:
                self.link.signalled(self.untold.pop(0))
            for number in self.link.signals():
                self._note(signal.Signals(number))
            if self.link.stopping and not self.stopped:
                self.stopped = True
                self._set_deadline()
        return self.signal is not None

    def _set_deadline(self):
        limit = FAILED_SECONDS if self.signal is None else SIGNALLED_SECONDS
        self.deadline = min(self.deadline or float("inf"), time.monotonic() + limit)

    def _all_ended(self):
        return len(self.workers) == len(self.ranks) and all(w.ended for w in self.workers.values())

    def _find_workers(self):
        """Match msrun's children with the ranks it says it starts.

        A child's environment tells which it is. msrun has other children for moments, and a worker may die
        before it was looked at. Such workers are recognised by their order, once everything was started.
        """
        import psutil

        if len(self.workers) == len(self.ranks):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in sorted(self.tree.children(), key=lambda child: (child.create_time(), child.pid)):
                self.children.setdefault(child.pid, child)
        unknown = []
        for child in self.children.values():
            role, rank = role_of(child)
            if role is None:
                unknown.append(child)
            else:
                self._found(child, role, rank)
        started, whole = self._started()
        if whole:
            self._find_gone(started, [child for child in unknown if not lives(child)])

    def _started(self):
        """([(role, rank as text)] that msrun says it has started, whether all workers are among them)."""
        started = STARTED.findall(self._said())
        return started, sum(role == "worker" for role, _ in started) == len(self.ranks)

    def _find_gone(self, started, gone):
        """Match children that ended before they were looked at, by their place among those that were.

        started: [(role, rank as text)] in msrun's order. msrun says so before it starts a process. A child
        between the neighbours of a process is therefore that process; one before all others need not be one.
        """
        order = list(self.children)
        for place, (role, rank) in enumerate(started):
            if self._process(role, rank) is not None:
                continue
            known = [
                None if found is None else order.index(found.pid)
                for found in (self._process(*item) for item in started)
            ]
            before = [at for at in known[:place] if at is not None]
            after = [at for at in known[place + 1 :] if at is not None]
            between = range(max(before, default=-1) + 1, min(after, default=len(order)))
            if before or after:
                fitting = [child for child in gone if order.index(child.pid) in between]
                for child in fitting[:1] if before else fitting[-1:]:
                    self._found(child, role, rank)

    def _process(self, role, rank):
        """The process of a role and rank, None if it was not found yet."""
        if role == "scheduler":
            return self.scheduler and self.scheduler.process
        return next((w.process for w in self.workers.values() if w.rank == int(rank)), None)

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
        self._set_deadline()
        if self.link is not None and worker is not self.scheduler and not self._leaves_by_signal(worker):
            self.link.failing()

    def _leaves_by_signal(self, worker):
        """Whether a worker has ended as a signal asks for, that this launcher or another got."""
        return self.signal is not None and worker.status in (128 + self.signal, -self.signal)

    def _status_in_log(self, pid):
        """What msrun, the parent, says about a failed process that had gone before we looked at it."""
        found = re.search(rf"Worker process {pid} exit with exception. Error code: (-?\d+)", self._said())
        return int(found.group(1)) if found else None

    def on_signal(self, number, frame):
        """Signal handler: the loop passes it on. SIGHUP (the terminal was closed) counts as SIGTERM."""
        number = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        self.untold.append(int(number))
        self._note(number)

    def _note(self, number):
        self.signal = self.signal or number
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
        while well and self.link and self.msrun.poll() is None and not (self.hear() or self.stopped):
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

    def _outcome(self):
        failed = self._culprit()
        if failed is not None:
            return self._report(failed)
        if self.signal is not None:
            return Outcome(128 + self.signal)
        # Workers may end before they are looked at; msrun's own status then says that all of them ended well.
        if self._all_ended() or (self.msrun.returncode == 0 and self._started()[1]):
            return Outcome(0)
        if self.stopped:
            return Outcome(1, "its processes were stopped", follows=True)
        if self.msrun.returncode < 0:
            return Outcome(
                1, f"msrun was killed by {name_of(-self.msrun.returncode)}; its processes were stopped"
            )
        return Outcome(
            USER_ERROR, f"the processes could not be started; {self.log_dir / 'msrun.log'} says why"
        )

    def _culprit(self):
        """The worker to blame, or None: the first that failed, if possible one with an error of its own."""
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
                return Outcome(
                    USER_ERROR, f"master_port: {self.port} is in use; choose another --master_port"
                )
            line = f"{who}; the others were stopped; scheduler's log: {failed.log_path}"
            return Outcome(1, line, follows=True)
        if error := failed.error():
            if error.startswith(agreement.DIFFER):
                return Outcome(USER_ERROR, error)
            return Outcome(USER_ERROR, f"rank {failed.rank}: {error}", follows=error.startswith(PEER))
        if failed.status == -signal.SIGKILL and failed.was_leaving():
            how = "failed"  # msrun killed it on its way out
        elif failed.status < 0:
            how = f"was killed by {name_of(-failed.status)}"
        else:
            how = f"failed ({failed.status})"
        said = failed.last_line()
        said = f"; its last line: {said[:300]}" if said else ""
        line = f"rank {failed.rank} {how}; the others were stopped{said}; its log: {failed.log_path}"
        return Outcome(1, line, follows=self.stopped and failed.status == -signal.SIGKILL)


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
    """Run a job of several processes (jobs.Job); returns the exit status.

    0 when all processes ended well; 2 with one line on standard error when one of them met a user error; 1
    with a line that names the process when one of them died otherwise; 128 + number after a signal. With
    several hosts the line and the status are the same on all of them.
    """
    optional.require("psutil", "to watch several processes")
    early = []
    for number in HANDLED:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: early.append(number))
    log_dir = Path(next(word.split("=", 1)[1] for word in job.command if word.startswith("--log_dir=")))
    log = _open_log(log_dir, job.ranks)
    environment = {**environment, leash.VARIABLE: str(os.getpid())}
    link, watch = None, None
    with log:
        if job.team is not None:
            link = Link(job.team)
            environment[agreement.HOST] = job.team.name
            if not link.meet(lambda: early):
                return 128 + early[0]
            job = _with_checkpoints(link, job, log_dir)
        try:
            watch = _start(job, environment, log_dir, log, link)
            for number in HANDLED:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    signal.signal(number, watch.on_signal)
            for number in early:
                watch.on_signal(number, None)
            outcome = watch.run()
        except UserError as error:
            outcome = Outcome(USER_ERROR, str(error))
    if link is not None:
        shutil.rmtree(log_dir / CHECKPOINTS, ignore_errors=True)
        outcome = link.conclude(outcome, watch.hear if watch else lambda: bool(early))
    if outcome.status == USER_ERROR:
        raise UserError(outcome.line)
    if outcome.line:
        print(f"error: {outcome.line}", file=sys.stderr)
    return outcome.status


def _with_checkpoints(link, job, log_dir):
    """The job with the first host's checkpoints; from then on the hosts watch one another."""
    from model_utils import handing_out

    try:
        job = handing_out.run(link.team, link.wires, job, log_dir / CHECKPOINTS)
    except UserError as error:  # on another host than the first
        link.leave(Outcome(USER_ERROR, str(error)))
        raise
    link.keep()
    return job


def _start(job, environment, log_dir, log, link):
    """Start msrun; returns its Watch."""
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
            preexec_fn=leash.tied(signal.SIGKILL),
        )
    except OSError as error:
        raise UserError(f"cannot run msrun: {error.strerror}; it comes with MindSpore") from error
    return Watch(msrun, job, log_dir, link)
