"""Checkpoints that a command reads lie on the first host: its launcher sends them to the others.

The hosts share no disk, and it is the first one that writes checkpoints.
"""

import dataclasses
import re
from pathlib import Path

from model_utils import checkpoint
from model_utils.config import ROOT
from model_utils.errors import UserError

OPTION = re.compile(r"--(\w*ckpt_(?:path|file))")
PATIENCE = 120.0  # seconds for the first host to find a file, and to send it to the hosts before


def run(team, wires, job, folder):
    """The job as it is run on this host: options that name a checkpoint name a copy of the first host's.

    Args:
        team: a meeting.Team. wires: {node_rank: Wire} of the hosts that this one speaks with.
        job: of this host. folder: Path that copies are written into.

    Raises:
        UserError: a copy could not be written, or was cut short.
    """
    found = ((index, OPTION.fullmatch(word)) for index, word in enumerate(job.command[:-1]))
    places = {match.group(1): index + 1 for index, match in found if match}
    if not places:
        return job
    command = list(job.command)
    if team.node_rank == 0:
        for key, place in places.items():
            path = _file(command[place])
            if path is not None:  # else the program says what is wrong with it
                command[place] = str(path)
                _send(wires.values(), key, path)
        for wire in wires.values():
            wire.send(file=None)
    else:
        for key, path in _received(wires[0], folder, places, team.hosts[0]):
            command[places[key]] = str(path)
    return dataclasses.replace(job, command=command)


def _send(wires, key, path):
    for wire in wires:
        wire.send(file=key, called=path.name, size=path.stat().st_size)
        wire.send_file(path)


def _received(wire, folder, places, first):
    """Yields (key, path) of each file that the first host sends."""
    try:
        while (said := wire.read(PATIENCE)) and said.get("file") is not None:
            if said["file"] not in places:
                raise ValueError("it sent another one")
            path = folder / said["file"] / Path(str(said["called"])).name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not wire.read_file(path, int(said["size"])):
                raise ValueError("it was cut short")
            yield said["file"], path
        if said is None:
            raise ValueError("that host is gone")
    except (OSError, ValueError, KeyError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"no checkpoint could be fetched from host {first} into {folder}: {why}") from error


def _file(text):
    """The file that an option means: itself, or the newest good checkpoint of a run's folder; or None."""
    path = Path(ROOT) / text
    if path.is_file():
        return path
    found = checkpoint.of_run(path) if path.is_dir() else None
    if found is None or found.is_file():
        return found
    try:
        return checkpoint.newest(found)[0]
    except UserError:
        return None
