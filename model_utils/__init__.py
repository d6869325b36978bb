"""What knows nothing of domain adaptation: configuration, checkpoints, devices, processes, logging."""

__version__ = "2.1.0"
NAME = "mindspore-domain-adaptation"


def named_version():
    """The line that `--version` prints."""
    return f"{NAME} {__version__}"
