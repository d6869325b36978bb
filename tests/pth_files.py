"""Writes PyTorch's two file formats by hand, opcode by opcode: no PyTorch, and nothing of the reader's."""

import pickle
import struct
import zipfile

import numpy as np

STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage"}
STORAGES |= {"u1": "ByteStorage"}


def text(value):
    """A text."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value):
    """A whole number of up to 255 bytes."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def numbers(values):
    """A tuple of whole numbers."""
    return b"(" + b"".join(number(int(value)) for value in values) + b"t"


def name(module, function):
    """A reference to a function or class."""
    return f"c{module}\n{function}\n".encode()


def storage(kind, key, count):
    """A reference to a storage."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(kind, key, count, offset, shape, stride):
    """A tensor on a storage."""
    start = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage(kind, key, count) + number(offset)
    hooks = name("collections", "OrderedDict") + b")R"
    return start + numbers(shape) + numbers(stride) + b"\x89" + hooks + b"tR"


def mapping(items):
    """An OrderedDict of pickled values, with a module's `_metadata`."""
    entries = b"".join(text(key) + value for key, value in items.items())
    return name("collections", "OrderedDict") + b")R(" + entries + b"u}" + text("_metadata") + b"}sb"


def state(arrays):
    """(pickled state_dict, {storage key: bytes}) of {name: array}."""
    items, content = {}, {}
    for index, (title, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        strides = [step // array.itemsize for step in np.empty(array.shape, array.dtype).strides]
        kind = STORAGES[array.dtype.str[1:]]
        items[title] = tensor(kind, str(index), array.size, 0, array.shape, strides)
        content[str(index)] = array.tobytes()
    return mapping(items), content


def program(body):
    """A pickle of protocol 2."""
    return b"\x80\x02" + body + b"."


def write_zip(path, body, storages=None, compression=zipfile.ZIP_STORED):
    """The format of PyTorch 1.6 and later."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(body))
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path, body, storages=None, itemsize=4):
    """The format before it."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [program(body), pickle.dumps(list(storages or {}), 2)]
    parts += [struct.pack("<q", len(item) // itemsize) + item for item in (storages or {}).values()]
    path.write_bytes(b"".join(parts))
    return path


def write_state(path, arrays, legacy=False):
    """A `.pth` file of {name: float32 array}."""
    return (write_legacy if legacy else write_zip)(path, *state(arrays))
