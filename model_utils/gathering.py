"""Before the start, the launchers of a run's hosts find one another and check that they mean the same run."""

import contextlib
import socket
import time

from model_utils.errors import UserError, shortened
from model_utils.wire import Wire

GREETING = "launcher of domain adaptation, 1"
ASIDE = 5.0  # for a stranger at the port to say who it is
LOOK = 0.3  # between two looks for a signal or for another host
# MindSpore 2.10 looks three times, 10 ms apart, whether a connection is made, and begins anew if it is not
# (tcp_comm.cc): processes on hosts that are further apart never meet.
FURTHEST = 0.03
TRIES = 5


def gather(team, word, stopped):
    """On the first host: wait for the others.

    Args:
        team: a meeting.Team. word: what all of them are told, as JSON.
        stopped: function that says whether to give up.

    Returns:
        {node_rank: Wire} of the others, None where it was stopped.

    Raises:
        UserError: one did not come within `team.patience`, or was started otherwise; those that are there
            have been told.
    """
    wires = {}
    until = time.monotonic() + team.patience
    with _listener(team) as listener:
        while len(wires) < len(team.hosts) - 1:
            listener.settimeout(max(0.01, min(LOOK, until - time.monotonic())))
            try:
                wire = Wire(listener.accept()[0])
            except TimeoutError:
                if stopped():
                    _refuse(wires, f"host {team.name} was stopped before the start")
                    return None
                if time.monotonic() < until:
                    continue
                missing = [name for node, name in enumerate(team.hosts) if node and node not in wires]
                raise UserError(
                    _refuse(
                        wires,
                        f"host {shortened(missing, 4)} did not start within {team.patience:.0f} s "
                        "(cluster_time_out); start the same command on every host",
                    )
                ) from None
            said = _greeting(wire)
            if said is None:
                wire.close()  # a stranger
                continue
            node, wrong = _compared(said, team, wires)
            if wrong:
                raise UserError(_refuse({**wires, "this": wire}, wrong))
            wires[node] = wire
    for wire in wires.values():
        wire.send(go=True, word=word)
    return wires


def _listener(team):
    try:
        kind, _, _, _, place = socket.getaddrinfo(team.address, team.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(len(team.hosts))
    except OSError as error:
        raise UserError(
            f"master_port: the launchers can't meet at {team.address}, port {team.port} (the one after "
            f"master_port): {error.strerror}; choose another --master_port"
        ) from error
    return listener


def _greeting(wire):
    """What a launcher says first; None if it is not a launcher."""
    with contextlib.suppress(OSError, ValueError):
        said = wire.read(ASIDE)
        if said and said.get("greeting") == GREETING and isinstance(said.get("facts"), dict):
            numbers = isinstance(said.get("node"), int) and isinstance(said.get("seconds", 0), int | float)
            return said if numbers else None
    return None


def _compared(said, team, wires):
    """(node_rank, what is wrong with it or "")."""
    node, theirs = said["node"], said["facts"]
    known = 0 < node < len(team.hosts)
    name = team.hosts[node] if known else str(said.get("name"))[:80]
    for fact, ours in team.facts.items():
        if theirs.get(fact) != ours:
            return node, (
                f"host {name} was started with {fact} {str(theirs.get(fact))[:200]}, "
                f"host {team.name} with {ours}; start the same command on every host"
            )
    if said.get("seconds", 0) > FURTHEST:
        return node, (
            f"host {name} is {1000 * said['seconds']:.0f} ms away from host {team.name}; MindSpore waits "
            f"{1000 * FURTHEST:.0f} ms for a connection, so that their processes would never meet"
        )
    if not known or (node in wires and not wires[node].ended()):
        return node, f"node_rank: {node} was given on two hosts; give each host its own"
    return node, ""


def _refuse(wires, line):
    for wire in wires.values():
        wire.send(refused=line)
        wire.close()
    return line


def join(team, stopped):
    """On another host: find the first one.

    Returns:
        (its Wire, what it says), None where `stopped()` became true.

    Raises:
        UserError: it did not answer within `team.patience`, or has refused.
    """
    until, why = time.monotonic() + team.patience, "no connection"
    while (left := until - time.monotonic()) > 0 and not stopped():
        try:
            connection, seconds = _connected(team, min(left, ASIDE))
            wire = Wire(connection)
            mine = {"node": team.node_rank, "name": team.name, "facts": team.facts, "seconds": seconds}
            wire.send(greeting=GREETING, **mine)
            said = _answer(wire, until, stopped)
            if said and "refused" in said:
                raise UserError(str(said["refused"]))
            if said and said.get("go"):
                return wire, said.get("word")
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
        return None
    raise UserError(
        f"the first host, {team.hosts[0]}, did not answer at {team.address}, port {team.port}, within "
        f"{team.patience:.0f} s ({why}); start the same command there, and check --hosts, "
        "--master_addr and --master_port"
    )


def _connected(team, patience):
    """(a connection with the first host, the shortest time in seconds that making one took)."""
    shortest, connection = float("inf"), None
    for _ in range(TRIES):
        begun = time.monotonic()
        fresh = socket.create_connection((team.address, team.port), patience)
        shortest = min(shortest, time.monotonic() - begun)
        if connection is not None:
            connection.close()
        connection = fresh
        if shortest <= FURTHEST:
            break
    return connection, shortest


def _answer(wire, until, stopped):
    """What the first host says to this one: nothing before all are there; TimeoutError after `until`."""
    while True:
        try:
            return wire.read(LOOK)
        except TimeoutError:
            if stopped() or time.monotonic() > until:
                raise
