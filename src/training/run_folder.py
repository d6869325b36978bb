"""A run's output_dir: one run at a time, none overwrites another, and each resumes with its own settings."""

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from model_utils import checkpoint
from model_utils.config import ROOT
from model_utils.errors import UserError
from src.data.files import shown
from src.data.forms import OtherClasses, compared, image_roots

log = logging.getLogger("run")


@contextlib.contextmanager
def claim(output_dir, enabled=True, what="run", lock=".lock"):
    """Hold `output_dir` for one run; a second one at the same time is refused with a UserError.

    what, lock: what it is held for, in a word, and the name of the file that says so.
    """
    folder = Path(output_dir)
    if not str(output_dir).strip() or os.path.realpath(folder) == os.path.realpath(ROOT):
        raise UserError(
            f"output_dir: a {what} would write over the repository's own files; "
            "choose a folder such as outputs/mine"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"output_dir: {folder} is a file, not a folder; choose another one") from error
    except OSError as error:
        raise UserError(f"output_dir: cannot make {folder}: {error.strerror}; choose another one") from error
    if not enabled:
        yield folder
        return
    try:
        handle = open(folder / lock, "a")  # noqa: SIM115 - open as long as the run lasts
    except OSError as error:
        raise UserError(
            f"output_dir: cannot write into {folder}: {error.strerror}; choose another one"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"output_dir: another {what} is writing into {folder}; choose another one"
            ) from error
        yield folder


def check_outside(output_dir, config):
    """UserError where a run would write among its own images: its folders would be taken for classes."""
    folder = Path(os.path.realpath(output_dir))
    for key, root in image_roots(config).items():
        if folder.is_relative_to(os.path.realpath(root)):
            raise UserError(
                f"output_dir: {shown(output_dir)} lies in {key} {shown(root)}, where folders are taken for "
                "classes; choose an --output_dir elsewhere"
            )


def check_contents(folder, config):
    """UserError where a fresh run would write over another, or a resumed one finds nothing to resume."""
    before = checkpoint.listed(folder)
    if before and not config.resume:
        raise UserError(
            f"output_dir: {folder} already holds a run ({before[0].name}); "
            "continue it with --resume true, or choose another --output_dir"
        )
    if config.resume and not before:
        raise UserError(f"resume: {folder} holds no checkpoint to continue from; leave out --resume true")
    for leftover in (folder / "checkpoints").glob(".step-*"):
        leftover.unlink()  # of a run that was killed while it wrote; the folder is ours alone now


def check_same_settings(before, config, path):
    """UserError if the configuration stored in checkpoint `path` gives other numbers than `config`."""
    now = config.as_dict()
    fixed = [name for name in now if not config.keys[name].volatile]
    changed = [name for name in fixed if now[name] != before.get(name, now[name])]
    if changed:
        pairs = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in changed)
        raise UserError(f"resume: {path} was trained with other settings ({pairs}); give the same ones")


def check_same_classes(before, classes, path, key="resume", mend="give the data that the run began with"):
    """UserError if checkpoint `path` was trained on other classes, or on the same ones in another order.

    before: the names stored in it, in the order of the logits; None in a checkpoint of an earlier release.
    key: the one that asks for the checkpoint. mend: what to do about other classes.
    """
    if before is None:
        log.warning("warning: %s does not name its classes: only their number is checked", path)
    elif list(before) != list(classes):
        different = compared(classes, before) or f"their order: {', '.join(map(str, before))}"
        raise OtherClasses(
            f"{key}: {path} was trained on other classes than the data have ({different}); {mend}"
        )
