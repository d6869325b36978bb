"""Features of a frozen backbone, computed once and kept in files: what `cache_features` does.

Images go through a frozen backbone only to give the same features in each epoch. Here every image goes
through it once as evaluation sees it, and once for each of `feature_views` augmented views; training and
evaluation then read the features. They are kept by the content of the image, the backbone's weights, the
preparation and the augmentation (`Store`): whatever changes is computed anew, and nothing else.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from tqdm import tqdm

from model_utils.device import jit
from model_utils.digests import digest
from model_utils.errors import UserError
from src.data.features import CHUNK, FeatureTestLoader, FeatureTrainLoader
from src.data.loaders import TrainLoader
from src.evaluation.evaluate import evaluating
from src.training.feature_store import Store, alone

log = logging.getLogger("run")

FORMAT = 1
PLAIN = "plain"  # the view of evaluation


class FeatureCache:
    """Gives loaders of features for loaders of images.

    Args:
        config: with `feature_folder`, `feature_views`, `network` and `output_dir`.
        device: a `Device`; with several processes the first one computes, the others read its files.
        network: a `Classifier` whose backbone is frozen; its weights must be final when `fill` is called.
    """

    def __init__(self, config, device, network):
        self.config, self.device, self.network = config, device, network
        self.folder = Path(config.feature_folder or Path(config.output_dir).parent / "features")
        self.loaders = {}  # id of a loader of images -> its loader of features, which keeps the former alive
        self._stores = {}
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
        waiting = [loader for loader in self.loaders.values() if loader.places is None]
        if not waiting:
            return
        with self.device.together():
            if self.device.is_main:
                self._fill(waiting)
        if not self.device.is_main:
            self._fill(waiting)

    def _fill(self, loaders):
        self._have([(loader, PLAIN) for loader in loaders])
        for loader in loaders:
            self._note_bad(loader)
        self._have([(loader, view) for loader in loaders for view in self._augmented(loader)])
        for loader in loaders:
            digests = loader.pictures.digests
            bad = self._store(loader, PLAIN).bad
            good = [name for name in digests if name and name not in bad]
            places, begin = np.full(len(digests), -1), 0
            for index, name in enumerate(digests):
                if name and name not in bad:
                    places[index], begin = begin, begin + 1
            views = [*self._augmented(loader)]
            if not (views and loader.strong):
                views.insert(0, PLAIN)
            loader.fill([self._store(loader, view).rows(good) for view in views], places)

    def _augmented(self, loader):
        return range(self.config.feature_views) if isinstance(loader, FeatureTrainLoader) else ()

    def _note_bad(self, loader):
        """Account for files that are known to be unreadable, as if this run had tried to read them."""
        bad, known = self._store(loader, PLAIN).bad, loader.pictures.bad()
        for index, name in enumerate(loader.pictures.digests):
            reason = bad.get(name) if name else "it can't be opened"
            if reason and index not in known:
                loader.pictures.note_bad(index, reason)

    # Stores and what they lack.

    def _store(self, loader, view):
        """The Store of a view of a loader's images: PLAIN, or the number of an augmented view."""
        kind = PLAIN if view == PLAIN else f"{augmentation(loader.loader)}, view {view}"
        resize = "area" if loader.loader.files is not None else loader.loader.arrays.resize
        if resize != "area":  # which stores were named without
            kind += f", digits resized by {resize}"
        if kind not in self._stores:
            preparation = dataclasses.asdict(self.network.preparation)
            for name in ("crop_scale_min", "flip"):
                del preparation[name]  # of training: `kind` says what augments
            about = json.dumps([FORMAT, self.config.network, self._weights(), preparation, kind])
            folder = self.folder / digest(about.encode())
            self._stores[kind] = Store(folder, self.network.backbone.feature_size)
        return self._stores[kind]

    def _weights(self):
        contents = []
        for parameter in self.network.backbone.get_parameters():
            contents += [parameter.name.encode(), np.ascontiguousarray(parameter.asnumpy())]
        return digest(*contents)

    def _have(self, wanted):
        """See to it that stores have what loaders need: wanted is [(loader, view)]."""
        if not any(lacking for *_, lacking in self._missing(wanted)):
            return
        with self._alone():
            missing = self._missing(wanted)  # anew: another run may have computed it by now
            count = sum(len(lacking) for *_, lacking in missing)
            if count:
                self._compute_all(missing, count)

    def _missing(self, wanted):
        """[(loader, view, its store, the digests that no store has)], no digest of a store twice."""
        missing, known = [], set()
        for loader, view in wanted:
            store = self._store(loader, view)
            bad = self._store(loader, PLAIN).bad
            names = {n for n in loader.pictures.digests if n and n not in bad and (id(store), n) not in known}
            known |= {(id(store), name) for name in names}
            missing.append((loader, view, store, store.find(sorted(names))))
        return missing

    @contextlib.contextmanager
    def _alone(self):
        """Make the folder, and hold it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = contextlib.ExitStack()
            lock.enter_context(alone(self.folder))
        except OSError as error:
            raise UserError(
                f"feature_folder: cannot write into {self.folder}: {error.strerror}; choose another one"
            ) from error
        with lock:
            yield

    def _compute_all(self, missing, count):
        amount = count * self.network.backbone.feature_size * 4
        line = "features: %s images go through the backbone once; %.1f MB in %s"
        log.info(line, f"{count:,}", amount / 1e6, self.folder)
        self._check_room(amount)
        quiet = not (self.device.is_main and sys.stderr.isatty())
        bar = tqdm(total=count, unit="image", desc="features", disable=quiet, dynamic_ncols=True)
        with bar, evaluating(self.network):
            for loader, view, store, lacking in missing:
                if lacking:
                    self._compute(loader.pictures, view, store, lacking, bar)

    def _check_room(self, amount):
        free = shutil.disk_usage(self.folder).free
        if free < amount:
            raise UserError(
                f"feature_folder: the features need {amount / 1e6:.1f} MB, but {self.folder} has room for "
                f"{free / 1e6:.1f} MB; make room, choose another one, or lower feature_views"
            )

    def _compute(self, pictures, view, store, digests, bar):
        """Send images through the backbone and write what comes out."""
        first = {name: index for index, name in reversed(list(enumerate(pictures.digests)))}
        index_of = {name: first[name] for name in digests}
        indices = sorted(index_of.values())

        def chunks():
            found = pictures.plain(indices) if view == PLAIN else pictures.augmented(indices, view)
            for part, images in found:
                yield [pictures.digests[index] for index in part], self._features(images)
                bar.update(len(part))

        def reasons():
            bad = pictures.bad() if view == PLAIN else {}
            return {name: bad[index] for name, index in index_of.items() if index in bad}

        try:
            store.add(digests, chunks(), reasons)
        except OSError as error:
            raise UserError(
                f"feature_folder: features could not be written to {store.folder} "
                f"({error.strerror or error}); make room, or choose another one"
            ) from error

    def _features(self, images):
        """Features of a chunk; a short one is filled up, so that one compiled pass serves all."""
        padded = images
        if len(images) < CHUNK:
            padded = np.concatenate([images, np.repeat(images[-1:], CHUNK - len(images), 0)])
        return self._forward(ms.Tensor.from_numpy(np.ascontiguousarray(padded))).asnumpy()[: len(images)]


def augmentation(loader):
    """What a training loader's augmentation consists of, in words: views differ where it does."""
    preparation, plan = loader.preparation, loader.plan
    return json.dumps(
        {
            "augment": plan.augment.__name__ if plan.augment else "none",
            "color_jitter": loader.color_jitter,
            "crop_scale_min": preparation.crop_scale_min,
            "flip": preparation.flip,
        }
    )
