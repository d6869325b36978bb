"""Batches made ahead of time by a thread, while a step computes."""

import atexit
import queue
import threading
import weakref

DEPTH = 4  # batches waiting: enough to bridge a slow file, little memory


class Prefetcher:
    """`get(step)` gives what the iterator `make(step)` yields first; steps in a row come from one iterator.

    A thread runs the iterator up to DEPTH batches ahead. Asking for another step than the next begins a new
    iterator. What the iterator raises, `get` raises.
    """

    def __init__(self, make):
        self.make = make
        self._next, self._worker = None, None
        _close_at_exit(self)

    def get(self, step):
        """The batch of `step`."""
        if step != self._next:
            self.close()
            self._worker = _Worker(self.make, step)
        self._next = None  # a failure leaves nothing to go on with
        batch = self._worker.take()
        self._next = step + 1
        return batch

    def close(self):
        """Stop the thread and wait for it."""
        if self._worker is not None:
            self._worker.stop()
        self._worker, self._next = None, None


class _Worker:
    def __init__(self, make, step):
        self.ready, self.stopping = queue.Queue(DEPTH), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(make, step), daemon=True)
        self.thread.start()

    def _run(self, make, step):
        try:
            for batch in make(step):
                self._put((batch, None))
                if self.stopping.is_set():
                    return
        except Exception as error:  # whatever it is, it belongs to the thread that asks for the batch
            self._put((None, error))

    def _put(self, item):
        while not self.stopping.is_set():
            try:
                return self.ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def take(self):
        batch, error = self.ready.get()
        if error is not None:
            raise error
        return batch

    def stop(self):
        self.stopping.set()
        self.thread.join()


def _close_at_exit(prefetcher):
    """An interpreter that leaves while the thread is inside MindSpore's pipeline would crash."""
    reference = weakref.ref(prefetcher)

    def close():
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
