"""What knows nothing of domain adaptation: configuration, checkpoints, devices, processes, logging."""

__version__ = "2.0.0"
NAME = "mindspore-domain-adaptation"


def named_version():
    """The line that `--version` prints."""
    return f"{NAME} {__version__}"
