"""Export of the image -> logits network, for every method; each file is loaded again and compared."""

import json
import logging
import shutil
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np

from model_utils import interrupts
from model_utils.checkpoint import atomic
from model_utils.errors import UserError
from model_utils.keys import COMMON
from model_utils.optional import require
from src.exported import onnx_file
from src.exported._additions import written_out

log = logging.getLogger("run")

TOLERANCE = 1e-4
ENDINGS = {"MINDIR": ".mindir", "ONNX": ".onnx", "AIR": ".air"}
PLAIN_TEXT = ("method", "experiment")  # what a file says of itself as plain text; the rest is JSON
TRACED_BATCH = 7  # of a free-batch ONNX export; a number no layer has, so that it can be told apart


def describe(config, preparation, names=None):
    """What an exported file says of itself, so that evaluation and inference need no configuration.

    Args:
        config: of the experiment.
        preparation: how images are prepared for the network.
        names: of the classes in the order of the logits, or None where nobody knows them.

    Returns:
        {"method", "experiment", "settings": {key: value} of the recipe, "preparation":
        `Preparation.as_dict()`} and "class_names" where they are known.
    """
    recipe = {name: value for name, value in config.as_dict().items() if name not in COMMON}
    about = {"method": config.method, "experiment": config.experiment, "settings": recipe}
    about["preparation"] = preparation.as_dict()
    return about if names is None else {**about, "class_names": list(names)}


def sidecar(path):
    """The JSON file beside a MINDIR that holds what `describe` returned: the format has no place for it."""
    return Path(f"{path}.json")


def export(network, images, path, file_format, batch_size=None, device_target="CPU", about=None):
    """Write `network` as MINDIR, ONNX or AIR, load the file again and compare its logits.

    Args:
        network: nn.Cell, float32 images (N, C, H, W) -> logits (N, K); put into evaluation mode.
        images: float32 (M, C, H, W) real images, all of which are compared, M >= 2.
        path: the file to write (str or Path), with or without its ending.
        file_format: "MINDIR", "ONNX" or "AIR" (Ascend only; can't be loaded off the device, so not compared).
        batch_size: fixed batch, or None for a free one.
        about: what `describe` returned, or None. It becomes an ONNX file's metadata (`metadata_props`), and
            the file `sidecar(path)` beside a MINDIR or AIR.

    Returns:
        (path written, largest absolute difference of the logits, or None for AIR).

    Raises:
        UserError: AIR without Ascend; `path` names a folder; the file can't be written.
        RuntimeError: the reloaded network differs by more than 1e-4.
    """
    if file_format == "AIR" and device_target != "Ascend":
        raise UserError(
            f"file_format: AIR is written by Ascend only, and this runs on {device_target}; "
            "use MINDIR or ONNX, or run on Ascend"
        )
    if file_format == "ONNX":
        require("onnx", "to write ONNX files")
        require("onnxruntime", "to check the ONNX files written")
    network.set_train(False)
    ending = ENDINGS[file_format]
    if str(path).endswith("/") or not Path(path).name:
        raise UserError(f"file_name: {path} is a folder; name the file in it")
    path = Path(path)
    path = path if path.suffix == ending else path.with_name(path.name + ending)
    writer = {"MINDIR": _write_mindir, "ONNX": _write_onnx, "AIR": _write_air}[file_format]
    try:
        with atomic(path) as temporary:
            writer(network, images, temporary, batch_size)
            if about and file_format == "ONNX":
                _add_metadata(temporary, about)
            difference = _compare(network, images, temporary, file_format, batch_size)
        if about and file_format != "ONNX":
            with atomic(sidecar(path)) as temporary:
                temporary.write_text(_json(about, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"export {path}: {error.strerror}; choose another --file_name") from error
    return path, difference


def _json(value, indent=None):
    """JSON for people; with escapes only where a class folder's name is not valid text."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def _add_metadata(path, about):
    onnx = require("onnx", "to write ONNX files")
    model = onnx.load(str(path))
    texts = {name: value if name in PLAIN_TEXT else _json(value) for name, value in about.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, str(path))


def _trace_input(images, batch_size):
    count = batch_size or TRACED_BATCH
    return ms.Tensor(np.resize(images, (count, *images.shape[1:])))


def _mindspore_export(network, inputs, path, file_format):
    """MindSpore refuses paths with a space or an umlaut: it gets a plain one, and the file is copied."""
    with tempfile.TemporaryDirectory(prefix="export-") as folder, interrupts.unfinished(folder):
        written = Path(folder) / f"network{path.suffix}"
        ms.export(network, inputs, file_name=str(written), file_format=file_format)
        shutil.copyfile(written, path)


def _write_mindir(network, images, path, batch_size):
    if batch_size is None:
        inputs = ms.Tensor(shape=[None, *images.shape[1:]], dtype=ms.float32)
    else:
        inputs = _trace_input(images, batch_size)
    _mindspore_export(network, inputs, path, "MINDIR")


def _write_air(network, images, path, batch_size):
    _mindspore_export(network, _trace_input(images, batch_size or 1), path, "AIR")


def _write_onnx(network, images, path, batch_size):
    onnx = require("onnx", "to write ONNX files")
    with written_out():
        _mindspore_export(network, _trace_input(images, batch_size), path, "ONNX")
    model = onnx.load(str(path))
    _rename(model.graph, model.graph.input[0].name, "images")
    _rename(model.graph, model.graph.output[0].name, "logits")
    if batch_size is None:
        _free_batch(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _rename(graph, old, new):
    for value in (*graph.input, *graph.output):
        value.name = new if value.name == old else value.name
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name


def _free_batch(model):
    """Replace the traced batch by a free dimension: MindSpore's ONNX writer knows fixed shapes only.

    A reshape's leading TRACED_BATCH becomes 0, which ONNX defines as "take it from the input".
    """
    from onnx import numpy_helper

    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].dim_value == TRACED_BATCH:
            shape.dim[0].dim_param = "batch"
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    tensors = [tensor for tensor in graph.initializer if tensor.name in shapes]
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in shapes:
            tensors += [attribute.t for attribute in node.attribute if attribute.name == "value"]
    for tensor in tensors:
        target = numpy_helper.to_array(tensor).copy()
        if target.size and target[0] == TRACED_BATCH:
            target[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(target, tensor.name))


def _compare(network, images, path, file_format, batch_size):
    """Largest absolute difference of the logits over all images; nan if any logit is not a number.

    A fixed batch takes the images in turns, the last one filled up by repeating; a free one takes all of them
    at once, then one.
    """
    if file_format == "AIR":
        return None
    run = _mindir_runner(path) if file_format == "MINDIR" else onnx_runner(path)
    if batch_size is None:
        batches = [images, images[:1]]
    else:
        parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        batches = [np.resize(part, (batch_size, *images.shape[1:])) for part in parts]
    differences = [np.abs(run(batch) - network(ms.Tensor(batch)).asnumpy()).max() for batch in batches]
    difference = float(np.max(differences))  # Python's max may pass over nan
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported network's logits differ by {difference:.2e}, more than {TOLERANCE}")
    return difference


def _mindir_runner(path):
    reloaded = ms.nn.GraphCell(ms.load(str(path)))
    return lambda batch: reloaded(ms.Tensor(batch)).asnumpy()


def onnx_runner(path):
    """Function float32 images (N, C, H, W) -> logits (N, K) through onnxruntime on the CPU."""
    return onnx_file.Session(path, ["CPUExecutionProvider"]).run
