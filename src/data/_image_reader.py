"""Image files to uint8 RGB arrays, read and decoded by MindSpore's C++ threads, in the order asked for."""

import collections
import json
import logging
import os
import tempfile

import numpy as np

from model_utils import memory
from model_utils.errors import UserError

log = logging.getLogger("run")

JPEG_MAGIC, BMP_MAGIC = b"\xff\xd8", b"BM"
RESERVE = 1 / 8  # of all memory stays free for others
CHECK = 256  # images kept between two looks at the memory: some tens of megabytes
CHUNK = 4096  # files of one pipeline: each is looked at before it starts
PNG_MAGIC, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def damage(path):
    """What is wrong with a file, in words, or "" if it begins and ends as an image does.

    Decoders answer a JPEG that was cut off with a picture whose lower part is grey, and say nothing.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
            tail = file.read(64)
    except OSError as error:
        return error.strerror
    if not head.startswith((JPEG_MAGIC, PNG_MAGIC, BMP_MAGIC)):
        return "neither JPEG, PNG nor BMP"  # of these MindSpore's decoder would leave a copy in this folder
    if head.startswith(JPEG_MAGIC) and b"\xff\xd9" not in tail:
        return "truncated JPEG"
    if head.startswith(PNG_MAGIC) and PNG_END not in tail:
        return "truncated PNG"
    return ""


def decoded(paths, workers):
    """Yield uint8 RGB (H, W, 3) of each file in order, decoded by MindSpore's C++ threads.

    Raises RuntimeError at a file that can't be decoded. A manifest hands the order over: no Python code runs
    inside the pipeline, which on MindSpore 2.10 can block for ever beside a second one that does.
    """
    import mindspore.dataset as ds

    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        manifest = os.path.join(folder, "order.manifest")
        with open(manifest, "w", encoding="utf-8") as file:
            for path in paths:
                row = {"source": os.path.abspath(path), "usage": "train", "annotation": [{"name": "image"}]}
                file.write(json.dumps(row) + "\n")
        images = ds.ManifestDataset(manifest, num_parallel_workers=workers, shuffle=False, decode=True)
        images = images.project(["image"])
        # The copy is needed: MindSpore takes its buffer back.
        for (image,) in images.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield np.array(image)


class ImageReader:
    """Decoded images of a folder by index.

    Grey, palette and CMYK images become RGB; transparency is dropped; the orientation flag of a camera is
    ignored, as in the usual ImageNet pipelines. A file that can't be read or decoded is named in the log
    once, and the images for it are those of the next good file of the folder; with `strict` it is an error.

    Args:
        files: paths.
        workers: C++ threads that decode, at most one per processor; 0 for as many.
        keep: whether decoded images stay in memory, as many as leave an eighth of it free.
        strict: whether a bad file stops the run.
    """

    def __init__(self, files, workers=0, keep=False, strict=False):
        self.files, self.strict = files, strict
        # MindSpore refuses more threads than there are processors.
        self.workers = min(workers or len(os.sched_getaffinity(0)), os.cpu_count())
        self.kept, self.room = {} if keep else None, keep
        self.bad = {}  # {index: reason}

    def images(self, indices, replace=True):
        """Yield (index, uint8 (H, W, 3)) in order; a bad file's place is taken by another, or left out."""
        wanted = collections.deque(int(index) for index in indices)
        while wanted:
            known = [self._good(index) if replace else index for index in wanted]
            wanted = collections.deque(index for index in known if index not in self.bad)
            for pair in self._until_bad(list(wanted)):
                wanted.popleft()
                yield pair

    def _until_bad(self, indices):
        """Yield (index, image) in order; stop early at a file that turns out to be bad."""
        stored = [self.kept is not None and index in self.kept for index in indices]
        missing = [index for index, has in zip(indices, stored, strict=True) if not has]
        decoded = self._decoded(missing) if missing else None
        for index, has in zip(indices, stored, strict=True):
            if has:
                yield index, self.kept[index]
                continue
            image = next(decoded, None)
            if image is None:
                return
            if self.room:
                self._keep(index, image)
            yield index, image

    def _keep(self, index, image):
        if len(self.kept) % CHECK == 0:
            found = memory.free()
            self.room = found is None or found[0] > found[1] * RESERVE
        if self.room:
            self.kept[index] = image
        else:
            log.warning(
                "warning: cache memory: %d of %d images fit; the others are decoded anew in each epoch",
                len(self.kept),
                len(self.files),
            )

    def _good(self, index):
        """The index itself, or the next one whose file is not known to be bad."""
        while index in self.bad:
            index = (index + 1) % len(self.files)
        return index

    def _decoded(self, indices):
        """Yield the images until all are done, or one is bad, which is then noted."""
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK]
            reasons = (damage(self.files[index]) for index in chunk)
            good, reason = next(((i, r) for i, r in enumerate(reasons) if r), (len(chunk), ""))
            done = 0
            try:
                for image in (
                    decoded([self.files[index] for index in chunk[:good]], self.workers) if good else ()
                ):
                    yield image
                    done += 1
            except RuntimeError:  # its message is pages long
                reason = "could not be decoded"
            if done < len(chunk):
                self._note(chunk[done], reason)
                return

    def _note(self, index, reason):
        path = self.files[index]
        self.bad[index] = reason
        if self.strict:
            raise UserError(f"{path}: {reason}; replace or remove it, or leave out --strict")
        if len(self.bad) == len(self.files):
            raise UserError(f"{path}: {reason}; none of the {len(self.files)} images here can be read")
        log.warning("warning: %s: %s; not used (%d so far)", path, reason, len(self.bad))
