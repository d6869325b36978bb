"""The exceptions a user is meant to see, and how their lines stay short."""


def shortened(names, most):
    """'a, b and 3 more': the first `most` names of a list, for one line."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


class UserError(Exception):
    """A mistake the user can mend: one line that says what is wrong, where, and how to mend it.

    The command-line entry points print it on standard error and leave with exit status 2.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).split()))


class PeerError(UserError):
    """Another process of the run met a UserError, whose message says what is wrong."""
