"""A connection between the launchers of two hosts: messages, as JSON one a line, and now and then a file."""

import contextlib
import json
import socket
import threading

SILENCE = 20.0  # seconds without a byte, after which the other side counts as lost
MOST_BYTES = 65536  # of a message


class Wire:
    """One connection; messages are dicts."""

    def __init__(self, connection):
        self.connection, self.rest, self.lock = connection, b"", threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message):
        """Send it; False if the connection is gone."""
        with self.lock, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            return True
        return False

    def read(self, seconds):
        """The next message, None at the end of the connection.

        Raises:
            TimeoutError: nothing came for `seconds`. ValueError: what came is not a message.
        """
        self.connection.settimeout(seconds)
        while b"\n" not in self.rest:
            if len(self.rest) > MOST_BYTES:
                raise ValueError("no message")
            part = self.connection.recv(4096)
            if not part:
                return None
            self.rest += part
        line, self.rest = self.rest.split(b"\n", 1)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("no message")
        return message

    def send_file(self, path):
        """Send what a file holds; False if the connection is gone."""
        self.connection.settimeout(SILENCE)
        with open(path, "rb") as handle, contextlib.suppress(OSError):
            self.connection.sendfile(handle)
            return True
        return False

    def read_file(self, path, size):
        """Write the next `size` bytes into a new file; returns whether they came."""
        self.connection.settimeout(SILENCE)
        with open(path, "wb") as handle:
            while size:
                part, self.rest = self.rest[:size], self.rest[size:]
                part = part or self.connection.recv(min(size, 2**20))
                if not part:
                    return False
                handle.write(part)
                size -= len(part)
        return True

    def ended(self):
        """Whether the other side has hung up."""
        self.connection.settimeout(0.0)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self):
        """End it for both sides."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
