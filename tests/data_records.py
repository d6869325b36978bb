"""What the loaders hand out, in short: python tests/data_records.py writes data_records.json.

Each record is the SHA-256 of a few batches and 24 of their values. test_data_records.py holds the loaders to
them: batches must stay what they were, because every figure in docs/results.md rests on them.
"""

import bz2
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model_utils.config import Config  # noqa: E402
from model_utils.device import Device  # noqa: E402
from model_utils.key import Key  # noqa: E402
from model_utils.keys import COMMON  # noqa: E402
from src.data import idx, mnist, mnist_m  # noqa: E402
from src.data.keys import keys  # noqa: E402
from src.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation  # noqa: E402
from src.data.tasks import open_task  # noqa: E402

PATH = Path(__file__).with_name("data_records.json")
HERE = Path(__file__).parent
DATA_ROOT = os.environ.get("DATA_ROOT", "")


def record(batches):
    """{"sha256": of everything, "sample": 24 values of the images} of [(images, labels or None)]."""
    digest, values = hashlib.sha256(), []
    for images, labels in batches:
        digest.update(repr((images.shape, images.dtype.str)).encode())
        digest.update(np.ascontiguousarray(images).tobytes())
        digest.update(b"none" if labels is None else np.ascontiguousarray(labels).tobytes())
        values.append(images.ravel())
    values = np.concatenate(values)
    chosen = values[np.linspace(0, len(values) - 1, 24).astype(int)]
    return {"sha256": digest.hexdigest(), "sample": [round(float(value), 5) for value in chosen]}


# Data, all made by frozen generators


def write_digits(root):
    """Small MNIST, MNIST-M and USPS files in `root`."""
    root.mkdir()
    random = np.random.RandomState(7)
    for split, count in (("train", 600), ("test", 60)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        for files, shape in ((mnist.FILES, (28, 28)), (mnist_m.FILES, (28, 28, 3))):
            images = random.randint(0, 256, (count, *shape)).astype(np.uint8)
            for stem, array in zip(files[split], (images, labels), strict=True):
                (root / stem).write_bytes(idx.header(array.shape) + array.tobytes())
        values = random.randint(-1000, 1001, (count, 256)) / 1000
        values[:, 0] = -1
        lines = [
            f"{label + 1} {' '.join(f'{i}:{v:g}' for i, v in enumerate(row, 1))} \n"
            for label, row in zip(labels, values, strict=True)
        ]
        (root / ("usps.bz2" if split == "train" else "usps.t.bz2")).write_bytes(
            bz2.compress("".join(lines).encode())
        )
    return root


def write_tree(root):
    """<domain>/<class>/* of three domains and three classes, ten noisy PNGs of 20 x 20 each, and lists."""
    random = np.random.RandomState(9)
    lists = root / "lists"
    lists.mkdir(parents=True)
    for domain in ("ink", "oil", "pencil"):
        lines = {"train": [], "crossval": [], "test": []}
        for label, name in enumerate(("cat", "dog", "emu"), 1):
            (root / domain / name).mkdir(parents=True)
            for number in range(10):
                image = random.randint(0, 256, (20, 20, 3)).astype(np.uint8)
                assert cv2.imwrite(str(root / domain / name / f"pic_{number:03}.png"), image)
                line = f"{domain}/{name}/pic_{number:03}.png {label}"
                lines["crossval" if number < 3 else "train"].append(line)
                lines["test"].append(line)
        for part, content in lines.items():
            (lists / f"{domain}_{part}_kfold.txt").write_text("\n".join(content) + "\n")
    return root


def write_photographs(root):
    """train/ and val/ of class folders, as tests/tiny/hardnet.py draws them."""
    spec = importlib.util.spec_from_file_location("tiny_hardnet", HERE / "tiny" / "hardnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Path(module.make(root)["dataset_path"])


# What is recorded


def configured(**changes):
    own = {"num_classes": Key(0, ""), "batch_size": Key(8, "")}
    table = {**COMMON, **keys(), **own}
    return Config({name: key.default for name, key in table.items()}, table).replace(**changes)


def few(loader, count=2):
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def recorded(task, preparation, batch_size, joined):
    """Training: the first two steps and the one that begins the second epoch; the others: two batches."""
    trained = task.labelled(preparation, batch_size, joined)
    if joined and task.form.target:
        trained |= task.unlabelled(preparation, batch_size)
    result = {
        f"{name} train": record([loader.batch(step) for step in (0, 1, loader.steps_per_epoch)])
        for name, loader in trained.items()
    }
    for name, loader in (task.held_out(preparation, target=joined) or {}).items():
        result[f"{name} held out"] = record(few(loader))
    return result | {f"{name} test": record(few(loader)) for name, loader in task.test(preparation).items()}


def pair(channels=3, place=None, **changes):
    config = configured(**{"eval_batch_size": 20, "validation_size": 20, **changes})
    return recorded(open_task(config, place or Device("CPU")), Preparation(28, channels), 16, True)


def domain_set(place=None, size=8, image_size=28, **changes):
    config = configured(**{"eval_batch_size": 20, **changes})
    return recorded(open_task(config, place or Device("CPU")), Preparation(image_size), size, False)


def photographs(root, size, place=None, batch_size=8, scale=0.08, **changes):
    config = configured(dataset_path=root, eval_batch_size=8, seed=3, **changes)
    preparation = Preparation(size, 3, 0.875, IMAGENET_MEAN, IMAGENET_STD, scale, True)
    result = recorded(open_task(config, place or Device("CPU")), preparation, batch_size, True)
    return {"train": result["train train"], "val": result["val test"]}


def made(folder):
    """{name: {part: record}} of data made in `folder`."""
    digits, tree = write_digits(folder / "digits"), write_tree(folder / "tree")
    photos = write_photographs(folder / "photos")
    roots = {f"{name}_image_root": digits for name in ("mnist", "mnist_m", "usps")}
    demo = {"source_dataset_name": "demo_digits", "target_dataset_name": "demo_photos"}
    second = Device("CPU", 1, 2)
    pacs = {"domain_set": "folders", "domains_image_root": tree, "target_domain": "oil"}
    own = {"source_image_root": digits, "target_image_root": digits}
    return {
        "pair demo": pair(**demo, source_augment="intensity", seed=4),
        "pair demo, second of two": pair(**demo, place=second, target_augment="intensity+shift"),
        "pair demo, grey": pair(1, **demo, source_augment="affine"),
        "pair mnist usps, grey": pair(
            1,
            source_dataset_name="mnist",
            target_dataset_name="usps",
            source_augment="enlarge",
            target_augment="shrink",
            **own,
        ),
        "pair mnist mnist_m": pair(source_dataset_name="mnist", target_dataset_name="mnist_m", **own),
        "set demo": domain_set(domain_set="demo", target_domain="50", augment="shift"),
        "set rotated_mnist": domain_set(
            domain_set="rotated_mnist", target_domain="30", augment="flip", train_size_per_domain=40, **roots
        ),
        "set digits": domain_set(domain_set="digits", target_domain="mnist_m", seed=2, **roots),
        "set folders": domain_set(**pacs, image_size=16, augment="flip", holdout=0.2),
        "set folders, second of two": domain_set(second, **pacs, image_size=20, augment="intensity", seed=1),
        "set folders, lists": domain_set(**pacs, image_size=32, kfold_root="lists"),
        "folder": photographs(photos, 32, scale=0.35, color_jitter=0.4),
        "folder, second of two": photographs(photos, 32, second, scale=0.08),
    }


def real(root):
    """{name: {part: record}} of the real data in `root`."""
    grey = {"source_image_root": root / "mnist", "target_image_root": root / "usps"}
    names = {"source_dataset_name": "mnist", "target_dataset_name": "usps"}
    pacs = {"domain_set": "pacs", "domains_image_root": root / "pacs", "target_domain": "sketch"}
    return {
        "pair mnist usps, sampled": pair(
            1, **grey, **names, protocol="sampled", source_augment="enlarge", target_augment="affine"
        ),
        "set rotated_mnist": domain_set(
            domain_set="rotated_mnist", target_domain="0", mnist_image_root=root / "mnist"
        ),
        "set pacs at 64": domain_set(**pacs, image_size=64, augment="flip"),
        "set pacs": domain_set(**pacs, image_size=227),
        "folder": photographs(root / "imagenette160", 128, batch_size=32, scale=0.35, color_jitter=0.2),
    }


def main():
    with tempfile.TemporaryDirectory() as folder:
        records = {"made": made(Path(folder)), "real": real(Path(DATA_ROOT))}
    PATH.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
