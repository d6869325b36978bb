"""The folder for what can be made again: compiled operators and converted weights."""

import os
import stat

PROJECT = "mindspore-domain-adaptation"


def folder():
    """A folder that only this user can write, made if need be; None when there is none.

    What is read from it is trusted, so nobody else may be able to put anything there.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(base, PROJECT)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        state = os.stat(path)
    except OSError:
        return None
    if state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return path if os.access(path, os.W_OK | os.X_OK) else None
