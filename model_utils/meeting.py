"""Where the processes of one run find each other, and whether they can."""

import dataclasses
import errno
import socket

from model_utils.errors import UserError

OTHER_PORT = "choose another --master_port"


@dataclasses.dataclass(frozen=True)
class Team:
    """The hosts of a run as one of them sees them.

    Attributes:
        hosts: their names, the first one first. node_rank: the index of this one.
        address, port: where the first host's launcher waits for the others'.
        patience: seconds they wait for one another.
        facts: {name: text} that must be the same on all hosts.
    """

    hosts: tuple
    node_rank: int
    address: str
    port: int
    patience: float
    facts: dict

    @property
    def name(self):
        """The name of this host."""
        return self.hosts[self.node_rank]


@dataclasses.dataclass
class Meeting:
    """Where the processes of a run meet: msrun's scheduler listens there, on the first host (`here`)."""

    address: str
    port: int
    here: bool = True

    def check(self):
        """UserError where the address is not to be found, or the scheduler could not listen there now."""
        try:
            kind, _, _, _, place = socket.getaddrinfo(self.address, self.port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"master_addr: {self.address:.80} has no address that this machine knows "
                f"({getattr(error, 'strerror', None) or error}); give the first host's"
            ) from error
        if not self.here:
            return
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            # As the scheduler does it: what is left of an earlier run's connections does not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except OSError as error:
                raise UserError(self._refusal(error)) from error

    def _refusal(self, error):
        if error.errno == errno.EADDRNOTAVAIL:
            return (
                f"master_addr: {self.address} is no address of this machine, which is the first host; "
                "give one of its own, or start this on the host that has it"
            )
        if error.errno == errno.EADDRINUSE:
            return f"master_port: {self.port} on {self.address} is in use by another program; {OTHER_PORT}"
        return (
            f"master_port: can't listen at {self.address}, port {self.port}: {error.strerror}; {OTHER_PORT}"
        )
