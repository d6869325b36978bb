"""What the launchers of a run's hosts tell one another: that all are there, that one failed, how it ended.

Each launcher holds one TCP connection with that of the first host. Before any process is started, the first
one checks that the others mean the same run. Then every host sends a beat each second; one that is silent for
`SILENCE` seconds, or whose connection ends, counts as lost. Messages are JSON, one a line.

The first host decides how the run ended, and all hosts say the same line and leave with the same status.
"""

import dataclasses
import threading
import time

from model_utils import agreement, gathering
from model_utils.wire import SILENCE

BEAT = 1.0
FAREWELL = 3.0
LAST_SECONDS = 30.0  # for all hosts to end their processes once one has failed
SIGNALLED_SECONDS = 90.0  # the same after a signal: they save first
FINE = (0, *range(128, 256))  # exit statuses that leave the other hosts alone: done, or stopped by a signal


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the processes of a host ended: exit status, one line ("" if there is nothing to say).

    `follows`: it ended because another host did.
    """

    status: int
    line: str = ""
    follows: bool = False


class Link:
    """This host's side. `meet` and `keep` first; then `failing`, `signalled`, `conclude` as the processes go.

    Attributes:
        stopping: whether the processes must end because of another host.
        verdict: the Outcome of the whole run, once it is known.
        word: what the first host said when they met.
        wires: {node_rank: Wire} of all others on the first host, of the first on the others.
    """

    def __init__(self, team):
        self.team = team
        self.first = team.node_rank == 0
        self.stopping, self.verdict, self.word = False, None, None
        self._listeners = []
        self.wires = {}
        self._outcomes = {}
        self._failing = []  # nodes in the order in which the first host heard of their failure
        self._signals, self._since = [], None
        self._changed = threading.Condition()

    # Before the start

    def meet(self, stopped, word=None):
        """Wait for the other hosts; returns whether they are there. Once `stopped()` is true, it gives up.

        `word`: what the first host tells the others, as JSON; they have it as `self.word`.

        Raises:
            UserError: one did not come within `team.patience`, or means another run; all hosts that are
                there say the same.
        """
        if self.first:
            found, self.word = gathering.gather(self.team, word, stopped), word
        else:
            found = gathering.join(self.team, stopped)
            if found is not None:
                found, self.word = {0: found[0]}, found[1]
        if found is None:
            return False
        self.wires = found
        return True

    def keep(self):
        """From now on the hosts watch one another."""
        for node, wire in self.wires.items():
            self._listeners.append(threading.Thread(target=self._listen, args=(node, wire), daemon=True))
            self._listeners[-1].start()
        threading.Thread(target=self._beat, daemon=True).start()

    # While the processes run

    def _beat(self):
        while True:
            for wire in list(self.wires.values()):
                wire.send(beat=True)
            time.sleep(BEAT)

    def _listen(self, node, wire):
        try:
            while (message := wire.read(SILENCE)) is not None:
                with self._changed:
                    self._heard(node, message)
                    self._changed.notify_all()
            how = "is gone: its launcher has ended"
        except TimeoutError:
            how = f"has not answered for {SILENCE:.0f} s"
        except (OSError, ValueError) as error:
            how = f"is gone: {getattr(error, 'strerror', None) or error}"
        with self._changed:
            self._lost(node, how)
            self._changed.notify_all()

    def _heard(self, node, message):
        if "over" in message:
            self.verdict, self.stopping = Outcome(*message["over"]), True
        elif "stop" in message:
            self.stopping = True
        elif "failing" in message:
            self._fail(node)
        elif "signal" in message:
            self._signals.append(message["signal"])
            self._tell(but=node, signal=message["signal"])
        elif "ended" in message:
            self._outcomes[node] = Outcome(*message["ended"])
            if self._outcomes[node].status not in FINE:
                self._fail(node)

    def _lost(self, node, how):
        if self.verdict is not None or node in self._outcomes:
            return  # it has said its last word
        gone = Outcome(1, f"host {self.team.hosts[node]} {how}; the others were stopped")
        self._outcomes[node] = gone
        if self.first:
            self._fail(node)
        else:
            self.verdict, self.stopping = gone, True

    def _fail(self, node):
        """On the first host: one has failed, all must end."""
        if node not in self._failing:
            self._failing.append(node)
        self._since = self._since or time.monotonic()
        self.stopping = True
        self._tell(stop=True)

    def _tell(self, but=None, **message):
        if self.first:
            for node, wire in self.wires.items():
                if node != but:
                    wire.send(**message)

    def failing(self):
        """A process of this host has failed: the other hosts end theirs."""
        with self._changed:
            if self.first:
                self._fail(0)
            else:
                self.wires[0].send(failing=True)

    def signalled(self, number):
        """Tell the other hosts of a signal that this launcher got."""
        with self._changed:
            if self.first:
                self._tell(signal=number)
            else:
                self.wires[0].send(signal=number)

    def signals(self):
        """The numbers of the signals that other hosts told of since the last call."""
        with self._changed:
            heard, self._signals = self._signals, []
            return heard

    def conclude(self, outcome, wait):
        """Tell how this host's processes ended; returns how the run ended, once all hosts have finished.

        wait: called now and then meanwhile; True once a signal came, which limits the waiting.
        """
        with self._changed:
            self._outcomes[self.team.node_rank] = outcome
            if self.first and outcome.status not in FINE:
                self._fail(0)
            elif not self.first:
                self.wires[0].send(ended=dataclasses.astuple(outcome))
        signalled = None
        while self.verdict is None and not (self.first and self._complete()):
            if wait():
                signalled = signalled or time.monotonic()
                if time.monotonic() > signalled + SIGNALLED_SECONDS:
                    break
            with self._changed:
                self._changed.wait(0.1)
        with self._changed:
            if self.verdict is None:
                self.verdict = self._decided() if self.first else outcome
            self._tell(over=dataclasses.astuple(self.verdict))
        self._part()
        return self.verdict

    def _part(self):
        until = time.monotonic() + FAREWELL
        for listener in self._listeners if self.first else ():  # the others hang up once they have read it
            listener.join(max(0.0, until - time.monotonic()))
        for wire in self.wires.values():
            wire.close()

    def leave(self, outcome):
        """On another host than the first, before `keep`: tell it why this one can't take part, and go."""
        self.wires[0].send(ended=dataclasses.astuple(outcome))
        self.wires[0].close()

    def _complete(self):
        everyone = len(self._outcomes) == len(self.team.hosts)
        return everyone or (self._since and time.monotonic() > self._since + LAST_SECONDS)

    def _decided(self):
        """On the first host: the outcome of all, that of the host which failed first."""
        late = Outcome(1, "did not end its processes in time")
        told = {node: self._outcomes.get(node, late) for node in range(len(self.team.hosts))}
        order = [*self._failing, *(node for node in told if node not in self._failing)]
        failed = [node for node in order if told[node].status and told[node].line]
        own = [node for node in failed if not told[node].follows]
        for node in (*own, *failed):
            line = told[node].line
            named = line.startswith(("host ", agreement.DIFFER))
            return Outcome(told[node].status, line if named else f"host {self.team.hosts[node]}: {line}")
        return Outcome(next((told[node].status for node in order if told[node].status), 0))


def first_says(team, word):
    """What the first host of a team says, on all of its hosts; they meet for it and part.

    word: this host's word, which counts on the first one only.

    Raises:
        UserError: as `Link.meet`.
    """
    link = Link(team)
    link.meet(lambda: False, word)
    link.keep()
    link.conclude(Outcome(0), lambda: False)
    return link.word
