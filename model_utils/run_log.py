"""What a run writes while it trains: train.log, metrics.jsonl, TensorBoard events, and the terminal."""

import json
import logging
import sys
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("run")


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
        handler = logging.FileHandler(Path(output_dir) / name, mode="a" if append else "w", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        handler.handleError = lambda record: (
            None if _is_disk_full() else logging.Handler.handleError(handler, record)
        )
        log.addHandler(handler)
    if not log.handlers:
        log.addHandler(logging.NullHandler())


def _is_disk_full():
    """A log line lost to a full disk must not become a traceback a line; the checkpoint writer reports it."""
    return isinstance(sys.exc_info()[1], OSError)


class Metrics:
    """metrics.jsonl (one JSON object per logged moment) and TensorBoard scalars; silent on other ranks.

    Args:
        output_dir: the run's folder.
        enabled: False on every rank but 0.
        tensorboard: whether to write event files.
        keep_until: on resume, the step up to which earlier lines are kept; None starts afresh.
    """

    def __init__(self, output_dir, enabled=True, tensorboard=True, keep_until=None):
        self.path = Path(output_dir) / "metrics.jsonl"
        self.events = self.file = None
        self.failed = False
        if not enabled:
            return
        kept = (
            []
            if keep_until is None
            else [row for row in read_metrics(self.path) if row["step"] <= keep_until]
        )
        self.file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - closed in close()
        for row in kept:
            self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if tensorboard:
            from tensorboardX import SummaryWriter

            purge = None if keep_until is None else keep_until + 1
            self.events = SummaryWriter(str(Path(output_dir) / "events"), purge_step=purge)

    def write(self, kind, step, values, **labels):
        """Record scalars. kind: "train", "validation" or "test"; step: steps done over all phases."""
        if self.file is None:
            return
        row = {"kind": kind, "step": step, **labels, **{name: float(value) for name, value in values.items()}}
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:
            if not self.failed:
                log.warning("warning: metrics.jsonl is not being written: %s", error.strerror)
            self.failed = True
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{kind}/{name}", float(value), step)

    def close(self):
        """Flush and close both files."""
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()


def read_metrics(path):
    """The rows of a metrics.jsonl; a last line that a crash cut short is left out."""
    rows = []
    if Path(path).is_file():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
