"""Checkpoints: whole or absent, checked on reading, strict about what they fill.

A training checkpoint is one MindSpore `.ckpt` file with a CRC32. It holds the network's parameters under
their own names (so `mindspore.load_checkpoint` and `load_param_into_net` work on it), every other cell of
`Trainer.state()` under `<name>/`, and `META`: UTF-8 JSON as bytes with phase, step, seconds and the
resolved configuration. Randomness needs no state: it is a function of seed and step (model_utils/noise.py).
"""

import contextlib
import errno
import json
import logging
import os
import re
from pathlib import Path

import numpy as np

from model_utils import file_kind, interrupts, limited, paths
from model_utils.errors import UserError, shortened
from model_utils.quiet import hide_errors

log = logging.getLogger("run")

META = "training/meta"
FORMAT = 1  # of META; to be raised when an older program could not read what is written
PREFIXED = "/"
VALUE = 1  # the one field of MindSpore's message Checkpoint: a name with a part of a tensor
CRC_BYTES = 17  # "crc_num" and the number, behind the message
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAME = re.compile(r"step-(\d{8})\.ckpt")


def _fsync_folder(folder):
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    On failure the temporary file is removed and what stood at `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The original ending stays last: MindSpore's writers append their own if it is not there.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    leftovers = temporary, temporary.with_suffix(".tmp")
    try:
        with interrupts.unfinished(*leftovers):
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        _fsync_folder(path.parent)
    finally:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)


def _write(entries, path):
    import mindspore as ms

    with atomic(path) as temporary, hide_errors():
        try:
            ms.save_checkpoint(entries, str(temporary), crc_check=True)
        except RuntimeError as error:
            # MindSpore may wrap an error of the operating system, which is then the cause. Any other error is
            # a bug, or too little memory, and is passed on.
            cause = _refusal_behind(error)
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        os.chmod(temporary, 0o644)  # MindSpore makes it read-only for its owner


def _refusal_behind(error):
    """The OSError that an exception was raised from or while handling, or None."""
    seen = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen


def save_cell(cell, path, meta=None):
    """Write one cell's parameters under their own names, with META if there is some."""
    entries = [{"name": p.name, "data": p} for p in cell.get_parameters()]
    _write(entries + ([_packed(meta)] if meta else []), path)


def _packed(meta):
    import mindspore as ms

    return {"name": META, "data": ms.Tensor(np.frombuffer(json.dumps(meta).encode(), np.uint8))}


def save_state(state, meta, path):
    """Write a training checkpoint.

    Args:
        state: {name: nn.Cell} from `Trainer.state()`; "network" is stored unprefixed.
        meta: what JSON can hold; phase, step, config.
        path: the file to make or replace, atomically.
    """
    entries = [{"name": name, "data": parameter} for name, parameter in named_parameters(state).items()]
    _write([*entries, _packed(meta)], path)


def named_parameters(state):
    """{name in a training checkpoint: Parameter} of `Trainer.state()`, each parameter once.

    An optimizer lists the weights it updates among its own; they belong to the network that comes first.
    """
    named, seen = {}, set()
    for cell_name, cell in state.items():
        for parameter in cell.get_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                prefix = "" if cell_name == "network" else f"{cell_name}{PREFIXED}"
                named[prefix + parameter.name] = parameter
    return named


def read(path):
    """{name: numpy array} of a `.ckpt` file, and its META (None if it has none).

    Raises:
        UserError: missing, cut short, damaged, not a checkpoint, or of a newer format.
    """
    import mindspore as ms

    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give a .ckpt file or a run's output_dir")
    if path.suffix != ".ckpt":
        raise UserError(f"checkpoint {path} must be a .ckpt file (a MindSpore checkpoint)")
    damaged = f"checkpoint {path} is damaged, cut short or no MindSpore checkpoint; use another one"
    kinds = (ValueError, RuntimeError, TypeError, KeyError, IndexError, MemoryError, OverflowError)
    try:
        if not limited.is_message(path, fields={VALUE}, ending=CRC_BYTES if _has_crc(path) else 0):
            raise ValueError("not a message of values")  # MindSpore would read all of it to find that out
        with hide_errors():
            loaded = ms.load_checkpoint(str(path), crc_check=_has_crc(path))
        values = {name: value.asnumpy() for name, value in loaded.items() if hasattr(value, "asnumpy")}
    except OSError as error:
        raise UserError(f"checkpoint {path}: {error.strerror or error}") from error
    except kinds as error:
        raise UserError(damaged + file_kind.suffix(path)) from error
    packed = values.pop(META, None)
    try:
        meta = None if packed is None else json.loads(packed.tobytes())
    except (ValueError, RecursionError) as error:
        raise UserError(damaged) from error
    if isinstance(meta, dict) and meta.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {meta['format']!r:.20}, this program reads {FORMAT}; "
            "use the version of this repository that wrote it"
        )
    return values, meta


def _has_crc(path):
    with open(path, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - CRC_BYTES))
        return handle.read(7) == b"crc_num"


def fill(parameters, values, what, where):
    """Copy arrays into parameters; all names and shapes must match on both sides.

    Args:
        parameters: {name: Parameter} to fill.
        values: {name: array}.
        what, where: named in the error, e.g. "network", the file.

    Raises:
        UserError: it lists what is missing, left over or of another shape; nothing was changed then.
    """
    import mindspore as ms

    missing = sorted(set(parameters) - set(values))
    extra = sorted(set(values) - set(parameters))
    shapes = [
        f"{name} {values[name].shape} for {tuple(parameters[name].shape)}"
        for name in sorted(set(parameters) & set(values))
        if tuple(values[name].shape) != tuple(parameters[name].shape)
    ]
    problems = [
        f"{title}: {shortened(names, 4)}"
        for title, names in (("missing", missing), ("left over", extra), ("other shape", shapes))
        if names
    ]
    if problems:
        raise UserError(
            f"{where} does not fit the {what} of this experiment ({'; '.join(problems)}); "
            "use the --config it was trained with"
        )
    for name, parameter in parameters.items():
        # In place, because set_data exchanges the tensor and code that is compiled already goes on with the
        # old one. MindSpore 2.7 does so even after it was freed, and crashes.
        ms.ops.assign(parameter, ms.Tensor(values[name], parameter.dtype))


def stored_meta(path):
    """META of a checkpoint, or of the newest one in a run's folder; None where it has none."""
    path = Path(paths.expanded(path, "checkpoint"))
    return newest(path)[2] if path.is_dir() else read(path)[1]


def stored_config(path):
    """The configuration stored in a checkpoint or in a run's folder; {} where there is none."""
    meta = stored_meta(path)
    config = meta.get("config", {}) if isinstance(meta, dict) else {}
    if config and not (isinstance(config, dict) and isinstance(config.get("method"), str)):
        raise UserError(f"checkpoint {path}: the configuration stored in it is damaged; use another one")
    return config


def class_names(meta, path):
    """The class names in META, a tuple in the order of the logits; None where there are none.

    Raises:
        UserError: they are not names.
    """
    names = meta.get("classes") if isinstance(meta, dict) else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"checkpoint {path}: the class names stored in it are damaged; use another one")
    return tuple(names)


def read_network(path):
    """(file, {name: array} of the network, META) of a checkpoint, or of the newest one of a run's folder.

    Raises UserError as `read` and `newest` do.
    """
    path = Path(paths.expanded(path, "checkpoint"))
    path, values, meta = newest(path) if path.is_dir() else (path, *read(path))
    return path, {name: value for name, value in values.items() if PREFIXED not in name}, meta


def load_network(network, path):
    """Fill `network` from a training checkpoint, a network checkpoint, or the newest one of a run's folder.

    Returns (file, META). Raises UserError as `read` and `fill` do, and for values that are not finite.
    """
    path, values, meta = read_network(path)
    check_finite(values, path)
    fill({p.name: p for p in network.get_parameters()}, values, "network", f"checkpoint {path}")
    return path, meta


def load_cell(cell, path, what):
    """Fill one cell from a checkpoint that holds its parameters and nothing else; returns META or None."""
    values, meta = read(path)
    check_finite(values, path)
    fill({p.name: p for p in cell.get_parameters()}, values, what, f"checkpoint {path}")
    return meta


def check_finite(values, path):
    """A network with a weight that is not a number classifies everything as class 0; raise UserError."""
    for name, value in values.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(f"checkpoint {path}: {name} is infinite or not a number; use another one")


def restore_state(state, values, where):
    """Fill every cell of `state` from a training checkpoint's values."""
    fill(named_parameters(state), values, "networks and optimizers", f"checkpoint {where}")


def step_path(output_dir, step):
    """Where the checkpoint after `step` training steps of all phases lies."""
    return Path(output_dir) / "checkpoints" / f"step-{step:08d}.ckpt"


def listed(output_dir):
    """Training checkpoints of a run's folder, newest first."""
    found = (Path(output_dir) / "checkpoints").glob("step-*.ckpt")
    return sorted((path for path in found if NAME.fullmatch(path.name)), reverse=True)


def of_run(output_dir):
    """What to evaluate of a run's folder: the folder itself where it holds training checkpoints, else its
    network.ckpt; None where it has neither.
    """
    network = Path(output_dir) / "network.ckpt"
    return Path(output_dir) if listed(output_dir) else network if network.is_file() else None


def newest(output_dir):
    """(path, values, meta) of the newest good training checkpoint; warns of damaged ones it passes over."""
    paths = listed(output_dir)
    for path in paths:
        try:
            values, meta = read(path)
            if not _is_training_meta(meta) or not _has_crc(path):
                raise UserError(f"checkpoint {path} holds no training state, or was cut short")
            class_names(meta, path)
            return path, values, meta
        except UserError as error:
            log.warning("warning: %s; trying the one before it", error)
    state = "none of them is good" if paths else "there is none"
    raise UserError(f"no training checkpoint to use in {Path(output_dir) / 'checkpoints'}: {state}")


def _is_training_meta(meta):
    kinds = {"step": int, "seconds": int | float, "trained": list, "oracle": dict, "config": dict}
    return isinstance(meta, dict) and all(isinstance(meta.get(key), kind) for key, kind in kinds.items())


def set_aside_newer(output_dir, path):
    """Rename damaged checkpoints that are newer than `path`, from which a run resumes, to `….damaged`.

    Under their own names they would count as the newest, and pruning would delete good ones in their favour.
    """
    for newer in listed(output_dir):
        if newer > path:
            newer.rename(newer.with_name(newer.name + ".damaged"))


def prune(output_dir, keep):
    """Delete the oldest training checkpoints, so that `keep` remain."""
    for path in listed(output_dir)[keep:]:
        path.unlink(missing_ok=True)
