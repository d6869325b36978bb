"""One lister for all image files, and the account of what is left out.

A file counts as an image if its name ends in one of EXTENSIONS. Hidden files, and what systems and archives
leave behind (`._photo.jpg`, `.DS_Store`, `Thumbs.db`, `__MACOSX/`), are passed over and only counted.
Everything else that is not read is named once in the log and in result.json.
"""

import dataclasses
import glob
import logging
import os
import re
import threading
from pathlib import Path

import numpy as np

from model_utils.errors import UserError, shortened
from model_utils.paths import expanded

log = logging.getLogger("run")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")
HIDDEN, STRAY = "hidden and system files", "files that are no images by their names"
UNKNOWN = "pictures of formats that are not read"
OTHER_FORMATS = (".heic", ".heif", ".avif", ".gif", ".tif", ".tiff")
DANGLING, NESTED = "links that lead nowhere", "folders inside class folders"
LOOSE = "images beside the class folders"
MOST_NAMED = 20


def shown(path):
    """A path as text for people: bytes that are not UTF-8, and control characters, as \\x escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)


class LeftOut:
    """The account of files that were not used, by reason; each file counts once.

    Args:
        strict: whether a file that should have been an image is an error.
    """

    def __init__(self, strict=False):
        self.strict = strict
        self._paths, self._lock = {}, threading.Lock()

    def add(self, reason, paths):
        """Note files; returns those that were not noted before."""
        with self._lock:
            known = self._paths.setdefault(reason, {})
            new = [path for path in paths if path not in known]
            known.update(dict.fromkeys(new))
        return new

    def tell(self, reason, paths, where):
        """Note files and log one line about the new ones; with `strict` they are a UserError."""
        names = [*map(shown, paths[:3]), *paths[3:]]
        line = f"{where}: {reason} ({len(paths)}): {shortened(names, 3)}"
        if self.strict:
            raise UserError(f"{line}; remove them, or leave out --strict")
        if self.add(reason, paths):
            log.warning("warning: %s; left out", line)

    def unreadable(self, path, reason):
        """Note one file that can't be decoded, and log it."""
        if self.add(reason, [path]) and not self.strict:
            log.warning("warning: %s: %s; left out", shown(path), reason)

    def as_dict(self):
        """{reason: [up to MOST_NAMED paths, then "and N more"]}."""
        result = {}
        for reason, paths in self._paths.items():
            named = [shown(path) for path in list(paths)[:MOST_NAMED]]
            more = len(paths) - len(named)
            result[reason] = named + ([f"and {more} more"] if more else [])
        return {reason: named for reason, named in result.items() if named}


@dataclasses.dataclass(frozen=True)
class Listing:
    """Image files: `classes` sorted, or None without labels; `files` sorted by class and name.

    root: the folder they are seen from. labels: int32 (N,), places in `classes`; all 0 without labels.
    """

    root: Path
    classes: tuple | None
    files: tuple
    labels: np.ndarray

    def names(self):
        """The files as seen from `root`, where they lie in it."""
        begin = os.path.join(self.root, "")
        return [file.removeprefix(begin) for file in self.files]

    def without_labels(self):
        """The files alone, sorted by path; `classes` and `labels` are None."""
        return dataclasses.replace(self, classes=None, files=tuple(sorted(self.files)), labels=None)

    def take(self, chosen):
        """The files at positions, or under a mask."""
        chosen = np.arange(len(self.files))[chosen]
        return dataclasses.replace(
            self, files=tuple(self.files[index] for index in chosen), labels=self.labels[chosen]
        )


def is_junk(name):
    """Whether a file or folder of this name is hidden, or left by a system or an archive."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_image(name):
    """Whether a name ends as an image's does."""
    return name.lower().endswith(EXTENSIONS)


def entries(folder):
    """The os.DirEntry list of a folder, by name; UserError if it can't be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(folder)}: cannot be listed ({reason}); give another folder") from error


def kind(entry):
    """What an os.DirEntry is, links followed: "file", "folder", "link" (that leads nowhere), or "other"."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError:  # a link to itself
        return "link"
    return "link" if entry.is_symlink() else "other"


def subfolders(folder):
    """Names of the folders in a folder, without hidden ones and those of systems, sorted."""
    return [entry.name for entry in entries(folder) if not is_junk(entry.name) and kind(entry) == "folder"]


def images_in(folder, left_out):
    """(paths of the images directly in a folder, sorted; {reason: paths} of all else).

    Files that are hidden are noted in `left_out` at once.
    """
    images, other, hidden = [], {}, []
    reasons = {"folder": NESTED, "link": DANGLING}
    for entry in entries(folder):
        if is_junk(entry.name):
            hidden.append(entry.path)
        elif (found := kind(entry)) == "file" and is_image(entry.name):
            images.append(entry.path)
        else:
            name_says = UNKNOWN if entry.name.lower().endswith(OTHER_FORMATS) else STRAY
            other.setdefault(reasons.get(found, name_says), []).append(entry.path)
    left_out.add(HIDDEN, hidden)
    return images, other


def scan(root, left_out, empty_allowed=False):
    """List the images of `<root>/<class>/*`.

    Args:
        root: the folder of class folders.
        left_out: a `LeftOut`.
        empty_allowed: whether a class folder without an image is passed over, and logged, or refused.

    Raises:
        UserError: no class folder, one without an image, or, if `left_out` is strict, files that are no
            images.
    """
    root, classes, files, labels = Path(root), [], [], []
    loose, _ = images_in(root, left_out)
    other = {LOOSE: loose} if loose else {}
    for name in subfolders(root):
        images, rest = images_in(root / name, left_out)
        for reason, paths in rest.items():
            other.setdefault(reason, []).extend(paths)
        if not images and not empty_allowed:
            raise UserError(
                f"{shown(root / name)}: no image ({', '.join(EXTENSIONS)}){_instead(rest)}; remove the "
                "folder or fill it"
            )
        if images:
            files += images
            labels += [len(classes)] * len(images)
            classes.append(name)
        else:
            log.info("%s: no image in it; taken for a class that is missing", shown(root / name))
    if not classes:
        raise UserError(
            f"{shown(root)}: no class folders{' with images' if other.get(UNKNOWN) else ''} in it"
            f"{_instead(other)}; images belong into {shown(root)}/<class>/"
        )
    _tell(other, left_out, root)
    return Listing(root, tuple(classes), tuple(files), np.array(labels, np.int32))


def _instead(other):
    """What is in the place of images, in brackets, or "". other: {reason: paths} of images_in."""
    unknown, nested = ([shown(os.path.basename(p)) for p in other.get(why, [])] for why in (UNKNOWN, NESTED))
    if unknown:
        return f" (it holds {UNKNOWN}: {shortened(unknown, 3)}; convert them to JPEG or PNG)"
    return f" (it holds folders: {shortened(nested, 3)}; is it the root?)" if nested else ""


def scan_flat(root, left_out):
    """List the images directly in a folder, without labels; UserError if there is none."""
    images, other = images_in(root, left_out)
    if not images:
        raise UserError(
            f"{shown(root)}: no image ({', '.join(EXTENSIONS)}) in it{_instead(other)}; give another folder"
        )
    _tell(other, left_out, root)
    return Listing(Path(root), None, tuple(images), np.zeros(len(images), np.int32))


def _tell(other, left_out, root):
    for reason, paths in other.items():
        left_out.tell(reason, paths, shown(root))


def find(words, left_out=None):
    """The image files that files, folders (searched to the bottom) and patterns stand for, each once.

    Raises:
        UserError: a word stands for nothing.
    """
    left_out, found = left_out or LeftOut(), []
    for word in (expanded(word, "image") for word in words):
        if os.path.isdir(word):
            files = below(word, left_out)
            if not files:
                raise UserError(f"{shown(word)}: no image ({', '.join(EXTENSIONS)}) in this folder")
        elif os.path.lexists(word):
            files = [word]
        else:
            files = sorted(path for path in glob.glob(word, recursive=True) if os.path.isfile(path))
            if not files:
                raise UserError(f"{shown(word)}: no such file; give images, folders or patterns")
        found += files
    return list(dict.fromkeys(found))


def below(folder, left_out):
    """All images below a folder, sorted by path."""
    files, dangling, unknown = [], [], []
    for base, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not is_junk(name)]
        images, rest = images_in(base, left_out)
        files += images
        dangling += rest.get(DANGLING, [])
        unknown += rest.get(UNKNOWN, [])
        left_out.add(STRAY, rest.get(STRAY, []))  # no news in a folder of all kinds of files
    if unknown:
        left_out.tell(UNKNOWN, sorted(unknown), shown(folder))
    if dangling:
        left_out.tell(DANGLING, dangling, shown(folder))
    return sorted(files)
