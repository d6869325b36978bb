"""Commands of this repository as child processes that get the signals sent to their parent."""

import contextlib
import os
import signal
import subprocess
import sys

from model_utils import leash
from model_utils.config import ROOT


class Stopped(Exception):
    """The children were ended by a signal that was sent to this process; `args[0]` is its number."""


class Group:
    """A context, entered in the main thread, in which commands run; several at once from as many threads.

    SIGTERM and SIGINT are passed on to all of them; once they have saved and ended, so does the context.

    Args:
        folder: where they run; the repository's root unless given.

    Raises:
        Stopped: at its end, if a signal came meanwhile.
    """

    def __init__(self, folder=ROOT):
        self.folder, self.processes, self.received, self.before = folder, [], [], {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, kind, error, traceback):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.received:
            raise Stopped(self.received[0]) from error

    def _pass_on(self, number, frame):
        self.received.append(number)
        for process in list(self.processes):
            process.send_signal(number)

    def run(self, words, output=None, cores=None, until=None):
        """Run `python` with these words; returns its exit status.

        Args:
            words: e.g. ["train.py", "--seed=1"].
            output: a file opened for writing that gets what it prints; None: the caller's.
            cores: set of processors it keeps to; None: all that the caller has.
            until: called twice a second; once it returns True, the command gets SIGTERM.

        Raises:
            Stopped: a signal came before it was started.
        """

        tied = leash.tied()

        def prepare():
            if tied:
                tied()
            if cores:
                os.sched_setaffinity(0, cores)

        if self.received:
            raise Stopped(self.received[0])
        share = {name: str(len(cores)) for name in ("OMP_NUM_THREADS", "DA_CPU_THREADS")} if cores else {}
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            start_new_session=True,
            stdout=output,
            stderr=output,
            env={**os.environ, **share},
            preexec_fn=prepare,
        )
        self.processes.append(process)
        if self.received:  # between the question and the start
            process.send_signal(self.received[0])
        status, told = None, False
        while status is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout=0.5 if until and not told else None)
            if status is None and until():
                told = True
                process.send_signal(signal.SIGTERM)
        self.processes.remove(process)
        return status


def run(words, output=None):
    """Run one command, as `Group.run` does.

    Raises:
        Stopped: a signal came meanwhile.
    """
    with Group() as group:
        return group.run(words, output)


def shares(workers):
    """[set of processors] for `workers` commands at once; None for one alone, or if there are too few.

    The sets are disjoint and of about equal size.
    """
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if workers == 1 or len(every) < workers:
        return [None] * workers
    return [set(every[number::workers]) for number in range(workers)]
