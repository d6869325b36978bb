"""Measurements: every timing of the project is taken here, never asserted in a test."""

import argparse


def positive(text):
    """An argparse type: a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
