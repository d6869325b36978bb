"""Paths as people write them: a leading ~ is the home folder, and what no file system takes is one line."""

import os
import reprlib

from model_utils.errors import UserError

NAME_BYTES, PATH_BYTES = 255, 4095  # Linux's limits: of one name, and of a whole path


def problem(text):
    """Why no file can lie at `text` as it stands, in words; None if one can."""
    whole = os.fsencode(text)
    longest = max(len(name) for name in whole.split(b"/"))
    if b"\0" in whole:
        return "holds a NUL byte"
    if longest > NAME_BYTES:
        return f"is too long: a name in it has {longest} bytes, at most {NAME_BYTES} are possible"
    if len(whole) > PATH_BYTES:
        return f"is too long: it has {len(whole)} bytes, at most {PATH_BYTES} are possible"
    if text.startswith("~"):
        return "begins with the name of a user who does not exist here (./~ is a folder called ~)"
    return None


def expanded(text, name):
    """`text` with a leading ~ replaced by the home folder; "" stays "".

    Args:
        text: str or Path.
        name: the option or key it was given for, for the message.

    Raises:
        UserError: no file can lie there.
    """
    path = os.path.expanduser(os.fspath(text))
    wrong = problem(path)
    if wrong:
        raise UserError(f"{name}: {reprlib.repr(path)} {wrong}; give another path")
    return path
