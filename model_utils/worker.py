"""One process of a run, seen from the launcher: how it ended, and what it said."""

import re
import signal

USER_ERROR = 2
# MindSpore's own lines, e.g. "[WARNING] DISTRIBUTED(123,7f…,python):2026-…": for the log file only.
NOISE = re.compile(rb"\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\] [A-Z_]+\([0-9]+,")
EXCEPTION = re.compile(r"[A-Za-z_][A-Za-z_.]*(Error|Exception)\b")


class Worker:
    """One training process: its rank on all hosts, and how it ended."""

    def __init__(self, process, rank, log_path):
        self.process, self.rank, self.log_path = process, rank, log_path
        self.ended = False
        self.status = None  # exit status, or minus the signal that killed it; None: not known
        self.told = 0  # signals passed on

    def poll(self):
        """Notice the end of the process.

        msrun is its parent and collects it within a second; until then /proc holds its exit status.
        """
        if self.ended:
            return
        try:
            with open(f"/proc/{self.process.pid}/stat", encoding="utf-8", errors="replace") as handle:
                # The name in brackets may hold spaces; the state is what follows it, the status comes last.
                fields = handle.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            self.ended = True
            return
        if fields[0] in "ZX":
            self.ended = True
            code = int(fields[-1])
            self.status = -(code & 127) if code & 127 else code >> 8

    def text(self):
        """What it wrote."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _lines(self):
        """What it wrote, without MindSpore's own lines."""
        return [line for line in self.text().splitlines() if line.strip() and not NOISE.match(line.encode())]

    def error(self):
        """The text of the `error: …` line that a command ends with after a user error; "" without one."""
        lines = [line for line in self._lines() if line.startswith("error: ")]
        return lines[-1][len("error: ") :] if lines and self.status in (USER_ERROR, -signal.SIGKILL) else ""

    def was_leaving(self):
        """Whether the last thing it wrote is an exception that nobody caught."""
        lines = self._lines()
        return bool(lines and EXCEPTION.match(lines[-1]))

    def last_line(self):
        """The line of the last exception it printed, else its last line; "" for an empty log."""
        lines = self._lines()
        exceptions = [line for line in lines if EXCEPTION.match(line)]
        return " ".join("".join(exceptions[-1:] or lines[-1:]).split())


def role_of(process):
    """("scheduler", None) or ("worker", rank as text) by a process's environment; (None, None) if that says
    nothing, or the process has ended."""
    import psutil

    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None, None
    role = {"MS_SCHED": "scheduler", "MS_WORKER": "worker"}.get(environment.get("MS_ROLE"))
    rank = environment.get("RANK_ID", "")
    return (role, rank) if role == "scheduler" or (role and rank.isdigit()) else (None, None)


def lives(process):
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def name_of(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
