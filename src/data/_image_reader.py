"""Image files to uint8 RGB arrays: read here, decoded by MindSpore's C++ workers, in the order asked for."""

import collections
import logging
import os

import numpy as np

from model_utils.errors import UserError

log = logging.getLogger("run")

JPEG_MAGIC, BMP_MAGIC = b"\xff\xd8", b"BM"
PNG_MAGIC, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def damage(data):
    """What is wrong with a file's bytes, in words, or "" if it looks whole.

    Decoders answer a JPEG that was cut off with a picture whose lower part is grey, and say nothing.
    """
    if not data:
        return "empty file"
    if not data.startswith((JPEG_MAGIC, PNG_MAGIC, BMP_MAGIC)):
        return (
            "neither JPEG, PNG nor BMP"  # for these MindSpore's decoder leaves a copy in the working folder
        )
    if data.startswith(JPEG_MAGIC) and b"\xff\xd9" not in data[-64:]:
        return "truncated JPEG"
    if data.startswith(PNG_MAGIC) and PNG_END not in data[-64:]:
        return "truncated PNG"
    return ""


class _Source:
    """Hands the files' bytes to the pipeline, one after another."""

    def __init__(self, reader, indices):
        self.reader, self.indices = reader, indices
        self.reasons = {}  # {position: why the file can't be used}

    def __iter__(self):
        for position, index in enumerate(self.indices):
            data = b""
            try:
                with open(self.reader.files[index], "rb") as file:
                    data = file.read()
                reason = damage(data)
            except OSError as error:
                reason = error.strerror
            if reason:
                self.reasons[position] = reason
                return
            yield (np.frombuffer(data, np.uint8),)


class ImageReader:
    """Decoded images of a folder by index.

    Grey, palette and CMYK images become RGB; transparency is dropped; the orientation flag of a camera is
    ignored, as in the usual ImageNet pipelines. A file that can't be read or decoded is named in the log
    once, and the images for it are those of the next good file of the folder; with `strict` it is an error.

    Args:
        files: paths.
        workers: C++ threads that decode, at most one per processor; 0 for as many.
        keep: whether decoded images stay in memory.
        strict: whether a bad file stops the run.
    """

    def __init__(self, files, workers=0, keep=False, strict=False):
        self.files, self.strict = files, strict
        # MindSpore refuses more threads than there are processors.
        self.workers = min(workers or len(os.sched_getaffinity(0)), os.cpu_count())
        self.kept = {} if keep else None
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
            if self.kept is not None:
                self.kept[index] = image
            yield index, image

    def _good(self, index):
        """The index itself, or the next one whose file is not known to be bad."""
        while index in self.bad:
            index = (index + 1) % len(self.files)
        return index

    def _decoded(self, indices):
        """Yield the images until all are done, or one is bad, which is then noted."""
        import mindspore.dataset as ds
        from mindspore.dataset import vision

        source = _Source(self, indices)
        pipeline = ds.GeneratorDataset(
            source, ["image"], shuffle=False, python_multiprocessing=False, num_parallel_workers=1
        )
        pipeline = pipeline.map(vision.Decode(), num_parallel_workers=self.workers)
        rows = pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)
        done = 0
        try:
            for (image,) in rows:
                yield np.array(image)
                done += 1
        except RuntimeError:  # its message is pages long
            source.reasons.setdefault(done, "could not be decoded")
        if done < len(indices):
            self._note(indices[done], source.reasons[done])

    def _note(self, index, reason):
        path = self.files[index]
        self.bad[index] = reason
        if self.strict:
            raise UserError(f"{path}: {reason}; replace or remove it, or leave out --strict")
        if len(self.bad) == len(self.files):
            raise UserError(f"{path}: {reason}; none of the {len(self.files)} images here can be read")
        log.warning("warning: %s: %s; another image is used (%d so far)", path, reason, len(self.bad))
