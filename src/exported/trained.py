"""A trained network out of a checkpoint, with the names of its classes: what evaluation, export and inference
need.
"""

import dataclasses
import logging
from pathlib import Path

from model_utils import checkpoint
from model_utils.errors import UserError
from src import networks

log = logging.getLogger("run")


@dataclasses.dataclass
class Trained:
    """A network with trained weights.

    Attributes:
        network: `networks.Classifier`.
        names: the names of its classes in the order of the logits, or None where an old checkpoint has none.
        path: the file, or the files, in words.
    """

    network: object
    names: tuple | None
    path: str

    @property
    def classes(self):
        """What `tasks.open_task` takes: the names, or where nobody knows them their number."""
        return self.names or self.network.classes


def load(settings, path):
    """The network of a training checkpoint, a network checkpoint, or the newest one of a run's folder.

    Raises:
        UserError: as `checkpoint.read` and `checkpoint.fill` do, and for values that are not finite.
    """
    path, values, meta = checkpoint.read_network(path)
    checkpoint.check_finite(values, path)
    network = networks.build(settings, networks.class_count(settings, values))
    parameters = {p.name: p for p in network.get_parameters()}
    try:
        checkpoint.fill(parameters, values, "network", f"checkpoint {path}")
    except UserError as error:
        if isinstance(meta, dict) and meta.get("config"):
            raise
        raise UserError(
            f"{error}; the file does not say what it was trained with: add its configuration, such as "
            "--config configs/hardnet85_imagenet.yaml"
        ) from error
    return Trained(network, _names(meta, network.classes, path), str(path))


def find(settings, method, key):
    """The network that eval.py (key `ckpt_path`) or export.py (`ckpt_file`) is asked for.

    In this order: the parts given in several files, the checkpoint given, the newest one of `output_dir`, and
    the published files of parts in `output_dir`.

    Raises:
        UserError: none of them exists, or it can't be used.
    """
    loaded = load_parts(settings, method)
    if loaded is not None:
        return loaded
    folder = Path(settings.output_dir)
    if path := getattr(settings, key) or checkpoint.of_run(folder):
        return load(settings, path)
    parts = {name: str(folder / file) for name, file in method.PUBLISHED_PARTS.items()}
    if parts and all(Path(path).is_file() for path in parts.values()):
        return load_parts(settings.replace(**parts), method)
    raise UserError(
        f"{key}: there is no checkpoint in {folder} (output_dir); train first, or name a checkpoint or the "
        f"output_dir of a run with --{key}"
    )


def load_parts(settings, method):
    """The network whose parts are given in several files (`Trainer.published_parts`), or None if none is
    given.
    """
    if not any(getattr(settings, key) for key in method.PUBLISHED_PARTS):
        return None
    network = networks.build(settings, settings.num_classes or networks.DIGITS)
    if network.neck is not None:
        raise UserError(
            f"bottleneck: {' and '.join(method.PUBLISHED_PARTS)} hold none; give --ckpt_path the run's "
            "folder or its network.ckpt, or leave bottleneck out"
        )
    parts = method.published_parts(network, settings)
    given = {key: (part, path) for key, (part, path) in parts.items() if path}
    if settings.ckpt_path:
        raise UserError(f"give either ckpt_path or {' and '.join(parts)}, not both")
    missing = [key for key in parts if key not in given]
    if missing:
        raise UserError(f"{', '.join(given)} needs {' and '.join(missing)} as well")
    names = {
        _names(checkpoint.load_cell(part, path, key), network.classes, path)
        for key, (part, path) in given.items()
    }
    names.discard(None)
    if len(names) > 1:
        raise UserError(
            f"{' and '.join(given)}: the files are of models with different classes; give those of one run"
        )
    return Trained(network, names.pop() if names else None, ", ".join(path for _, path in given.values()))


def _names(meta, count, path):
    """The class names stored in a checkpoint; None, and a line that says so, where there are none."""
    names = checkpoint.class_names(meta, path)
    if names is None:
        log.warning("warning: %s does not name its classes: only their number, %d, is checked", path, count)
        return None
    if len(names) != count or len(set(names)) != count:
        raise UserError(
            f"checkpoint {path}: it has {count} classes, but names {len(set(names))}; use another one"
        )
    return names
