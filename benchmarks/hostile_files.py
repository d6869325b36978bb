"""Honest files of every kind that the programs read, what reads them, and what is done to them.

For benchmarks/hostile.py. A kind is a name, a function that makes an honest file's bytes in a folder, the
name of the file, and a function that reads it as the programs do.
"""

import bz2
import io
import json
import struct
import tarfile
import zipfile
import zlib

import numpy as np

OVERSIZE = 3 * 2**30  # bytes to which a file is extended, without taking room on the disk
NUMBERS = (b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), b"\x00\x00\x00\x80", b"\x80")
DAMAGES = ("cut", "flip", "number", "twice", "insert", "more", "oversized")


def damaged(content, rng):
    """(bytes, size to extend the file to or 0, what was done): one to four changes to an honest file's bytes.

    rng: numpy Generator.
    """
    content, done, size = bytearray(content), [], 0
    for _ in range(int(rng.integers(1, 5))):
        kind, at = str(rng.choice(DAMAGES)), int(rng.integers(0, max(1, len(content))))
        if kind == "cut":
            del content[at:]
        elif kind == "flip" and content:
            content[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == "number":
            number = NUMBERS[int(rng.integers(0, len(NUMBERS)))]
            content[at : at + len(number)] = number
        elif kind == "twice":
            content[at:at] = content[at : at + int(rng.integers(1, 400))]
        elif kind == "insert":
            content[at:at] = rng.bytes(int(rng.integers(1, 40)))
        elif kind == "more":
            content += [b"\0", b"}", b"\xff"][int(rng.integers(0, 3))] * 100_000
        elif kind == "oversized":
            size = OVERSIZE
        done.append(kind)
    return bytes(content), size, "+".join(done)


# Files that a stranger makes on purpose


def _laughs(key):
    """YAML of a few lines whose value has 10^9 parts."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, f"{key}: *a8"]).encode()


def zip_of(members):
    """The bytes of a zip archive. members: [(name, bytes)]."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return content.getvalue()


def tar_of(members):
    """The bytes of a tar archive. members: [(name, bytes, type)]; links lead to /etc/passwd."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data, kind in members:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _png(width, height, data=b"", depth=8, colour=2, interlace=0):
    """A PNG that says it is of this size, depth, colour type and way of interlacing."""
    chunks = b""
    for name, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


def _npy(shape, kind="<f4"):
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (117 - len(header)) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _usual(*names):
    """Members of a tar archive: files of one letter."""
    return [(name, b"x", tarfile.REGTYPE) for name in names]


# {kind: [(what, function that gives the bytes), …]}
MADE_ON_PURPOSE = {
    "yaml": [
        ("billion laughs", lambda: _laughs("z")),
        ("billion laughs as a value", lambda: _laughs("seed")),
        ("sixty thousand brackets", lambda: b"seed: " + b"[" * 60_000),
        ("a number of sixty thousand digits", lambda: b"seed: " + b"9" * 60_000),
        ("ten megabytes of keys", lambda: b"".join(b"k%d: 1\n" % n for n in range(1_000_000))),
        ("a Python object", lambda: b"seed: !!python/object/apply:os.system ['touch escaped']"),
        ("a merge of itself", lambda: b"a: &a\n  <<: *a\nseed: 1"),
    ],
    "space": [
        ("billion laughs as a value", lambda: _laughs("lr")),
        ("brackets", lambda: b"lr: " + b"[" * 60_000),
    ],
    "rank table": [
        ("brackets", lambda: b"[" * 1_000_000),
        ("a million digits", lambda: b'{"version": "1.0", "server_count": ' + b"9" * 1_000_000 + b"}"),
    ],
    "zip": [
        ("a path outside", lambda: zip_of([("../escaped", b"x")])),
        ("an absolute path", lambda: zip_of([("/tmp/escaped", b"x")])),
        ("a bomb of 400 MB", lambda: zip_of([("zeros", bytes(400 * 2**20))])),
    ],
    "tar": [
        ("a path outside", lambda: tar_of(_usual("a/../../escaped"))),
        ("a link and a file behind it", lambda: tar_of([("l", b"", tarfile.SYMTYPE), *_usual("l/x")])),
        ("a device", lambda: tar_of([("d", b"", tarfile.CHRTYPE)])),
        ("a file where a folder was", lambda: tar_of(_usual("a", "a/b"))),
    ],
    "image": [
        ("a PNG of 4 billion pixels", lambda: _png(65535, 65535)),
        ("a PNG that unpacks to 1 GB", lambda: _png(9000, 9000, bytes(10**9))),
        ("a PNG without lines", lambda: _png(0, 0)),
    ],
    "usps": [("a bomb of 1 GB", lambda: bz2.compress(bytes(10**9)))],
    "npy": [
        ("a shape of a billion", lambda: _npy("(1000000000,)")),
        ("a shape without end", lambda: _npy("(" + "9" * 60 + ",)")),
        ("objects", lambda: _npy("(1,)", "|O") + b"\x80\x04cos\nsystem\n(S'touch escaped'\ntR."),
    ],
    "idx": [("a header of 4 GB", lambda: struct.pack(">HBBIII", 0, 8, 3, 1, 65535, 65535))],
    "mindir.json": [("brackets", lambda: b"[" * 1_000_000)],
}


# Honest files, and what reads them


def a_checkpoint(folder):
    from model_utils import checkpoint
    from tests import helpers

    settings = helpers.demo_config(network="lenet", validation_size=0, device_target="CPU")
    network = helpers.build_network(settings, _place())
    meta = {"format": checkpoint.FORMAT, "config": settings.as_dict(), "classes": list("0123456789")}
    meta |= {"step": 1, "seconds": 1.0, "trained": [1, 1.0], "oracle": {}}
    checkpoint.save_cell(network, folder / "honest.ckpt", meta)
    return (folder / "honest.ckpt").read_bytes()


def _place():
    from model_utils.device import Device

    return Device("CPU")


def a_state(folder, legacy):
    from tests import pth_files

    arrays = {"a.weight": np.arange(12, dtype="f4").reshape(3, 4), "a.bias": np.ones(3, "f4")}
    return pth_files.write_state(folder / "honest.pth", arrays, legacy).read_bytes()


def a_pickle(folder):
    np.save(folder / "honest.npy", {"conv1": {"weights": np.ones((2, 3), "f4"), "biases": np.zeros(3)}})
    return (folder / "honest.npy").read_bytes()


def an_image(folder):
    import cv2

    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", picture)[1].tobytes()


def a_mat(folder):
    from scipy.io import savemat

    content = io.BytesIO()
    savemat(content, {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.array([[1], [2], [10], [4]])})
    return content.getvalue()


def usps_text(folder):
    row = "3 " + " ".join(f"{n}:{-1 + (n % 9) / 4:.2f}" for n in range(1, 257))
    return bz2.compress("\n".join([row] * 5).encode())


def a_rank_table(folder):
    devices = [{"device_id": str(i), "device_ip": f"10.0.0.{i}", "rank_id": str(i)} for i in range(4)]
    server = {"server_id": "10.0.0.1", "device": devices}
    table = {"version": "1.0", "server_count": "1", "status": "completed", "server_list": [server]}
    return json.dumps(table).encode()


def an_onnx(folder):
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"], transB=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "net", [images], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def a_mindir(folder):
    import mindspore as ms
    from mindspore import nn

    network = nn.SequentialCell(nn.Conv2d(3, 4, 8, pad_mode="valid"), nn.Flatten(), nn.Dense(4, 2))
    network.set_train(False)
    path = folder / "honest.mindir"
    ms.export(
        network, ms.Tensor(np.ones((2, 3, 8, 8), np.float32)), file_name=str(path), file_format="MINDIR"
    )
    return path.read_bytes()


def an_about(folder):
    from src.data.preparation import Preparation

    a_mindir(folder)
    about = {"method": "dann", "settings": {}, "class_names": ["a", "b"]}
    return json.dumps({**about, "preparation": Preparation(8).as_dict()}).encode()


def an_idx(folder):
    return struct.pack(">HBBIII", 0, 8, 3, 5, 4, 4) + bytes(range(80))


def a_zip(folder):
    return zip_of(MEMBERS)


def a_tar(folder):
    return tar_of([(*member, tarfile.REGTYPE) for member in MEMBERS])


def read_model(path, out):
    from src.exported import model_files

    model = model_files.open_model(path, "CPU")
    side, channels = (28, 1) if path.suffix == ".ckpt" else (8, 3)
    model.logits(np.ones((2, channels, side, side), np.float32))


def read_about(path, out):
    """The file beside a MINDIR."""
    read_model(path.with_name("honest.mindir"), out)


def read_configuration(path, out):
    from src.setup import settings

    settings.load([f"--config={path}"])


def read_space(path, out):
    from src.setup import settings
    from src.sweeps import space

    space.read(path, settings.load(["--config=tests/tiny/mcc.yaml"]).keys)


def read_pth(path, out):
    from src.networks import _hardnet_weights

    _hardnet_weights.read_state(path)


def read_npy(path, out):
    from model_utils.restricted_pickle import load_numpy_pickle

    load_numpy_pickle(path)


def read_idx(path, out):
    from src.data import idx

    np.asarray(idx.read(path, 3)[:2])


def read_mat(path, out):
    from src.data import svhn

    svhn.load(path.parent, "test")


def read_usps(path, out):
    from src.data import usps

    usps.load(path.parent, "test")


def read_image(path, out):
    from src.data import decode

    decode.read(path)


def read_rank_table(path, out):
    from model_utils import rank_table

    rank_table.read(path)


def unpack(path, out):
    from model_utils import archives

    archives.unpack(path, out)


def read_run(path, out):
    """The newest checkpoint of a run's folder."""
    from model_utils import checkpoint

    checkpoint.newest(path.parent.parent)


HONEST_YAML = b"method: dann\nlr: 0.1\nbatch_size: 8\noutput_dir: 'a b'\nseed: 1\n# comment\n"
HONEST_SPACE = b"lr: {low: 0.001, high: 0.01, log: true}\nmcc_weight: [0.5, 1.0]\n"
MEMBERS = [("a/b.txt", b"text" * 100), ("c.txt", b"")]
KINDS = {
    "ckpt": (a_checkpoint, "bad.ckpt", read_model),
    "run": (a_checkpoint, "run/checkpoints/step-00000001.ckpt", read_run),
    "pth": (lambda folder: a_state(folder, False), "bad.pth", read_pth),
    "pth before 1.6": (lambda folder: a_state(folder, True), "bad.pth", read_pth),
    "npy": (a_pickle, "bad.npy", read_npy),
    "yaml": (lambda folder: HONEST_YAML, "bad.yaml", read_configuration),
    "space": (lambda folder: HONEST_SPACE, "space.yaml", read_space),
    "idx": (an_idx, "bad-idx3-ubyte", read_idx),
    "mat": (a_mat, "test_32x32.mat", read_mat),
    "usps": (usps_text, "usps.t.bz2", read_usps),
    "image": (an_image, "bad.jpg", read_image),
    "zip": (a_zip, "bad.zip", unpack),
    "tar": (a_tar, "bad.tar", unpack),
    "rank table": (a_rank_table, "bad.json", read_rank_table),
    "onnx": (an_onnx, "bad.onnx", read_model),
    "mindir": (a_mindir, "bad.mindir", read_model),
    "mindir.json": (an_about, "honest.mindir.json", read_about),
}
