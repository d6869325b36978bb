"""What the launchers of a run's hosts tell one another: that all are there, that one failed, how it ended.

Each launcher holds one TCP connection with that of the first host. Before any process is started, the first
one checks that the others mean the same run. Then every host sends a beat each second; one that is silent for
`SILENCE` seconds, or whose connection ends, counts as lost. Messages are JSON, one a line.

The first host decides how the run ended, and all hosts say the same line and leave with the same status.
"""

import contextlib
import dataclasses
import json
import socket
import threading
import time

from model_utils.errors import UserError, shortened

GREETING = "launcher of domain adaptation, 1"
SILENCE = 20.0
BEAT = 1.0
FAREWELL = 3.0
LOOK = 0.3  # between two looks for a signal or for another host
ASIDE = 5.0  # for a stranger at the port to say who it is
LAST_SECONDS = 30.0  # for all hosts to end their processes once one has failed
SIGNALLED_SECONDS = 90.0  # the same after a signal: they save first
MOST_BYTES = 65536  # of a message
FINE = (0, *range(128, 256))  # exit statuses that leave the other hosts alone: done, or stopped by a signal


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the processes of a host ended: exit status, one line ("" if there is nothing to say).

    `follows`: it ended because another host did.
    """

    status: int
    line: str = ""
    follows: bool = False


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
        """The next message, None at the end of the connection; TimeoutError after `seconds` of silence."""
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

    def close(self):
        """End it for both sides."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Link:
    """This host's side. `meet` first; then `failing`, `signalled` and `conclude` as the processes go.

    Attributes:
        stopping: whether the processes must end because of another host.
        verdict: the Outcome of the whole run, once it is known.
    """

    def __init__(self, team):
        self.team = team
        self.first = team.node_rank == 0
        self.stopping, self.verdict = False, None
        self._listeners = []
        self._wires = {}  # {node: Wire}: all others on the first host, the first on the others
        self._outcomes = {}
        self._failing = []  # nodes in the order in which the first host heard of their failure
        self._signals, self._since = [], None
        self._changed = threading.Condition()

    # Before the start

    def meet(self, stopped):
        """Wait for the other hosts; returns whether they are there: not, once `stopped()` is true.

        Raises:
            UserError: one did not come within `team.patience`, or means another run; all hosts that are
                there say the same.
        """
        if not (self._gather(stopped) if self.first else self._join(stopped)):
            return False
        for node, wire in self._wires.items():
            self._listeners.append(threading.Thread(target=self._listen, args=(node, wire), daemon=True))
            self._listeners[-1].start()
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _gather(self, stopped):
        missing = set(range(1, len(self.team.hosts)))
        until = time.monotonic() + self.team.patience
        with self._listener() as listener:
            while missing:
                listener.settimeout(max(0.01, min(LOOK, until - time.monotonic())))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    if stopped():
                        self._hang_up(f"host {self.team.name} was stopped before the start")
                        return False
                    if time.monotonic() < until:
                        continue
                    names = shortened([self.team.hosts[node] for node in sorted(missing)], 4)
                    self._refuse(
                        f"host {names} did not start within {self.team.patience:.0f} s (cluster_time_out); "
                        "start the same command on every host"
                    )
                wire = Wire(connection)
                said = self._greeting(wire)
                if said is None:
                    wire.close()  # a stranger
                    continue
                node, wrong = self._compare(said, missing)
                if wrong:
                    wire.send(refused=wrong)
                    wire.close()
                    self._refuse(wrong)
                missing.discard(node)
                self._wires[node] = wire
        for wire in self._wires.values():
            wire.send(go=True)
        return True

    def _listener(self):
        where = (self.team.address, self.team.port)
        try:
            kind, _, _, _, place = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(kind, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(len(self.team.hosts))
        except OSError as error:
            raise UserError(
                f"master_port: the launchers can't meet at {where[0]}, port {where[1]} (the one after "
                f"master_port): {error.strerror}; choose another --master_port"
            ) from error
        return listener

    def _greeting(self, wire):
        with contextlib.suppress(OSError, ValueError):
            said = wire.read(ASIDE)
            if said and said.get("greeting") == GREETING and isinstance(said.get("facts"), dict):
                return said
        return None

    def _compare(self, said, missing):
        """(node, what is wrong with it or "")."""
        node, theirs = said.get("node"), said["facts"]
        if node not in range(1, len(self.team.hosts)):
            name = str(said.get("name"))[:80]
        else:
            name = self.team.hosts[node]
        for fact, ours in self.team.facts.items():
            if theirs.get(fact) != ours:
                return node, (
                    f"host {name} was started with {fact} {str(theirs.get(fact))[:200]}, "
                    f"host {self.team.name} with {ours}; start the same command on every host"
                )
        if node not in missing:
            return node, f"node_rank: {node} was given on two hosts; give each host its own"
        return node, ""

    def _hang_up(self, line):
        for wire in self._wires.values():
            wire.send(refused=line)
            wire.close()

    def _refuse(self, line):
        self._hang_up(line)
        raise UserError(line)

    def _join(self, stopped):
        team = self.team
        until, why = time.monotonic() + team.patience, "no connection"
        while (left := until - time.monotonic()) > 0 and not stopped():
            try:
                wire = Wire(socket.create_connection((team.address, team.port), min(left, ASIDE)))
                wire.send(greeting=GREETING, node=team.node_rank, name=team.name, facts=team.facts)
                said = _answer(wire, until, stopped)
                if said and "refused" in said:
                    raise UserError(str(said["refused"]))
                if said and said.get("go"):
                    self._wires[0] = wire
                    return True
                why = "what answers there is no launcher of this run, or it has left"
                wire.close()
            except ValueError:
                why = "what answers there is no launcher of this run"
            except TimeoutError:
                why = "no answer"
            except OSError as error:
                why = error.strerror or str(error)
            time.sleep(LOOK)
        if stopped():
            return False
        raise UserError(
            f"the first host, {team.hosts[0]}, did not answer at {team.address}, port {team.port}, within "
            f"{team.patience:.0f} s ({why}); start the same command there, and check --hosts, "
            "--master_addr and --master_port"
        )

    # While the processes run

    def _beat(self):
        while True:
            for wire in list(self._wires.values()):
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
            for node, wire in self._wires.items():
                if node != but:
                    wire.send(**message)

    def failing(self):
        """A process of this host has failed: the other hosts end theirs."""
        with self._changed:
            if self.first:
                self._fail(0)
            else:
                self._wires[0].send(failing=True)

    def signalled(self, number):
        """Tell the other hosts of a signal that this launcher got."""
        with self._changed:
            if self.first:
                self._tell(signal=number)
            else:
                self._wires[0].send(signal=number)

    def signals(self):
        """The numbers of the signals that other hosts told of since the last call."""
        with self._changed:
            heard, self._signals = self._signals, []
            return heard

    def conclude(self, outcome, wait):
        """Tell how this host's processes ended; returns how the run did, once all hosts are through.

        wait: called now and then meanwhile; True once a signal came, which limits the waiting.
        """
        with self._changed:
            self._outcomes[self.team.node_rank] = outcome
            if self.first and outcome.status not in FINE:
                self._fail(0)
            elif not self.first:
                self._wires[0].send(ended=dataclasses.astuple(outcome))
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
        until = time.monotonic() + FAREWELL
        for listener in self._listeners if self.first else ():  # the others hang up once they have read it
            listener.join(max(0.0, until - time.monotonic()))
        for wire in self._wires.values():
            wire.close()
        return self.verdict

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
            named = line.startswith("host ")
            return Outcome(told[node].status, line if named else f"host {self.team.hosts[node]}: {line}")
        return Outcome(next((told[node].status for node in order if told[node].status), 0))


def _answer(wire, until, stopped):
    """What the first host says to this one: nothing before all are there; TimeoutError after `until`."""
    while True:
        try:
            return wire.read(LOOK)
        except TimeoutError:
            if stopped() or time.monotonic() > until:
                raise
