"""A command of this repository as a child process that gets the signals sent to its parent."""

import ctypes
import signal
import subprocess
import sys

from model_utils.config import ROOT

PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """The child was ended by a signal that was sent to this process; `args[0]` is its number."""


def _end_with_parent():
    """Ask the kernel to end this process when its parent is gone, even if that was killed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run(words, output=None):
    """Run `python` with these words in the repository's root; returns its exit status.

    SIGTERM and SIGINT are passed on; once the child has saved and ended, so does the caller.

    Args:
        words: e.g. ["train.py", "--seed=1"].
        output: a file opened for writing that gets what it prints; None: the caller's.

    Raises:
        Stopped: a signal came meanwhile.
    """
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        start_new_session=True,
        stdout=output,
        stderr=output,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    received = []

    def pass_on(number, frame):
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Stopped(received[0])
    return status
