"""Checks that all processes of a run have the same configuration, code and libraries.

Processes on one host have them from one launcher. On several hosts each reads its own files, and a difference
would show as a run that hangs, or as one whose results nobody can repeat.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import socket

from model_utils.config import ROOT
from model_utils.errors import UserError, shortened

HOST = "DA_HOST"  # this host's name in --hosts, set by the launcher
DIFFER = "the processes differ: "
FOLDERS = ("src", "model_utils")
ENDINGS = (".py", ".cpp", ".h", ".hpp", ".cc")
LIBRARIES = ("mindspore", "numpy")
# Keys that each host may set for itself, beside those of paths: they change neither numbers nor messages.
OWN = {"device_id", "num_parallel_workers", "cache", "download", "experiment", "tensorboard", "resume"}


def check(config, device):
    """Compare configuration, code and versions of libraries; all ranks must call it.

    Raises:
        UserError: on every rank, one line that names a host that differs and in what.
    """
    if device.world > 1:
        values = {
            name: json.dumps(value)
            for name, value in config.as_dict().items()
            if not config.keys[name].path and name not in OWN
        }
        facts = {**values, **code(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}
        same(facts, device, "give every host the same command, code and packages")


@functools.cache
def code():
    """{path relative to the repository: digest} of every file of code that a run may execute."""
    paths = [path for path in ROOT.glob("*.py") if path.is_file()]
    for folder in FOLDERS:
        paths += [path for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS and path.is_file()]
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(paths)
    }


def same(facts, device, mend):
    """UserError on every rank unless `facts` are the same on all of them; all ranks must call it.

    Args:
        facts: {name: text}; the name of a file of code is its path.
        device: this process's Device. mend: what helps, in words.
    """
    if device.world == 1:
        return
    from model_utils.collectives import gather_texts

    own = json.dumps(facts, sort_keys=True)
    digests = gather_texts(hashlib.sha256(own.encode()).hexdigest(), device)
    if len(set(digests)) == 1:
        return
    here = os.environ.get(HOST) or socket.gethostname()
    told = [json.loads(text) for text in gather_texts(json.dumps([here, facts]), device)]
    rank = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    (first, ours), (host, theirs) = told[0], told[rank]
    found = shortened(_differences(ours, theirs), 3)
    raise UserError(f"{DIFFER}rank {rank} on {host} has {found}, seen from rank 0 on {first}; {mend}")


def _differences(ours, theirs):
    """One text for each fact in which two processes differ, as the first of them sees the second."""
    found = []
    for name in {**ours, **theirs}:
        if ours.get(name) == theirs.get(name):
            continue
        if name.endswith(ENDINGS):
            how = "another" if name in ours and name in theirs else "no" if name in ours else "a new"
            found.append(f"{how} {name}")
        else:
            found.append(f"{name} {_text(theirs.get(name))} instead of {_text(ours.get(name))}")
    return found


def _text(value):
    return "none" if value is None else value[:80].strip('"') or "nothing"
