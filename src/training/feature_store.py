"""Files of features: rows of numbers, each known by the content of the image it was computed from.

A store is a folder of one kind of features, named by everything but the images that they depend on. It holds
any number of parts, `<name>.npy` with float32 rows and `<name>.json`, which says what each row belongs to. A
part is written whole or not at all, and never changed. A run that misses rows adds a part that holds them.
"""

import contextlib
import fcntl
import json
import logging

import numpy as np

from model_utils.checkpoint import atomic
from model_utils.digests import digest

log = logging.getLogger("run")


@contextlib.contextmanager
def alone(folder):
    """Hold a folder of stores while parts are added to it; waits for another run that does so.

    Two runs on the same images that begin together, as a sweep's may, would compute everything twice. Where
    the disk knows no locks, one line says so and the run goes on: parts are whole or absent all the same.

    Raises:
        OSError: the folder can't be written to.
    """
    with open(folder / ".lock", "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("features: another run computes some in %s; waiting for it", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("warning: %s can't be locked (%s); another run may compute the same", folder, error)
        yield


class Rows:
    """Chosen rows of several arrays, in a chosen order; nothing is copied before it is asked for.

    Args:
        arrays: list of float32 (rows, D).
        places: {digest: (array's number, row)}.
        digests: of the rows, in the order wanted.
    """

    def __init__(self, arrays, places, digests):
        self.arrays = arrays
        chosen = np.array([places[name] for name in digests], np.int64).reshape(-1, 2)
        self.numbers, self.rows = chosen[:, 0], chosen[:, 1]

    def take(self, indices):
        """float32 (N, D), the rows at these positions."""
        numbers, rows = self.numbers[indices], self.rows[indices]
        result = np.empty((len(rows), self.arrays[0].shape[1]), np.float32)
        for number, array in enumerate(self.arrays):
            own = numbers == number
            if own.any():
                result[own] = array[rows[own]]
        return result


class Store:
    """One kind of features in a folder.

    Args:
        folder: a Path; made when the first part is written.
        width: D, numbers in a row.

    Attributes:
        bad: {digest: why nothing can be computed from that image}.
    """

    def __init__(self, folder, width):
        self.folder, self.width = folder, width
        self.arrays, self.places, self.bad = [], {}, {}

    def find(self, digests):
        """Open the parts that hold any of these rows; returns the digests that no part has, in order.

        A part that is damaged or cut short is not used, and one line says so.
        """
        wanted = set(digests)
        for path in sorted(self.folder.glob("*.json")):
            missing = wanted - self.places.keys() - self.bad.keys()
            if not missing:
                break
            self._open(path, missing)
        return [name for name in digests if name not in self.places and name not in self.bad]

    def _open(self, path, wanted):
        rows = path.with_suffix(".npy")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            names, bad = list(about["digests"]), dict(about["bad"])
            if not wanted & {*names, *bad}:
                return
            array = np.lib.format.open_memmap(rows, "r")
            if array.shape != (len(names), self.width) or array.dtype != np.float32:
                raise ValueError("another shape")
            if digest(array) != about["checksum"]:
                raise ValueError("another content")
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("warning: %s is damaged or cut short; what it should hold is computed anew", rows)
            for leftover in (path, rows):
                with contextlib.suppress(OSError):
                    leftover.unlink()
            return
        self.bad |= bad
        self._hold(array, names)

    def _hold(self, array, names):
        number = len(self.arrays)
        self.places |= {name: (number, row) for row, name in enumerate(names) if name not in self.bad}
        self.arrays.append(array)

    def add(self, digests, chunks, reasons):
        """Write a part.

        Args:
            digests: of the images whose rows it is to hold.
            chunks: yields (digests of some of them, float32 (N, D)); images that can't be read never come.
            reasons: called afterwards, gives {digest: why} of those.

        Raises:
            OSError: it can't be written; nothing of it is left then.
        """
        path = self.folder / f"{digest(*(name.encode() for name in digests))}.npy"
        places = {name: row for row, name in enumerate(digests)}
        with atomic(path) as temporary:
            array = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(digests), self.width))
            for names, rows in chunks:
                array[[places[name] for name in names]] = rows
            array.flush()
            about = {"digests": digests, "bad": reasons(), "checksum": digest(array)}
            del array
        with atomic(path.with_suffix(".json")) as temporary:  # last: only now the part can be found
            temporary.write_text(json.dumps(about), encoding="utf-8")
        self.bad |= about["bad"]
        self._hold(np.lib.format.open_memmap(path, "r"), digests)

    def rows(self, digests):
        """The Rows of these images, all of which must be there."""
        return Rows(self.arrays, self.places, digests)
