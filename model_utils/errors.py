"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake the user can mend: one line that says what is wrong, where, and how to mend it.

    The command-line entry points print it on standard error and leave with exit status 2.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).split()))


class PeerError(UserError):
    """Another process of the run met a UserError; that one's message is the one to read."""
