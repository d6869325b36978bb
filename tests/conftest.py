"""Fixtures shared by the tests. MindSpore is set up once for the test process, as the commands set it up."""

import pytest

from model_utils.quiet import hide_warnings

hide_warnings()


@pytest.fixture(scope="session", autouse=True)
def place():
    """The device the tests compute on; it can be chosen only before the first operator runs."""
    from model_utils import config, device

    return device.setup(config.load(["--device_target=CPU"]))
