"""Pickled weights read as data: PyTorch's `.pth` files and numpy's `.npy` files of Python objects.

Neither library's reader takes part: model_utils/pickle_machine.py runs the pickle, and the functions it names
have their stand-ins here, which check every number before they make an array.
"""

import io
import math
import os
import re
import struct
import tokenize
import zipfile
from collections import OrderedDict

import numpy as np

from model_utils.pickle_machine import Machine, Name, Refused, Unbuilt, refusing, shown

MOST_DIMENSIONS = 32  # numpy's own limit

# PyTorch

# How to save only the weights with PyTorch; our reader never runs anything else in such a file.
_ALONE = (
    "save the weights alone where you trust it: loaded = torch.load(FILE, weights_only=False), then "
    "torch.save(loaded['state_dict'], 'weights.pth'), or network.state_dict() of a whole network"
)
_ARRAYS_ALONE = "save the arrays alone: numpy.save(FILE, {name: {'weights': array, …}})"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    **{"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1"},
    **{"ByteStorage": "u1", "BoolStorage": "bool"},
}
_RAW = {"bfloat16": "u2", "bool": "u1"}  # what numpy reads for kinds that it lacks, or can't check
_ENDS = {"little": "<", "big": ">"}


class _Storage:
    """A tensor's memory: `values`, one-dimensional; `kind` from _STORAGES."""

    def __init__(self, kind, count):
        self.kind, self.raw = kind, np.dtype(_RAW.get(kind, kind))
        self.values = np.zeros(count, {"bfloat16": "f4"}.get(kind, kind))

    def fill(self, content, end):
        """Take the values from bytes in byte order `end`, "<" or ">"."""
        raw = np.frombuffer(content, self.raw.newbyteorder(end))
        if self.kind == "bfloat16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        self.values[:] = raw != 0 if self.kind == "bool" else raw


class _Storages:
    """The storages a file's pickle names, made when first named; together no larger than the file."""

    def __init__(self, file_size, read=None):
        self.left, self.read, self.found = file_size, read, {}

    def __call__(self, identity):
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Refused("refers to something that is no storage of a tensor")
        _, kind, key, _, count, *view = identity
        if not isinstance(kind, Name) or kind.name not in _STORAGES or view not in ([], [None]):
            raise Refused("has a storage of an unknown kind")
        if not isinstance(key, str) or not _is_count(count):
            raise TypeError
        kind = _STORAGES[kind.name]
        if key not in self.found:
            self.left -= count * np.dtype(_RAW.get(kind, kind)).itemsize
            if self.left < 0:
                raise Refused("announces more values than it can hold")
            self.found[key] = _Storage(kind, count)
            if self.read:
                self.read(key, self.found[key])
        storage = self.found[key]
        if storage.kind != kind or storage.values.size != count:
            raise Refused("describes one storage in two ways")
        return storage


def _is_count(value):
    return type(value) is int and value >= 0


def _rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """A read-only view of a storage, all of it inside."""
    if not isinstance(storage, _Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise TypeError
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise ValueError
    if not all(_is_count(number) for number in (offset, *size, *stride)):
        raise Refused("has a tensor of negative shape, stride or offset")
    values = storage.values
    steps = [step if length > 1 else 0 for length, step in zip(size, stride, strict=True)]
    last = offset + sum((length - 1) * step for length, step in zip(size, steps, strict=True))
    if math.prod(size) == 0:
        last = offset - 1
    if math.prod(size) > values.size or last >= values.size or offset > values.size:
        raise Refused("has a tensor that reaches beyond its storage")
    strides = [step * values.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(values[offset:], size, strides, writeable=False)


def _rebuild_parameter(tensor, requires_grad=False, hooks=None):
    if not isinstance(tensor, np.ndarray):
        raise TypeError
    return tensor


def _ordered_dict(*pairs):
    if pairs not in ((), ([],)):
        raise Refused("makes an OrderedDict in an unknown way")
    return OrderedDict()


_TORCH = {
    "collections.OrderedDict": Name("OrderedDict", _ordered_dict),
    "torch._utils._rebuild_tensor_v2": Name("_rebuild_tensor_v2", _rebuild_tensor),
    "torch._utils._rebuild_parameter": Name("_rebuild_parameter", _rebuild_parameter),
    **{f"torch.{name}": Name(name) for name in _STORAGES},
}


def load_torch(path):
    """What `torch.save` wrote, in its zip format or the one before it (PyTorch < 1.6), without PyTorch.

    Returns:
        The saved containers, numbers and texts; tensors as read-only numpy arrays, bfloat16 as float32.

    Raises:
        UserError: the file is missing, damaged, or asks for anything but tensors in containers.
    """
    with refusing(path, "a PyTorch file (.pth) of weights") as path, open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        return _load_zip(file) if start == b"PK\x03\x04" else _load_legacy(file)


def _load_zip(file):
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        packed = any(
            info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members.values()
        )
        if packed or sum(info.file_size for info in archive.infolist()) > size:
            raise Refused("is compressed, which torch.save never does")
        roots = [name[: -len("data.pkl")] for name in members if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(roots) != 1:
            raise Refused("is a zip file without exactly one data.pkl")
        order = (
            archive.read(roots[0] + "byteorder").decode() if roots[0] + "byteorder" in members else "little"
        )

        def read(key, storage):
            name = f"{roots[0]}data/{key}"
            if members[name].file_size != storage.values.size * storage.raw.itemsize:
                raise ValueError
            storage.fill(archive.read(name), _ENDS[order])

        pickled = archive.read(roots[0] + "data.pkl")
        return Machine(_TORCH, _Storages(size, read), _ALONE).run(io.BytesIO(pickled))


def _load_legacy(file):
    """Five pickles (magic number, version, system, object, keys), then each key's count and values."""
    storages = _Storages(os.fstat(file.fileno()).st_size)
    magic, version, system = (Machine({}).run(file) for _ in range(3))
    if magic != _LEGACY_MAGIC or version != 1001:
        raise ValueError
    end = "<" if system["little_endian"] else ">"
    loaded = Machine(_TORCH, storages, _ALONE).run(file)
    keys = Machine({}).run(file)
    if sorted(keys) != sorted(storages.found):
        raise ValueError
    for key in keys:
        storage = storages.found[key]
        (count,) = struct.unpack(end + "q", file.read(8))
        content = file.read(count * storage.raw.itemsize) if count == storage.values.size else b""
        storage.fill(content, end)  # ValueError where the number of values is another one
    return loaded


# numpy

_DTYPE = re.compile(r"[fiu][1248]|b1|O8?")


def _dtype(text, align=False, copy=False):
    text = text.decode("latin1") if isinstance(text, bytes) else text
    if not _DTYPE.fullmatch(text):
        raise Refused(f"has an array of type {shown(text)}, which is no number")

    def finish(state):
        if len(state) < 8 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise Refused("has an array of structures")
        return np.dtype(text).newbyteorder(state[1])

    return Unbuilt(finish)


def _array(kind, shape, code):
    if not isinstance(kind, Name) or kind.name != "ndarray":
        raise TypeError

    def finish(state):
        _, shape, dtype, fortran, content = state
        return _from_content(content, dtype, shape, "F" if fortran else "C")

    return Unbuilt(finish)


def _from_content(content, dtype, shape, order):
    """An array from its bytes (a text where Python 2 wrote it), or from a list where it holds objects."""
    if not isinstance(dtype, np.dtype) or type(shape) is not tuple or not all(map(_is_count, shape)):
        raise TypeError
    if len(shape) > MOST_DIMENSIONS or order not in ("C", "F"):
        raise ValueError
    if dtype.hasobject:
        if type(content) is not list or len(content) != math.prod(shape):
            raise ValueError
        values = np.empty(len(content), object)
        for index, item in enumerate(content):
            values[index] = item
    else:
        content = content.encode("latin1") if isinstance(content, str) else content
        values = np.frombuffer(content, dtype)  # TypeError unless these are bytes
        values = values.astype(dtype.newbyteorder("="), copy=False)
    return values.reshape(shape, order=order)  # ValueError where the number of values is another one


def _scalar(dtype, content):
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise TypeError
    return _from_content(content, dtype, (), "C")[()]


def _encode(text, encoding):
    """How Python 3 writes bytes for Python 2 to read."""
    if encoding != "latin1" or not isinstance(text, str):
        raise Refused("encodes text in an unknown way")
    return text.encode("latin1")


_NUMPY = {
    "numpy.ndarray": Name("ndarray"),
    "numpy.dtype": Name("dtype", _dtype),
    "_codecs.encode": Name("encode", _encode),
}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY[f"{_core}.multiarray._reconstruct"] = Name("_reconstruct", _array)
    _NUMPY[f"{_core}.multiarray.scalar"] = Name("scalar", _scalar)
    _NUMPY[f"{_core}.numeric._frombuffer"] = Name("_frombuffer", _from_content)


def load_numpy_pickle(path):
    """The Python object that `numpy.save` wrote into a `.npy` file, such as bvlc_alexnet.npy.

    Files of Python 2 (texts as latin-1) and 3, of header versions 1 and 2.

    Returns:
        Lists, tuples and dictionaries of numbers, texts and numpy arrays (of numbers or objects). The object
        array without dimensions that numpy.save wraps a dictionary in is taken off.

    Raises:
        UserError: the file is missing, damaged, holds no Python object, or asks for anything else.
    """
    with refusing(path, "a .npy file of weights") as path, open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        try:
            shape, _, dtype = readers[version](file)
        except (SyntaxError, tokenize.TokenError) as error:  # numpy parses the header as Python
            raise ValueError from error
        if not dtype.hasobject or dtype != np.dtype(object):
            raise Refused("is a plain array, which numpy.load reads")
        loaded = Machine(_NUMPY, weights_alone=_ARRAYS_ALONE).run(file)
        if not isinstance(loaded, np.ndarray) or loaded.shape != shape:
            raise ValueError
        return loaded[()] if loaded.shape == () else loaded
