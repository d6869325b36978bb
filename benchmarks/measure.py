"""What every measurement needs: the time of a step, memory, and a process of its own to ask for either."""

import json
import os
import subprocess
import sys
import time


def seconds(step, steps):
    """Seconds that `steps` calls of `step` take."""
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - begun


def timed(step, steps):
    """Milliseconds a step, over `steps` of them."""
    return seconds(step, steps) / steps * 1000


def resident(field):
    """Megabytes of this process: VmRSS now, VmHWM at its peak."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


class Other:
    """A process of its own that answers lines on its standard input with lines of JSON.

    Needed where a setting is chosen once per process (oneDNN's instruction set), and for peak memory.

    Args:
        words: arguments of this interpreter, e.g. "-m", "benchmarks.layers", "--serve-plain".
        environment: variables set for it besides.

    Attributes:
        first: what it said before it was asked anything.
    """

    def __init__(self, words, **environment):
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "GLOG_v": "3", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self._read()

    def _read(self):
        while line := self.process.stdout.readline():
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue  # something MindSpore printed
        raise RuntimeError("the other process ended early")

    def ask(self, line=""):
        """Its answer to a line."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self):
        """Let it end, and wait for that."""
        self.process.stdin.close()
        self.process.wait(timeout=60)
