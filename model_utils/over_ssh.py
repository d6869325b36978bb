"""One command that starts a run on all its hosts over ssh: --hosts A,B,… --ssh true

Each host gets the command that would be typed there, with its --node_rank; the repository and the interpreter
lie in the same folders on all of them. Every word is quoted for the shell of the other side. A launcher there
lives as long as its standard input is open: when this command is signalled, or is gone, it saves and leaves.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

from model_utils.config import FALSE, ROOT, TRUE
from model_utils.errors import UserError

TIED = "DA_TIED"  # set for a launcher that ends when its standard input does
OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4")
FAILED = 255  # ssh's own status
POLL_SECONDS = 0.05


def command(text):
    """The words of ssh that --ssh asks for, None if it asks for none: true, false, or `ssh -p 22`.

    Raises:
        UserError: it is not a command.
    """
    if text is True or str(text).lower() in TRUE:
        return ["ssh"]
    if str(text).lower() in FALSE:
        return None
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"ssh: {text!r:.60} is no command ({error})") from error
    if not words or not os.path.basename(words[0]).startswith("ssh"):
        raise UserError(
            f"ssh: {text!r:.60} is not allowed; allowed: true | false | a command as 'ssh -p 2222'"
        )
    return words


def commands(ssh, names, argv):
    """The command that starts each host, a list of words.

    Args:
        ssh: words of ssh. names: of the hosts.
        argv: the words of `python -m model_utils.launch`, without those for this side.
    """
    found = []
    for node, name in enumerate(names):
        launcher = [sys.executable, "-m", "model_utils.launch", *argv, "--node_rank", str(node)]
        there = f"cd {shlex.quote(str(ROOT))} && {TIED}=1 exec {shlex.join(launcher)}"
        found.append([*ssh, *OPTIONS, name, there])
    return found


def run(planned, names):
    """Run the commands of all hosts to their end; returns the status of the first host.

    What the first host prints is shown, and each line on standard error once: hosts say the same.

    Raises:
        UserError: ssh could not start one.
    """
    try:
        processes = [
            subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=None if node == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C comes here alone
            )
            for node, words in enumerate(planned)
        ]
    except OSError as error:
        raise UserError(f"ssh: cannot run {planned[0][0]}: {error.strerror}") from error
    said = [[] for _ in processes]
    readers = [
        threading.Thread(target=lambda p, lines: lines.extend(p.stderr), args=pair, daemon=True)
        for pair in zip(processes, said, strict=True)
    ]
    for reader in readers:
        reader.start()
    hung_up = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: hung_up.append(number))
    while [process for process in processes if process.poll() is None]:
        failed = next((node for node, p in enumerate(processes) if p.returncode == FAILED), None)
        if hung_up or failed is not None:
            for process in processes:
                if not process.stdin.closed:
                    process.stdin.close()
        time.sleep(POLL_SECONDS)
    for reader in readers:
        reader.join(1)
    failed = next((node for node, p in enumerate(processes) if p.returncode == FAILED), None)
    if failed is not None:
        line = ([text.strip() for text in said[failed] if text.strip()] or ["no reason given"])[-1]
        raise UserError(f"ssh: host {names[failed]} could not be reached, or was lost: {line}")
    for line in dict.fromkeys(line for lines in said for line in lines):
        sys.stderr.write(line)
    return processes[0].returncode


def obey_input():
    """In a launcher that was started over ssh: the end of standard input is a SIGTERM."""
    if os.environ.pop(TIED, None) != "1":
        return

    def watch():
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="input", daemon=True).start()
