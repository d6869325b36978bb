"""ModelArts jobs: data copied in once per host, what a run writes copied out.

`data_url` and `train_url` are OBS addresses (obs://bucket/folder), reached through ModelArts' `moxing`, or
local folders. Only `prepare` and `Outbox` are used from outside.
"""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import shutil
import time
import zlib
from pathlib import Path

from model_utils import archives, checkpoint, device, run_log
from model_utils.errors import UserError, shortened
from model_utils.optional import reason_of

log = logging.getLogger("run")

MARKER = ".copied-in.json"
WAITS = (1.0, 3.0)  # seconds before the second and the third try


class Local:
    """Folders that this machine has mounted."""

    def is_folder(self, url):
        return os.path.isdir(url)

    def copy_folder(self, source, target):
        shutil.copytree(source, target, dirs_exist_ok=True)

    def copy_file(self, source, target):
        target = Path(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with checkpoint.atomic(target) as temporary:
            shutil.copyfile(source, temporary)


class Obs:
    """Huawei's object storage, through moxing."""

    def __init__(self, key):
        try:
            import moxing
        except Exception as error:  # a package that is installed wrongly raises whatever it likes
            raise UserError(
                f"{key}: obs:// needs the package moxing of ModelArts images, which can't be imported here "
                f"({reason_of(error)}); elsewhere give a folder"
            ) from error
        self.file = moxing.file

    def is_folder(self, url):
        return self.file.is_directory(url)

    def copy_folder(self, source, target):
        self.file.copy_parallel(str(source), str(target))

    def copy_file(self, source, target):
        self.file.copy(str(source), str(target))


def storage(url, key):
    """What reads and writes `url`, the value of configuration key `key`."""
    if url.startswith(("obs://", "s3://")):
        return Obs(key)
    if "://" in url:
        raise UserError(f"{key}: {url} is neither obs://bucket/folder nor a local folder")
    return Local()


def _retry(action, what):
    """Run `action()` up to three times; moxing's many kinds of exceptions all mean the same here."""
    for wait in (*WAITS, None):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            if wait is None:
                raise UserError(f"{what} failed {len(WAITS) + 1} times: {reason}") from error
            log.warning("warning: %s failed (%s); trying again in %.0f s", what, reason, wait)
            time.sleep(wait)


def prepare(settings):
    """The settings a command goes on with: data copied in.

    On ModelArts (`enable_modelarts`) `data_url` is copied into `local_data_path`, once per host, and takes
    the place of `dataset_path`; with `resume` an empty `output_dir` is filled from `train_url`.

    Raises:
        UserError: data_url or train_url without enable_modelarts, and the reverse; what cannot be copied.
    """
    urls = [key for key in ("data_url", "train_url") if getattr(settings, key)]
    if not settings.enable_modelarts:
        asked = [key for key in urls if key in settings.given]
        if asked:
            raise UserError(
                f"{asked[0]} is used with --enable_modelarts true only; add it, or leave this out"
            )
    elif not urls:
        raise UserError("enable_modelarts: give --data_url, --train_url or both")
    elif not device.is_scheduler():
        if not log.handlers:
            run_log.setup(rank=int(os.environ.get("RANK_ID", "0")))
        if settings.resume and settings.train_url and os.environ.get("RANK_ID", "0") == "0":
            _fetch_run(settings)
        if settings.data_url:
            folder = copy_in(settings.data_url, settings.local_data_path)
            settings = settings.replace(dataset_path=str(folder))
    return settings


def _fetch_run(settings):
    """Bring back an earlier job's checkpoints and logs, unless the run's folder has some."""
    if checkpoint.listed(settings.output_dir):
        return
    source = storage(settings.train_url, "train_url")
    _retry(
        lambda: source.copy_folder(settings.train_url, settings.output_dir),
        f"train_url: copying {settings.train_url} to {settings.output_dir}",
    )


def copy_in(url, folder):
    """Copy the data at `url` into a folder of its own under `folder`, and unpack archives, once per host.

    The first process to come holds a lock while it copies; the others wait and find the copy. A copy is moved
    to its place when it is whole, so that one cut short is never used.

    Returns:
        The folder with the data.
    """
    name = f"{Path(url.rstrip('/')).name or 'data'}-{zlib.crc32(url.encode()):08x}"
    target = Path(folder) / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.with_name(f".{name}.lock"), "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"local_data_path: cannot write into {folder} ({error.strerror}); choose another one"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / MARKER).is_file():
            log.info("data_url: using the copy of %s in %s; delete it to copy again", url, target)
            return target
        partial = target.with_name(f".{name}.partial")
        for leftover in (partial, target):
            shutil.rmtree(leftover, ignore_errors=True)
        _copy_data(url, partial)
        unpacked = archives.unpack_all(partial)
        now = datetime.datetime.now().isoformat(timespec="seconds")
        marker = {"url": url, "time": now, "unpacked": unpacked}
        (partial / MARKER).write_text(json.dumps(marker), encoding="utf-8")
        os.replace(partial, target)
    return target


def _copy_data(url, partial):
    source = storage(url, "data_url")

    def copy():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        if source.is_folder(url):
            source.copy_folder(url, partial)
        else:
            source.copy_file(url, partial / Path(url).name)

    _retry(copy, f"data_url: copying {url}")


class Outbox:
    """Copies what a run has written to `train_url`; does nothing without one, and on ranks other than 0.

    A file is copied when it has changed since the last copy. One that could not be copied is named in the log
    and tried again the next time.
    """

    def __init__(self, settings, enabled=True):
        self.url = settings.train_url.rstrip("/") if settings.enable_modelarts and enabled else ""
        self.folder = Path(settings.output_dir)
        self.sent = {}  # {relative path: (time of change, size)}
        self.storage = storage(self.url, "train_url") if self.url else None

    def _changed(self):
        """{relative path: state} of files to copy, checkpoints first; temporary files are left out."""
        found = {}
        for path in sorted(self.folder.rglob("*"), key=lambda path: (path.suffix != ".ckpt", str(path))):
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                state = path.stat()
                name = str(path.relative_to(self.folder))
                state = (state.st_mtime_ns, state.st_size)
                if path.is_file() and not path.name.startswith(".") and self.sent.get(name) != state:
                    found[name] = state
        return found

    def send(self):
        """Copy what has changed, with retries; returns the names of what could not be copied."""
        if not self.url:
            return []
        left = self._changed()
        for wait in (*WAITS, None):
            left, reason = self._send_once(left)
            if not left:
                return []
            if wait is not None:
                time.sleep(wait)
        names = sorted(left)
        shown = shortened(names, 5)
        log.warning("warning: not copied to %s (%s), kept in %s: %s", self.url, reason, self.folder, shown)
        return names

    def _send_once(self, files):
        left, reason = {}, ""
        for name, state in files.items():
            try:
                self.storage.copy_file(self.folder / name, f"{self.url}/{name}")
                self.sent[name] = state
            except Exception as error:  # moxing raises exceptions of many kinds
                if (self.folder / name).exists():
                    left[name] = state
                    reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return left, reason

    def finish(self):
        """Copy what is left.

        Raises:
            UserError: some of it could not be copied; it names the files.
        """
        names = self.send()
        if names:
            raise UserError(
                f"train_url: {len(names)} files could not be copied to {self.url}: {shortened(names, 5)}; "
                f"they are kept in {self.folder}"
            )
