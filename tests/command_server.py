"""Starts commands for the tests in a fork of a process that has imported MindSpore already.

Importing it and other libraries takes three seconds of a processor, and several hundred commands of the tests
only refuse their arguments. The project's own modules are never imported here: each command imports them
itself, from where it runs. `helpers.command` is the client. A command with `fresh=True`, every script and
every process under msrun start as a user starts them.
"""

import gc
import json
import logging
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = (
    "mindspore",
    "mindspore.dataset",
    "cv2",
    "yaml",
    "scipy.stats",
    "sklearn.metrics",
    "matplotlib.pyplot",
    "tensorboardX",
    "tqdm",
)
LENGTH = 1 << 20  # more bytes than any command line and its environment have


class Server:
    """The client's side: one server process, which ends with this one."""

    def __init__(self):
        self.connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            for end in (self.connection, other):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LENGTH)
            program = [sys.executable, __file__, str(other.fileno())]
            self.process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=[other.fileno()],
                env={**os.environ, "GLOG_v": "3", "MPLBACKEND": "Agg"},
            )

    def run(self, words, cwd, environment, timeout):
        """As `subprocess.run` of a Python with these words, its output captured as text.

        The result has besides `seconds` of the processor and `megabytes` of memory at its peak, of the
        command and of the processes that it waited for.
        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            request = json.dumps([list(map(str, words)), str(cwd), environment]).encode()
            socket.send_fds(self.connection, [request], [output.fileno(), errors.fileno()])
            self.connection.settimeout(60)
            number = int(self._answer())
            self.connection.settimeout(timeout)
            try:
                status, seconds, megabytes = json.loads(self._answer())
            except TimeoutError:
                os.kill(number, 9)
                self.connection.settimeout(60)
                self._answer()
                raise subprocess.TimeoutExpired(words, timeout) from None
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode().replace("\r\n", "\n"))
        done = subprocess.CompletedProcess(words, status, *texts)
        done.seconds, done.megabytes = seconds, megabytes
        return done

    def _answer(self):
        answer = self.connection.recv(100)
        assert answer, f"the server of commands ended: status {self.process.wait()}"
        return answer


def serve(connection):
    """Answer requests until the client is gone; in the process of a command, return its (words, folder)."""
    own = os.getpid()
    while True:
        request, files, _, _ = socket.recv_fds(connection, LENGTH, 2)
        if not request:
            return None
        child = os.fork()
        if not child:
            connection.close()
            words, folder, environment = json.loads(request)
            for number, file in zip((1, 2), files, strict=True):
                os.dup2(file, number)
                os.close(file)
            os.environ.clear()
            os.environ.update(environment)
            # MindSpore named its log after the process that imported it.
            loggers = logging.Logger.manager.loggerDict
            loggers[f"ME.mindspore.log.{os.getpid()}"] = logging.getLogger(f"ME.mindspore.log.{own}")
            return words, folder
        for file in files:
            os.close(file)
        connection.send(str(child).encode())
        _, status, used = os.wait4(child, 0)
        used = [used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]
        connection.send(json.dumps([os.waitstatus_to_exitcode(status), *used]).encode())


def main():
    for name in LIBRARIES:
        __import__(name)
    sys.path.remove(str(Path(__file__).resolve().parent))
    gc.freeze()  # or each command would look through all of it for garbage, and so copy it
    found = serve(socket.socket(fileno=int(sys.argv[1])))
    if found is None:
        return
    words, folder = found
    os.chdir(folder)
    if words[0] == "-m":
        sys.path.insert(0, folder)
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
