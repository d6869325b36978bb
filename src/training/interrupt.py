"""SIGINT and SIGTERM while training: remembered until the step is done and its state is saved."""

import signal

from model_utils import interrupts


class Stopped(Exception):
    """A signal asked the run to stop; its state was saved. `status` is the process's exit status."""

    def __init__(self, number):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


class Interrupt:
    """Remembers SIGINT or SIGTERM until the current step is done; a second one leaves at once.

    So does a SIGINT while there is nothing to save, before `something_to_save` is set to True.

    In a program that called `interrupts.guard`, SIGINT comes through that module at any moment. Elsewhere
    MindSpore installs its own handler when it compiles or runs a graph, and turns SIGINT into SIGTERM. That
    is why `listen` is called before every step.
    """

    def __init__(self):
        self.number = None
        self.something_to_save = False  # before that Ctrl-C leaves at once: compiling takes long
        self.previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.getsignal(number)
        self.listen()
        return self

    def listen(self):
        """Take both signals (back)."""
        for number in self.previous:
            signal.signal(number, self._remember)

    def _remember(self, number, frame):
        if self.number is not None or (number == signal.SIGINT and not self.something_to_save):
            interrupts.leave(number)
        self.number = number  # no logging here: the signal may have come in the middle of a log line

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
