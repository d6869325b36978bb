"""Keeping MindSpore's own messages off the terminal."""

import contextlib
import logging
import os


def hide_warnings():
    """Keep MindSpore's warnings (of its own deprecations, mostly) off the terminal; its errors stay.

    Has to come before MindSpore is imported. A level the user has set is kept: GLOG_v=2 shows warnings.
    """
    os.environ.setdefault("GLOG_v", "3")


@contextlib.contextmanager
def hide_errors():
    """Within the block MindSpore's Python side logs nothing; what it raises still comes through.

    For calls whose failure we report ourselves, in one line.
    """
    logger = logging.getLogger(f"ME.mindspore.log.{os.getpid()}")  # the name mindspore/log.py gives it
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
