"""What a run writes while it trains: train.log, metrics.jsonl, TensorBoard events, and the terminal."""

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from model_utils import optional
from model_utils.checkpoint import atomic

log = logging.getLogger("run")

MAX_ROW_BYTES = 2**16  # of a line of metrics.jsonl; a row has some hundred


class _AboveProgressBar(logging.StreamHandler):
    """Writes log lines above the progress bar instead of through it."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup(output_dir=None, rank=0, append=False):
    """Send the run's log to standard output (rank 0 only) and, with a folder, to a file in it.

    The file is train.log on rank 0 and train.rank<N>.log elsewhere.
    """
    log.handlers.clear()
    log.setLevel(logging.INFO)
    log.propagate = False
    if rank == 0:
        log.addHandler(_AboveProgressBar())
    if output_dir is not None:
        name = "train.log" if rank == 0 else f"train.rank{rank}.log"
        handler = logging.FileHandler(
            Path(output_dir) / name, mode="a" if append else "w", encoding="utf-8", errors="surrogateescape"
        )
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        handler.handleError = lambda record: (
            None if _is_disk_full() else logging.Handler.handleError(handler, record)
        )
        log.addHandler(handler)
    if not log.handlers:
        log.addHandler(logging.NullHandler())


def _is_disk_full():
    """A full disk must not print a traceback for every log line; the checkpoint writer reports it."""
    return isinstance(sys.exc_info()[1], OSError)


class Metrics:
    """metrics.jsonl (one JSON object per logged moment) and TensorBoard scalars; silent on other ranks.

    Args:
        output_dir: the run's folder.
        enabled: False on every rank but 0.
        tensorboard: whether to write event files.
        keep_until: on resume, the step up to which earlier lines are kept; None starts afresh.
        evaluated_again: whether the run evaluates the network of that step once more, so that what was
            written about it before goes.
    """

    def __init__(self, output_dir, enabled=True, tensorboard=True, keep_until=None, evaluated_again=False):
        self.path = Path(output_dir) / "metrics.jsonl"
        self.events = self.file = None
        self.failed = False
        if not enabled:
            return
        kept = []
        if keep_until is not None:
            kept = [row for row in read_metrics(self.path) if row["step"] <= keep_until]
        if evaluated_again:
            kept = [row for row in kept if row["step"] < keep_until or row["kind"] == "train"]
        with atomic(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        if tensorboard:
            with self._disk_may_be_full(), self._tensorboard_may_be_broken():
                self.events = Events(Path(output_dir) / "events", keep_until)

    def write(self, kind, step, values, **labels):
        """Record scalars. kind: "train", "validation" or "test"; step: steps done over all phases."""
        if self.file is None:
            return
        values = {name: float(value) for name, value in values.items()}
        row = {"kind": kind, "step": step, **labels, **values}
        with self._disk_may_be_full():
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        if self.events is not None:
            with self._disk_may_be_full(), self._tensorboard_may_be_broken():
                self.events.write({f"{kind}/{name}": value for name, value in values.items()}, step)

    def close(self):
        """Flush and close both files."""
        for file in (self.file, self.events):
            if file is not None:
                with self._disk_may_be_full():
                    file.close()

    @contextlib.contextmanager
    def _tensorboard_may_be_broken(self):
        """If the package is missing or broken, the run goes on; metrics.jsonl holds the same figures."""
        try:
            yield
        except OSError:
            raise  # a full disk: see below
        except Exception as error:  # tensorboardX, or protobuf below it, raises whatever it likes
            self.events = None
            log.warning(
                "warning: no TensorBoard events are written, because the package tensorboardX does not work "
                "(%s); pip install -r requirements.txt, or leave it out with --tensorboard false",
                optional.reason_of(error),
            )

    @contextlib.contextmanager
    def _disk_may_be_full(self):
        """Figures that can't be written are worth a warning, once, but not the run."""
        try:
            yield
        except OSError as error:
            if not self.failed:
                log.warning("warning: metrics are not being written: %s", error.strerror)
            self.failed = True


class Events:
    """A TensorBoard event file in `folder`, written at once.

    tensorboardX's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback.
    keep_until: on resume, the last step whose earlier events TensorBoard goes on showing.
    """

    def __init__(self, folder, keep_until=None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        # Unique for this process: a run resumed within a second must not overwrite the file before it.
        self.file = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}")
        self.event = Event
        if keep_until is not None:
            start = SessionLog(status=SessionLog.START)
            self.file.write_event(Event(wall_time=time.time(), step=keep_until + 1, session_log=start))

    def write(self, values, step):
        """Append scalars, {tag: float}."""
        from tensorboardX.summary import scalar

        for tag, value in values.items():
            self.file.write_event(self.event(wall_time=time.time(), step=step, summary=scalar(tag, value)))
        self.file.flush()

    def close(self):
        """Flush and close the file."""
        self.file.close()


def read_metrics(path):
    """The rows of a metrics.jsonl up to the first line that is none, such as one that a crash cut short."""
    rows = []
    if Path(path).is_file():
        with open(path, "rb") as file:
            while (row := _row(file.readline(MAX_ROW_BYTES))) is not None:
                rows.append(row)
    return rows


def _row(line):
    """The row in a line of metrics.jsonl; None if the line is none."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or type(row.get("step")) is not int:
        return None
    numbers = (value for name, value in row.items() if name not in ("kind", "phase"))
    return row if all(isinstance(number, int | float) for number in numbers) else None
