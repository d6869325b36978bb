"""What the commands share: how errors reach the user, those of the options among them."""

import argparse
import errno
import os
import signal
import sys
import time
import warnings

from model_utils import leash
from model_utils.errors import PeerError, UserError
from model_utils.quiet import hide_warnings

# What the operating system refuses for a reason outside of this program; anything else may be a bug.
OTHER_REFUSALS = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "this link leads back to itself, or through too many others",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "a folder lies where a file is to be written or read",
    errno.EEXIST: "something else lies there already",
    errno.EIO: "the disk or the network it lies on can't be read or written",
    errno.ESTALE: "the network folder is not there any more",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files",
}
PEER_SECONDS = 3.0
# What MindSpore's RuntimeErrors say, on a CPU and on devices.
NO_MEMORY = (
    "memory not enough",
    "memory isn't enough",
    "memory is not enough",
    "out of memory",
    "allocate memory failed",
)


class Parser(argparse.ArgumentParser):
    """Refuses bad options in one line, as all commands do."""

    def error(self, message):
        raise UserError(f"{message}; --help explains the options")


def positive(text):
    """An argparse type: a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _one_line_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=file or sys.stderr)


def _mend(error):
    """One line about an error of the operating system that the user can mend; None for other errors."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"the disk is full{where}: free some space and start again (train.py with --resume true goes on)"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed to write or read{where}: choose a folder you own"
    if error.errno in OTHER_REFUSALS:
        return f"{error.strerror}{where}: {OTHER_REFUSALS[error.errno]}"
    return None


def _out_of_memory(error):
    """One line if the machine or the device had too little memory, else None."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in NO_MEMORY):
        lines = [line for line in text.splitlines() if line.strip("- ")]
        return (
            "there is not enough memory: choose a smaller batch_size or image_size, or stop other programs "
            f"({lines[0].strip() if lines else 'no more is known'})"
        )
    return None


def _discard_output():
    """Discard what is still buffered for standard output, so that writing it at exit does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _usable_streams():
    """Give the process standard streams that any line can be written to.

    A closed stream is opened as /dev/null. Otherwise the next file that is opened would get its number, and
    printed lines would be written into that file. What a terminal's encoding lacks (λ in the C locale) is
    shown as an escape such as \\u03bb.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(line):
    print(f"error: {line}", file=sys.stderr)
    return 2


def run(main, check_versions=True):
    """Run `main()`, a command's body, and leave the process with its exit status.

    Status 0 or what `main` returns; 2 and one line on standard error for a `UserError` (and for a full
    disk, a refused permission or too little memory); 130 and 141 where Ctrl-C, or the end of a reader of our
    output (`| head`), ended it; any other exception is a bug and keeps its traceback, status 1.
    """
    leash.obey()
    _usable_streams()
    warnings.showwarning = _one_line_warning
    hide_warnings()
    try:
        if check_versions:
            from model_utils import versions

            versions.check()
        status = main() or 0
        sys.stdout.flush()
    except PeerError as error:
        # The rank with an error of its own has to end first: msrun kills the others once one has failed.
        time.sleep(PEER_SECONDS)
        status = _fail(error)
    except UserError as error:
        status = _fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except BrokenPipeError:
        _discard_output()
        status = 128 + signal.SIGPIPE
    except OSError as error:
        line = _mend(error)
        if line is None:
            raise
        _discard_output()
        status = _fail(line)
    except (MemoryError, RuntimeError) as error:
        line = _out_of_memory(error)
        if line is None:
            raise
        status = _fail(line)
    sys.exit(status)
