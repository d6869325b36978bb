"""No process outlives the launcher or the script that started it, not even one that was killed by SIGKILL.

Linux ends a process with its parent where the process asks for that (prctl, PR_SET_PDEATHSIG). msrun, which
stands between launcher and training processes, does not ask; the launcher asks for it, and each training
process asks for itself.
"""

import ctypes
import os
import signal
import sys

VARIABLE = "DA_LAUNCHER"  # process id of the launcher or script that a process belongs to
PR_SET_PDEATHSIG = 1


def tied(number=signal.SIGTERM):
    """A `preexec_fn`: the child gets signal `number` when this process ends. None where there is no prctl."""
    if sys.platform != "linux":
        return None
    library, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def ask():
        library.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(128 + number)

    return ask


def obey():
    """End with whoever `VARIABLE` names, if that is this process's parent, or the parent of its msrun."""
    owner = os.environ.get(VARIABLE, "")
    if sys.platform != "linux" or not owner.isdigit():
        return
    library, parent = ctypes.CDLL(None, use_errno=True), os.getppid()
    if "MS_ROLE" in os.environ:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if _parent_of(parent) != int(owner):  # one of the two has ended before
            os._exit(128 + signal.SIGKILL)
    elif parent == int(owner):
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)


def _parent_of(pid):
    """The parent of a process, None if that has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            return int(handle.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
