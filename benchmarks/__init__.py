"""Measurements: every timing of the project is taken here, never asserted in a test."""

from model_utils.cli import positive  # noqa: F401 - an argparse type of many of them
