"""Reading ONNX files from anywhere, also with weights in a second file, and running them in onnxruntime."""

import logging
import math
from pathlib import Path, PurePosixPath

import numpy as np

from model_utils import file_kind, limited
from model_utils.errors import UserError
from model_utils.optional import reason_of, require

log = logging.getLogger("run")

MAX_BYTES = 2**31 - 1  # of one protobuf message
NAMED_OUTSIDE = b"location"  # a key of every tensor that lies in another file


def parse(content, path):
    """The onnx.ModelProto in the bytes of a file; UserError naming `path` if they hold none."""
    onnx = require("onnx", "to read ONNX files")
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise UserError(f"model: {path} is damaged, or no ONNX file") from error


def message(path):
    """The bytes of a file that holds one protobuf message; UserError naming `path` if it does not."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES or not limited.is_message(path):
            raise UserError(f"model: {path} is damaged, or no ONNX file{file_kind.suffix(path)}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"model: {path}: {error.strerror or error}") from error


def read(path):
    """The bytes of an ONNX file, with what lies in other files beside it taken in.

    Raises:
        UserError: it can't be read, or what it refers to is missing, too short or elsewhere.
    """
    path = Path(path)
    content = message(path)
    if NAMED_OUTSIDE not in content:
        return content
    model = parse(content, path)
    outside = [tensor for tensor in _tensors(model.graph) if tensor.data_location == tensor.EXTERNAL]
    if not outside:
        return content
    total = len(content)
    names = set()
    for tensor in outside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        names.add(entries.get("location", ""))
        values = _outside(path, entries)
        total += len(values)
        if total > MAX_BYTES:
            raise UserError(f"model: {path} and its weights are larger than 2 GiB, too much here")
        tensor.raw_data = values
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]
    log.info("%s: weights read from %s beside it", path, ", ".join(sorted(names)))
    return model.SerializeToString()


def _tensors(graph):
    """All tensors of a graph: initial values, constants, and those of the graphs inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def _outside(path, entries):
    """The bytes of one tensor from the file it names."""
    location = entries.get("location", "")
    place = PurePosixPath(location.replace("\\", "/"))
    if not location or place.is_absolute() or ".." in place.parts or "\0" in location:
        raise UserError(f"model: {path} names {location[:100]!r} for its weights, which is not beside it")
    try:
        offset, length = (int(entries.get(key, "0")) for key in ("offset", "length"))
        with open(path.parent / place, "rb") as file:
            size = file.seek(0, 2)
            length = length or size - offset
            if not 0 <= offset <= offset + length <= size:
                raise UserError(
                    f"model: {path}: its weights in {place} are cut short, or those of another model"
                )
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise UserError(
            f"model: {path} keeps its weights in a second file, {place}, which can't be read beside it "
            f"({error.strerror}); copy both into one folder, or export it again as one file"
        ) from error
    except ValueError as error:
        raise UserError(f"model: {path} is damaged, or no ONNX file") from error


class Session:
    """An ONNX network in onnxruntime; every failure is a UserError that names the file.

    Attributes:
        inputs: [(name, shape)] with whole numbers where a dimension is fixed.
        metadata: {key: text} that the file holds.
        version: onnxruntime's.
        provider: what computes.
        classes: the last dimension of the first output, where the file fixes it.
    """

    def __init__(self, path, providers):
        runtime = require("onnxruntime", "to run ONNX files")
        self.path = Path(path)
        content = read(path)
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what it would print is in the exceptions as well
        # The bytes, not the path: onnxruntime refuses one that is not valid UTF-8.
        self._session = self._call(
            lambda: runtime.InferenceSession(content, options, providers=providers),
            "is damaged, or no ONNX file that onnxruntime can run",
        )
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.inputs = [(value.name, list(value.shape)) for value in self._session.get_inputs()]
        last = [value.shape[-1:] for value in self._session.get_outputs()][:1]
        self.classes = fixed(last[0][0]) if last and last[0] else None
        self.kinds = [value.type for value in self._session.get_inputs()]
        self.version = runtime.__version__
        self.provider = self._session.get_providers()[0]

    def _call(self, action, what):
        try:
            return action()
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's own have no base class but this
            raise UserError(f"model: {self.path} {what} ({reason_of(error)})") from error

    def run(self, images):
        """The first output for one array of images (N, C, H, W)."""
        name = self.inputs[0][0]
        failure = f"can't be run on images {images.shape}"
        outputs = self._call(lambda: self._session.run(None, {name: images}), failure)
        if not outputs or not isinstance(outputs[0], np.ndarray):
            raise UserError(f"model: {self.path} gives no array of logits; it is no image classifier")
        return outputs[0]


def fixed(number):
    """A dimension as a number, None where the file leaves it free."""
    return number if isinstance(number, int) and 0 < number < math.inf else None
