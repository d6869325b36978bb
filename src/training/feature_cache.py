"""Features of a frozen backbone, computed once and kept in files: what `cache_features` does.

Images go through a frozen backbone only to give the same features in each epoch. Here every image goes
through it once as evaluation sees it, and once for each of `feature_views` augmented views; training and
evaluation then read the features. A file holds the features of a set of images in some views and is named by
everything that they depend on: the content of the images, the backbone's weights, the preparation, the
augmentation. Whatever changes, the name changes, so that a file never has to be declared invalid.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from tqdm import tqdm

from model_utils.checkpoint import atomic
from model_utils.device import jit
from model_utils.errors import UserError
from src.data.features import CHUNK, FeatureTestLoader, FeatureTrainLoader
from src.data.loaders import TrainLoader
from src.evaluation.evaluate import evaluating

log = logging.getLogger("run")

FORMAT = 1
PLAIN = "plain"  # the view of evaluation


@dataclasses.dataclass
class Block:
    """Features of some images in some views, in one file.

    Attributes:
        pictures: a `Pictures` that can give these images.
        kind: PLAIN, or what the augmentation consists of, in words.
        digests: of the images, sorted: one row each.
        views: how many.
        values: float32 (views, images, D), once there.
        bad: {digest: why it can't be read}.
    """

    pictures: object
    kind: str
    digests: list
    views: int = 1
    values: object = None
    bad: dict = dataclasses.field(default_factory=dict)

    @property
    def key(self):
        """What the block is the same by."""
        return self.kind, self.views, tuple(self.digests)


class FeatureCache:
    """Gives loaders of features for loaders of images.

    Args:
        config: with `feature_folder`, `feature_views` and `output_dir`.
        device: a `Device`; with several processes the first one computes, the others read its files.
        network: a `Classifier` whose backbone is frozen; its weights must be final when `fill` is called.
    """

    def __init__(self, config, device, network):
        self.config, self.device, self.network = config, device, network
        self.folder = Path(config.feature_folder or Path(config.output_dir).parent / "features")
        self.loaders = {}  # id of a loader of images -> its loader of features, which keeps the former alive
        self._forward = jit(network.backbone, config)

    def loader(self, loader):
        """The loader of features that takes the place of a loader of images; always the same one."""
        if id(loader) not in self.loaders:
            kind = FeatureTrainLoader if isinstance(loader, TrainLoader) else FeatureTestLoader
            self.loaders[id(loader)] = kind(loader)
        return self.loaders[id(loader)]

    def fill(self):
        """Compute or read the features of all loaders that have been asked for and are not filled yet.

        Raises:
            UserError: no room for them, no file may be written, or of some class no image can be read.
        """
        waiting = [loader for loader in self.loaders.values() if loader.rows is None]
        with self.device.together():
            if self.device.is_main:
                self._fill(waiting)
        if not self.device.is_main:
            self._fill(waiting)

    # The blocks that loaders are made of.

    def _fill(self, loaders):
        blocks = {}
        for kind in (False, True):  # evaluation views first: they find the files that can't be read
            wanted = [(loader, self._blocks(loader, blocks, augmented=kind)) for loader in loaders]
            self._make([block for block in blocks.values() if block.values is None])
            if not kind:
                for loader, (block,) in wanted:
                    self._note_bad(loader, block)
        for loader in loaders:
            self._hand_out(loader, blocks)

    def _blocks(self, loader, blocks, augmented):
        """A loader's blocks of its evaluation view or its augmented views; new ones go to `blocks`."""
        trains = isinstance(loader, FeatureTrainLoader)
        if augmented and not (trains and self.config.feature_views):
            return []
        digests = sorted({digest for digest in loader.pictures.digests if digest})
        block = Block(loader.pictures, PLAIN, digests)
        if augmented:
            bad = blocks[block.key].bad
            kind = augmentation(loader.loader)
            good = [digest for digest in digests if digest not in bad]
            block = Block(loader.pictures, kind, good, self.config.feature_views)
        return [blocks.setdefault(block.key, block)]

    def _note_bad(self, loader, block):
        for index, digest in enumerate(loader.pictures.digests):
            known = loader.pictures.bad()
            if digest is None and index not in known:
                loader.pictures.note_bad(index, "can't be opened")
            elif digest in block.bad and index not in known:
                loader.pictures.note_bad(index, block.bad[digest])

    def _hand_out(self, loader, blocks):
        (plain,) = self._blocks(loader, blocks, augmented=False)
        parts = [plain, *self._blocks(loader, blocks, augmented=True)]
        # Augmented views have no rows for bad files: rows are counted among the good ones in all views.
        good = [digest for digest in plain.digests if digest not in plain.bad]
        places = {digest: row for row, digest in enumerate(good)}
        if len(good) < len(plain.digests):
            keep = [row for row, digest in enumerate(plain.digests) if digest not in plain.bad]
            values = [plain.values[:, keep], *(block.values for block in parts[1:])]
        else:
            values = [block.values for block in parts]
        loader.fill(values, np.array([places.get(digest, -1) for digest in loader.pictures.digests]))

    # The files.

    def _make(self, blocks):
        """Read the files of blocks; compute and write those that are not there."""
        paths = {id(block): self.folder / f"{self._name(block)}.npy" for block in blocks}
        missing = []
        for block in blocks:
            if not self._read(block, paths[id(block)]):
                missing.append(block)
        if not missing:
            return
        size = self.network.backbone.feature_size * 4
        amount = sum(block.views * len(block.digests) * size for block in missing)
        count = sum(block.views * len(block.digests) for block in missing)
        log.info(
            "features: %s images go through the backbone once; %.1f MB in %s",
            f"{count:,}",
            amount / 1e6,
            self.folder,
        )
        self._check_room(amount)
        bar = tqdm(total=count, unit="image", desc="features", disable=not self._shows(), dynamic_ncols=True)
        with bar, evaluating(self.network):
            for block in missing:
                self._compute(block, paths[id(block)], bar)

    def _shows(self):
        return self.device.is_main and sys.stderr.isatty()

    def _check_room(self, amount):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(
                f"feature_folder: cannot make {self.folder}: {error.strerror}; choose another one"
            ) from error
        if free < amount:
            raise UserError(
                f"feature_folder: the features need {amount / 1e6:.1f} MB, but {self.folder} has room for "
                f"{free / 1e6:.1f} MB; make room, choose another one, or lower feature_views"
            )

    def _name(self, block):
        """The name of a block's file: a digest of everything that its content depends on."""
        preparation = dataclasses.asdict(self.network.preparation)
        for name in ("crop_scale_min", "flip"):
            del preparation[name]  # of training; an augmentation says them
        about = [FORMAT, self.config.network, self._weights(), preparation, block.kind, block.views]
        digest = hashlib.blake2b(json.dumps([about, block.digests]).encode(), digest_size=16)
        return digest.hexdigest()

    def _weights(self):
        digest = hashlib.blake2b(digest_size=16)
        for parameter in self.network.backbone.get_parameters():
            digest.update(parameter.name.encode())
            digest.update(np.ascontiguousarray(parameter.asnumpy()).tobytes())
        return digest.hexdigest()

    def _read(self, block, path):
        """Whether the block's file is there and whole; then the block has its values."""
        if not path.exists():
            return False
        shape = block.views, len(block.digests), self.network.backbone.feature_size
        try:
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            values = np.lib.format.open_memmap(path, "r")
            whole = values.shape == shape and values.dtype == np.float32
            if whole and about["digest"] == digest_of(values) and isinstance(about["bad"], dict):
                block.values, block.bad = values, about["bad"]
                log.info("features: %s of %s images read from %s", _kind(block), f"{shape[1]:,}", path)
                return True
        except (OSError, ValueError, KeyError, TypeError):  # cut short, or something else under this name
            whole = False
        log.warning("warning: %s is damaged or cut short; it is made anew", path)
        return False

    def _compute(self, block, path, bar):
        """Fill a block from its images and write its file, whole or not at all."""
        shape = block.views, len(block.digests), self.network.backbone.feature_size
        first = {}
        for index, digest in enumerate(block.pictures.digests):
            first.setdefault(digest, index)
        indices = np.array([first[digest] for digest in block.digests])
        row_of = {index: row for row, index in enumerate(indices.tolist())}
        try:
            with atomic(path) as temporary:
                values = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                for view in range(block.views):
                    if block.kind == PLAIN:
                        chunks = block.pictures.plain(indices)
                    else:
                        chunks = block.pictures.augmented(indices, view)
                    for part, images in chunks:
                        values[view, [row_of[int(index)] for index in part]] = self._features(images)
                        bar.update(len(part))
                values.flush()
                if block.kind == PLAIN:
                    bad = block.pictures.bad()
                    block.bad = {block.digests[row_of[i]]: why for i, why in bad.items() if i in row_of}
                about = {"digest": digest_of(values), "bad": block.bad, "views": block.kind}
                del values
                with atomic(path.with_suffix(".json")) as other:
                    other.write_text(json.dumps(about), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"feature_folder: {path} could not be written ({error.strerror or error}); make room or "
                "choose another one"
            ) from error
        block.values = np.lib.format.open_memmap(path, "r")

    def _features(self, images):
        """Features of a chunk; a short one is filled up, so that one compiled pass serves all."""
        padded = images
        if len(images) < CHUNK:
            padded = np.concatenate([images, np.repeat(images[-1:], CHUNK - len(images), 0)])
        return self._forward(ms.Tensor.from_numpy(np.ascontiguousarray(padded))).asnumpy()[: len(images)]


def digest_of(values):
    """Of an array's content."""
    digest = hashlib.blake2b(digest_size=16)
    for part in values:
        digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()


def augmentation(loader):
    """What a training loader's augmentation consists of, in words: views differ where it does."""
    preparation, plan = loader.preparation, loader.plan
    return json.dumps(
        {
            "augment": plan.augment.__name__ if plan.augment else "none",
            "color_jitter": getattr(loader, "color_jitter", 0.0),
            "crop_scale_min": preparation.crop_scale_min,
            "flip": preparation.flip,
        }
    )


def _kind(block):
    return "evaluation view" if block.kind == PLAIN else f"{block.views} augmented views"
