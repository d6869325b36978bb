"""Image files by index: decoded by threads, ahead of time, in the order asked for."""

import collections
import logging
import os
import queue
import threading
import weakref
from concurrent.futures import Future

from model_utils import memory
from model_utils.errors import UserError
from src.data import decode
from src.data.files import LeftOut, shown

log = logging.getLogger("run")

RESERVE = 1 / 8  # of all memory stays free for others
CHECK = 32 * 2**20  # bytes kept between two looks at the memory
CHUNK = 8  # images of one task


class Workers:
    """Threads that run tasks in the order in which they were submitted.

    They stop when the object is closed or no longer used, and when the process ends: what has not begun by
    then is dropped, because the interpreter must not exit while a thread is inside a decoder.

    Args:
        count: threads; 0: one for each processor this process may use, which is also the most.
    """

    def __init__(self, count=0):
        most = len(os.sched_getaffinity(0))
        self.count = min(count or most, most)
        self._tasks, self._threads, self._stopping = queue.SimpleQueue(), [], threading.Event()
        self.close = weakref.finalize(self, _stop, self._tasks, self._threads, self._stopping)

    def submit(self, function, *arguments):
        """A Future of function(*arguments); what it raises, `result` raises."""
        if self._stopping.is_set():
            raise RuntimeError("these threads were stopped")
        if not self._threads:
            for _ in range(self.count):
                thread = threading.Thread(target=_work, args=(self._tasks, self._stopping), daemon=True)
                self._threads.append(thread)
                thread.start()
        future = Future()
        self._tasks.put((future, function, arguments))
        return future


def _work(tasks, stopping):
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if stopping.is_set():
            future.cancel()
        elif future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # whatever it is, it belongs to the thread that asks
                future.set_exception(error)
        del task, future, function, arguments  # otherwise it would stay in memory until the next task comes


def _stop(tasks, threads, stopping):
    stopping.set()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()


class Reader:
    """Images of a list of files, by index.

    A file that can't be decoded is noted in `bad` and in the account of what is left out.

    Args:
        files: paths.
        workers: a `Workers`; None: threads of its own.
        prepare: None, or a function of one image uint8 (H, W, 3) that is applied before it is kept.
        keep: whether images stay in memory, as many as leave an eighth of it free.
        left_out: a `LeftOut`.

    Attributes:
        bad: {index: reason} of the files that could not be read so far.
    """

    def __init__(self, files, workers=None, prepare=None, keep=False, left_out=None):
        self.files, self.workers, self.prepare = files, workers or Workers(), prepare
        self.left_out = left_out or LeftOut()
        self.bad, self.kept, self._room = {}, {}, keep
        self._unchecked = CHECK  # bytes kept since the last look at the memory
        self._lock = threading.Lock()
        self._groups = self._names = self._left = self._failure = None

    def group(self, labels, names):
        """From now on, raise an error if no image of some class can be read. names: for the message."""
        self._groups, self._names = labels, names
        self._left = collections.Counter(labels.tolist())

    def image(self, index):
        """The image of a file, uint8 (H, W, 3), or None if it is bad.

        Raises:
            UserError: the file is bad and `left_out` is strict; or none of the files, or none of some class,
                can be read. Later calls then raise it again.
        """
        image = self.kept.get(index)
        if image is None and index not in self.bad:
            image = self._decoded(index)
        if self._failure is not None:
            raise self._failure
        if image is None and self.left_out.strict:
            raise UserError(
                f"{shown(self.files[index])}: {self.bad[index]}; replace or remove it, or leave out --strict"
            )
        return image

    def _decoded(self, index):
        try:
            image = decode.read(self.files[index])
        except decode.Unreadable as error:
            self.note(index, str(error))
            return None
        if self.prepare is not None:
            image = self.prepare(image)
        if self._room:
            self._keep(index, image)
        return image

    def next_good(self, index):
        """(index, image) of a file, or of the next one in the list that can be read."""
        while (image := self.image(index)) is None:
            index = (index + 1) % len(self.files)
        return index, image

    def stream(self, indices):
        """Yield (index, image) of the good files among these, in order; threads decode ahead."""
        indices = [int(index) for index in indices]
        chunks = iter([indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)])
        ahead = collections.deque()
        try:
            while True:
                while len(ahead) < 2 * self.workers.count + 1 and (chunk := next(chunks, None)) is not None:
                    ahead.append((chunk, self.workers.submit(self._images, chunk)))
                if not ahead:
                    return
                chunk, future = ahead.popleft()
                for index, image in zip(chunk, future.result(), strict=True):
                    if image is not None:
                        yield index, image
        finally:
            for _, future in ahead:
                future.cancel()

    def _images(self, indices):
        return [self.image(index) for index in indices]

    def note(self, index, reason):
        """Account for a file that can't be read; why, in words."""
        path = self.files[index]
        with self._lock:
            if index in self.bad:
                return
            # A thread that sees that a file is bad must also see the failure that may follow from it.
            self._failure = self._failure or self._consequence(index, reason)
            self.bad[index] = reason
        self.left_out.unreadable(path, reason)

    def _consequence(self, index, reason):
        """The UserError that follows from one more bad file, or None."""
        path = shown(self.files[index])
        if len(self.bad) + 1 == len(self.files):
            return UserError(
                f"{path}: {reason}; none of the {len(self.files)} images here can be read, replace them"
            )
        if self._left is None:
            return None
        label = int(self._groups[index])
        self._left[label] -= 1
        return None if self._left[label] else self.no_image_of(label, f"{path}: {reason}")

    def no_image_of(self, label, example):
        """The UserError for a class of which no image can be read."""
        count = int((self._groups == label).sum())
        return UserError(
            f"class {shown(self._names[label])}: none of its {count} images can be read ({example}); replace "
            "them, or take the class away"
        )

    def _keep(self, index, image):
        if image.base is not None:  # the middle of a larger one, which would be kept with it
            image = image.copy()
        with self._lock:
            if self._unchecked >= CHECK and self._room:
                self._unchecked, found = 0, memory.free()
                self._room = found is None or found[0] > found[1] * RESERVE
                if not self._room:
                    log.warning(
                        "warning: cache memory: %d of %d images fit; the others are decoded anew in each "
                        "epoch",
                        len(self.kept),
                        len(self.files),
                    )
            if self._room:
                self.kept[index] = image
                self._unchecked += image.nbytes


class Ahead:
    """Batches of files made ahead of time: `get(step)` gives what `make(step)` describes.

    Args:
        workers: a `Workers`.
        make: function of a step -> (rows, fill, finish): fill(row) is called for each of range(rows) in some
            thread, then finish() once, whose result is the batch.
        depth: batches begun before they are asked for.
    """

    def __init__(self, workers, make, depth=3):
        self.workers, self.make, self.depth = workers, make, depth
        self._begun = {}

    def get(self, step):
        """The batch of `step`; raises what its making raised."""
        wanted = range(step, step + self.depth + 1)
        self._drop(set(self._begun) - set(wanted))
        for other in wanted:
            if other not in self._begun:
                self._begun[other] = self._begin(other)
        return self._begun.pop(step)[0].result()

    def close(self):
        """Drop what has not been asked for."""
        self._drop(list(self._begun))

    def _drop(self, steps):
        for step in steps:
            for future in self._begun.pop(step)[1]:
                future.cancel()

    def _begin(self, step):
        rows, fill, finish = self.make(step)
        batch = _Batch(rows, fill, finish)
        tasks = [
            self.workers.submit(batch.run, range(start, min(start + CHUNK, rows)))
            for start in range(0, rows, CHUNK)
        ]
        return batch.done, tasks


class _Batch:
    """The thread that fills its last rows finishes it."""

    def __init__(self, rows, fill, finish):
        self.done, self.left, self.fill, self.finish = Future(), rows, fill, finish
        self.lock = threading.Lock()

    def run(self, rows):
        try:
            for row in rows:
                self.fill(row)
            with self.lock:
                self.left -= len(rows)
                last = self.left == 0
            if last:
                self.done.set_result(self.finish())
        except BaseException as error:  # it belongs to the thread that asks for the batch
            with self.lock:
                if not self.done.done():
                    self.done.set_exception(error)
