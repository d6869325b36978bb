"""Writes the pages of docs/ that a program makes from the code or from kept results."""

from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError


def write(path, text, check, command):
    """Write a page, whole or not at all; with `check` write nothing.

    command: the module that writes it, for the message.

    Raises:
        UserError: with `check`, the page is not this text.
    """
    if not check:
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path.relative_to(ROOT)} is not what its source gives; run python -m {command}")
