"""Ctrl-C at any moment of a program: status 130 and one line, also while MindSpore is imported or compiles.

Python answers SIGINT with an exception in the main thread. Raised inside MindSpore (its import, its graph
compiler) that exception aborts the process, and while a graph runs MindSpore takes the signal for
itself. So a program that calls `guard` blocks SIGINT in all its threads and lets one thread of its own wait
for it. That thread hands the signal to the handler set with `signal.signal`, where there is one, and
otherwise ends the process at once, after it has removed the unfinished files.
"""

import contextlib
import os
import shutil
import signal
import threading

_guarded = False
_raising = 0  # blocks of `raising` that are open
_unfinished = []  # paths that must not be left behind


def guard():
    """Take SIGINT; call it before anything slow is imported, in the main thread of a program."""
    global _guarded
    if _guarded:
        return
    _guarded = True
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_wait, name="interrupts", daemon=True).start()


def _wait():
    while True:
        signal.sigwait({signal.SIGINT})
        handler = signal.getsignal(signal.SIGINT)  # Python's own record: MindSpore doesn't reach it
        if handler == signal.SIG_IGN:
            continue
        if callable(handler) and handler is not signal.default_int_handler:
            handler(signal.SIGINT, None)
        elif _raising:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        else:
            leave(signal.SIGINT)


def leave(number):
    """End the process now, with status 128 + `number` and a line; unfinished files are removed."""
    for path in list(_unfinished):
        discard(path)
    with contextlib.suppress(OSError):  # standard error may be closed
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def discard(path):
    """Remove a file or a folder with all that is in it, if it is there and that is allowed."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


@contextlib.contextmanager
def unfinished(*paths):
    """Remove these files and folders if the process ends within the block; otherwise the caller does it."""
    _unfinished.extend(paths)
    try:
        yield
    finally:
        for path in paths:
            _unfinished.remove(path)


def unfinished_for_good(path):
    """Have a path removed whenever the process leaves through `leave`."""
    _unfinished.append(path)


@contextlib.contextmanager
def raising():
    """Within the block Ctrl-C raises KeyboardInterrupt, as in any Python program, and child processes get it.

    For code that cleans up after itself and calls nothing of MindSpore's.
    """
    global _raising
    if not _guarded or threading.current_thread() is not threading.main_thread():
        yield
        return
    _raising += 1
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        _raising -= 1
