"""Trained networks in files, ready to run: ONNX in onnxruntime, MINDIR and checkpoints in MindSpore.

What such a file says of itself (src/exported/exporting.py, `describe`) takes the place of a configuration.
"""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np

from model_utils import limited, paths
from model_utils.errors import UserError
from model_utils.optional import reason_of, require
from model_utils.quiet import hide_errors
from src import networks
from src.data import preparation
from src.exported import onnx_file
from src.exported.exporting import PLAIN_TEXT, sidecar
from src.setup import settings

log = logging.getLogger("run")

USUAL_SIZE, USUAL_CROP = 224, 0.875  # of ImageNet classifiers from elsewhere
MAX_ABOUT_BYTES = 16 * 2**20  # 100,000 class names take 3 MB
KINDS = {"method": str, "settings": dict, "class_names": list, "preparation": dict}


@dataclasses.dataclass
class Model:
    """A network that classifies images.

    Attributes:
        path: the file, or a run's folder.
        run: function float32 images (N, C, H, W) -> logits (N, K).
        about: what `exporting.describe` returned, as far as the file knows; {} for a foreign one.
        batch_size: N, where the file fixes it, else None.
        size: side of the images, where the file fixes it, else None.
        place: a line that says what computes.
        classes: K, where the file says it before anything has been computed, else None.
    """

    path: Path
    run: object
    about: dict
    batch_size: int | None = None
    size: int | None = None
    place: str = ""
    classes: int | None = None

    @property
    def names(self):
        """The class names that the file holds, or None."""
        names = self.about.get("class_names")
        return tuple(names) if names else None

    @property
    def preparation(self):
        """How images are prepared; for a foreign file, which does not say so, as is usual for ImageNet."""
        if self.about:
            return preparation.read(self.about["preparation"])
        return preparation.Preparation(
            self.size or USUAL_SIZE,
            crop_pct=USUAL_CROP,
            mean=preparation.IMAGENET_MEAN,
            std=preparation.IMAGENET_STD,
        )

    def logits(self, images):
        """float32 (N, C, H, W), N >= 1 whatever the file's batch -> float32 (N, K).

        Raises:
            UserError: the images do not fit, or the logits are not finite.
        """
        fixed = self.batch_size
        if fixed is None:
            return self._checked(images)
        starts = range(0, len(images), fixed)
        # The last batch is filled up by repeating its images.
        parts = [np.resize(images[i : i + fixed], (fixed, *images.shape[1:])) for i in starts]
        return np.concatenate([self._checked(part) for part in parts])[: len(images)]

    def _checked(self, images):
        logits = self.run(np.ascontiguousarray(images))
        if logits.ndim != 2 or len(logits) != len(images):
            raise UserError(
                f"model: {self.path} turns images {images.shape} into {logits.shape}, not into logits "
                "(N, K); it is no classifier"
            )
        if not np.isfinite(logits).all():
            raise UserError(f"model: {self.path} gives logits that are infinite or no number; it is damaged")
        return logits


# Opening


def open_model(path, device_target="auto", device_id=0, config_path=None):
    """Open an .onnx or .mindir file, a .ckpt file or a run's folder.

    Args:
        path: str or Path.
        device_target, device_id: as the configuration keys; onnxruntime knows CPU and GPU.
        config_path: the configuration of a checkpoint that does not hold its own.

    Raises:
        UserError: no such file, another format, a damaged file, no such device.
    """
    path = Path(paths.expanded(path, "model"))
    if not path.exists():
        raise UserError(
            f"model: {path} does not exist; give an .onnx, .mindir or .ckpt file or a run's folder"
        )
    if path.is_dir() or path.suffix == ".ckpt":
        return _open_checkpoint(path, device_target, device_id, config_path)
    openers = {".onnx": open_onnx, ".mindir": _open_mindir}
    if path.suffix not in openers:
        raise UserError(
            f"model: {path} is of no known format by its name; give an .onnx, .mindir or .ckpt file, or a "
            "run's folder"
        )
    return openers[path.suffix](path, device_target, device_id)


def onnx_providers(device_target, device_id=0):
    """onnxruntime's names for a device_target: auto takes a GPU if this onnxruntime can use one.

    Raises:
        UserError: GPU without a GPU build of onnxruntime; Ascend.
    """
    onnxruntime = require("onnxruntime", "to run ONNX files")
    cpu, gpu = "CPUExecutionProvider", ("CUDAExecutionProvider", {"device_id": device_id})
    has_gpu = gpu[0] in onnxruntime.get_available_providers()
    if device_target == "Ascend":
        raise UserError(
            "device_target: ONNX runs on CPU or GPU here; on Ascend use a MINDIR or the checkpoint"
        )
    if device_target == "GPU" and not has_gpu:
        raise UserError(
            "device_target: GPU was asked for, but this onnxruntime knows the CPU only; install "
            "onnxruntime-gpu, or use --device_target CPU"
        )
    return [gpu, cpu] if has_gpu and device_target != "CPU" else [cpu]


def open_onnx(path, device_target="auto", device_id=0):
    """Open an ONNX file; see `open_model`."""
    path = Path(paths.expanded(path, "model"))
    session = onnx_file.Session(path, onnx_providers(device_target, device_id))
    if len(session.inputs) != 1 or len(session.inputs[0][1]) != 4:
        shown = ", ".join(f"{name} {shape}" for name, shape in session.inputs) or "nothing"
        raise UserError(f"model: {path} takes {shown}; an image classifier takes one array (N, C, H, W)")
    if session.kinds[0] != "tensor(float)":
        raise UserError(f"model: {path} takes {session.kinds[0]}; images are given as float32")
    shape = session.inputs[0][1]
    batch, size = onnx_file.fixed(shape[0]), onnx_file.fixed(shape[2])
    place = f"onnxruntime {session.version}, {session.provider}"
    return Model(path, session.run, _decoded(session.metadata, path), batch, size, place, session.classes)


def onnx_about(path):
    """What an ONNX file says of itself (`describe`), {} where another program wrote it; runs nothing."""
    path = Path(paths.expanded(path, "model"))
    if not path.is_file():
        raise UserError(f"model: {path} does not exist; give the .onnx file that export.py wrote")
    model = onnx_file.parse(onnx_file.message(path), path)
    return _decoded({entry.key: entry.value for entry in model.metadata_props}, path)


def _decoded(metadata, path):
    """`describe`'s dictionary out of an ONNX file's metadata, {} where another program wrote the file."""
    if "settings" not in metadata:
        return {}
    try:
        about = {k: text if k in PLAIN_TEXT else json.loads(text) for k, text in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"model: the metadata of {path} are damaged; export it again") from error
    return checked_about(about, path)


def checked_about(about, where):
    """`about`, if its entries are what `describe` makes: it may come from anywhere."""
    good = (
        isinstance(about, dict)
        and {"method", "settings"} <= set(about)
        and all(isinstance(about[name], kind) for name, kind in KINDS.items() if name in about)
        and all(isinstance(name, str) for name in about.get("class_names", ()))
        and len(set(about.get("class_names", ()))) == len(about.get("class_names", ()))
        and ("preparation" not in about or preparation.read(about["preparation"]) is not None)
    )
    if not good:
        raise UserError(f"model: what {where} says of itself is damaged; export the model again")
    if "preparation" not in about:
        about["preparation"] = _earlier_preparation(about, where).as_dict()
    return about


def _earlier_preparation(about, where):
    """The Preparation of a file that an earlier release wrote: it follows from the recipe."""
    sizes = {key: about[key] for key in ("image_size", "crop_pct") if key in about}
    try:
        recipe = settings.load([], stored={**about["settings"], "method": about["method"], **sizes})
        return networks.preparation(recipe)
    except UserError as error:
        raise UserError(
            f"model: what {where} says of itself is damaged ({error}); export it again"
        ) from error


def _open_mindir(path, device_target, device_id):
    _set_up(device_target, device_id, cpu_operator=False)
    import mindspore as ms
    from google.protobuf.message import DecodeError
    from mindspore.train.mind_ir_pb2 import ModelProto

    damaged = f"model: {path} is damaged, or no MINDIR of this MindSpore ({ms.__version__}); export it again"
    try:
        if path.stat().st_size > onnx_file.MAX_BYTES or not limited.is_message(path):
            raise ValueError("no message")
        content = ModelProto()
        content.ParseFromString(path.read_bytes())
        (shape,) = [list(tensor.dims) for value in content.graph.input for tensor in value.tensor]
        with hide_errors():
            network = ms.nn.GraphCell(ms.load(str(path)))
    except OSError as error:
        raise UserError(f"model: {path}: {error.strerror}") from error
    except (DecodeError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(damaged) from error
    if len(shape) != 4:
        raise UserError(f"model: {path} takes an array {shape}; an image classifier takes (N, C, H, W)")
    batch, size = (value if value > 0 else None for value in (shape[0], shape[2]))
    about, place = {}, f"MindSpore {ms.__version__}, {ms.get_context('device_target')}"
    if sidecar(path).is_file():
        try:
            about = json.loads(limited.content(sidecar(path), MAX_ABOUT_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"model: {sidecar(path)} is not valid JSON; export the model again") from error
        about = checked_about(about, sidecar(path))

    def run(images):
        try:
            return network(ms.Tensor(images)).asnumpy()
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"model: {path} can't be run on images {images.shape} ({reason_of(error)})"
            ) from error

    return Model(path, run, about, batch, size, place)


def _open_checkpoint(path, device_target, device_id, config_path):
    from src.exported import trained
    from src.exported.exporting import describe

    arguments = [f"--ckpt_path={path}", *([f"--config={config_path}"] if config_path else [])]
    recipe = settings.load(arguments, "infer.py", checkpoint_key="ckpt_path")
    _set_up(device_target, device_id)
    import mindspore as ms

    from src import ops

    loaded = trained.load(recipe, path)
    network = loaded.network
    ops.accelerate(network)
    network.set_train(False)
    names = loaded.names or _names_of_data(recipe, network.classes)
    about = describe(recipe, network.preparation, names)
    place = f"MindSpore {ms.__version__}, {ms.get_context('device_target')}"
    return Model(loaded.path, lambda images: network(ms.Tensor(images)).asnumpy(), about, place=place)


def _names_of_data(recipe, count):
    """Class names for a checkpoint that stores none: those of the data its recipe names, or None."""
    from model_utils.device import Device
    from src.data.tasks import open_task
    from src.train_cells import find_method

    try:
        names = open_task(recipe, Device("CPU"), count, find_method(recipe.method).LEAST_SOURCES).classes
    except UserError as error:
        log.warning("warning: its data do not name them either: %s", error)
        return None
    log.warning("warning: its classes are called here as in its data today, which may have changed since")
    return names


def _set_up(device_target, device_id, cpu_operator=True):
    from src.setup.place import set_up

    options = {"device_target": device_target, "device_id": device_id, "cpu_operator": cpu_operator}
    set_up(settings.load([f"--{name}={value}" for name, value in options.items()]))
