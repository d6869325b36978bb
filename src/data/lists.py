"""Text files that say which images there are: lists of `path label`, official split lists, class names."""

import logging
import os
import re
from pathlib import Path

import numpy as np

from model_utils import paths
from model_utils.errors import UserError, shortened
from src.data.files import Listing, is_image, shown

log = logging.getLogger("run")

MAX_LIST_BYTES = 256 * 2**20
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MISSING = "listed images that are missing"


def read_lines(path, key):
    """[(number from 1, line)] of a text, without empty lines; UserError that begins with the key.

    The text is UTF-8, or UTF-16 with a byte-order mark, as editors of Windows write it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
        text = data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UserError(
                f"{key}: {shown(path)}: no UTF-8 text ({error.reason}); replace it by a list"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}: {shown(path)}: {reason}; give a text file") from error
    if len(data) > MAX_LIST_BYTES:
        raise UserError(f"{key}: {shown(path)}: over {MAX_LIST_BYTES >> 20} MB, which is no list; replace it")
    lines = enumerate(text.splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


# Lists of `path label`


def read_list(path, key, root="", names_file=""):
    """The Listing of a text file with a line `path label` for each image, or `path` alone without labels.

    A label is a class's name or number. The names of numbered classes are, in this order: those of
    `names_file`, one a line, counted from 0 or 1, as `_first_number` finds out; the folders the images lie
    in, where each label has one of its own; the numbers themselves.

    Args:
        path: the list.
        key: the configuration key that named it, for messages.
        root: folder that the paths are seen from; empty: the list's folder, or one above it.
        names_file: text file of class names, or empty.

    Raises:
        UserError: no such text, lines of another form, an image with two labels, numbers that do not say
            which of the names they mean.
    """
    rows = [_row(line, number, path, key) for number, line in read_lines(path, key)]
    if not rows:
        raise UserError(f"{key}: {shown(path)}: lists no image; give a list with lines `path label`")
    without = [row for row in rows if row[1] is None]
    if without and len(without) < len(rows):
        raise UserError(f"{key}: {shown(path)}, line {without[0][2]}: no label, but other lines have one")
    chosen = {}
    for name, label, number in rows:
        if chosen.setdefault(name, label) != label:
            raise UserError(
                f"{key}: {shown(path)}, line {number}: {shown(name)} has two labels; remove one of the lines"
            )
    base = _base(path, next(iter(chosen)), root)
    ordered = sorted(chosen, key=lambda name: (chosen[name] or "", name))
    files = tuple(os.path.join(base, name) for name in ordered)
    if without:
        return Listing(Path(base), None, files, np.zeros(len(files), np.int32))
    names = _names(chosen, path, key, names_file)
    classes = tuple(sorted(set(names.values())))
    places = {label: classes.index(name) for label, name in names.items()}
    labels = np.array([places[chosen[name]] for name in ordered], np.int32)
    order = np.argsort(labels, kind="stable")
    return Listing(Path(base), classes, tuple(files[i] for i in order), labels[order])


def _row(line, number, path, key):
    """(path, label or None, line number)."""
    if is_image(line):
        return line, None, number
    parts = line.rsplit(None, 1)
    name, label = parts if len(parts) == 2 else line.rpartition(",")[::2]
    name = name.rstrip(",")
    if not is_image(name):  # a space in the path, or in the label behind a comma, parts nothing
        commas = [at for at, sign in enumerate(line) if sign == "," and is_image(line[:at].rstrip())]
        if commas:
            name, label = line[: commas[-1]].rstrip(), line[commas[-1] + 1 :].strip()
    if not name or not label or "\0" in name:
        raise UserError(
            f"{key}: {shown(path)}, line {number}: {shown(line[:80])!r} is not `path label`; mend it"
        )
    return name, label, number


def _base(path, first, root):
    """The folder that relative paths of a list are seen from."""
    if root:
        return root
    own = os.path.dirname(os.path.abspath(path))
    candidates = (own, os.path.dirname(own))
    return next((base for base in candidates if os.path.lexists(os.path.join(base, first))), own)


def _names(chosen, path, key, names_file):
    """{label as written: name of the class}."""
    labels = sorted(set(chosen.values()))
    if not all(label.isdecimal() for label in labels):
        return {label: label for label in labels}
    if names_file:
        return _named_by_file(chosen, path, key, names_file)
    folders = {}
    for name, label in chosen.items():
        folders.setdefault(label, set()).add(os.path.basename(os.path.dirname(name)))
    own = [next(iter(found)) for found in folders.values() if len(found) == 1]
    if len(own) == len(labels) == len(set(own)) and "" not in own:
        return {label: next(iter(found)) for label, found in folders.items()}
    return {label: label for label in labels}


def _named_by_file(chosen, path, key, names_file):
    names = [line for _, line in read_lines(names_file, "list_classes")]
    most = max(int(label) for label in chosen.values())
    first = _first_number(chosen, names, path, key)
    if most - first >= len(names) or len(set(names)) < len(names):
        raise UserError(
            f"list_classes: {shown(names_file)} has {len(set(names))} names, but {shown(path)} ({key}) has "
            f"the label {most}; give one name a line, all different, in the order of the numbers"
        )
    return {label: names[int(label) - first] for label in set(chosen.values())}


def _first_number(chosen, names, path, key):
    """Whether the numbers of a list count from 0 or from 1.

    The number 0 says it, and so does one that only the last name can have. A list that lacks both the first
    and the last class is told by the folders of its images, where these have the names of the classes.
    """
    numbers = {int(label) for label in chosen.values()}
    if 0 in numbers or max(numbers) > len(names):
        return 0
    if len(names) in numbers:
        return 1
    folders = {(os.path.basename(os.path.dirname(name)), int(label)) for name, label in chosen.items()}
    found = {number - names.index(folder) for folder, number in folders if folder in names}
    if found in ({0}, {1}):
        return found.pop()
    raise UserError(
        f"{key}: {shown(path)} has labels from {min(numbers)} to {max(numbers)} for {len(names)} classes, "
        "which may count from 0 or from 1; write names as labels"
    )


# Official split lists


class KfoldLists:
    """The lists of PACS, `<domain>_<train|crossval|test>_kfold.txt` with lines `<domain>/<class>/<file> L`.

    L is the class's place in alphabetical order, counted from 1. It is checked against the folder that the
    path names, because labels that are off by one would train on the wrong classes unnoticed.

    Args:
        root: folder of the lists.
        classes: names of the set's classes in alphabetical order.
        left_out: a `LeftOut`, which decides about listed images that are missing.
    """

    def __init__(self, root, classes, left_out):
        self.root, self.classes, self.left_out = Path(root), classes, left_out
        if not os.path.isdir(root):
            raise UserError(
                f"kfold_root: {shown(root)} is no folder; it should hold <domain>_train_kfold.txt …"
            )

    def read(self, domain, part, listing):
        """The images of a list, out of the domain's `listing`; UserError naming file and line."""
        chosen = self._parse(domain, part, listing)
        if part != "test":
            other = "crossval" if part == "train" else "train"
            both = sorted(set(chosen) & set(self._parse(domain, other, listing)))
            if both:
                raise UserError(
                    f"{self._path(domain, part)}: {domain}/{both[0]} is in {self._path(domain, other).name} "
                    f"too ({len(both)} such images); held-out images must not be trained on"
                )
        return listing.take(np.array(list(chosen.values()), np.int64))

    def _path(self, domain, part):
        return self.root / f"{domain}_{part}_kfold.txt"

    def _parse(self, domain, part, listing):
        """{"<class>/<file>": place in the listing}."""
        path, chosen, missing = self._path(domain, part), {}, []
        known = {name: place for place, name in enumerate(listing.names())}
        for number, line in read_lines(path, "kfold_root"):
            name = self._entry(line, domain, f"{path}, line {number}")
            if name in chosen:
                raise UserError(f"{path}, line {number}: {domain}/{name} is listed twice; remove one")
            if name in known:
                chosen[name] = known[name]
            else:
                missing.append(f"{domain}/{name}")
        if missing:
            self.left_out.tell(MISSING, missing, shown(path))
        if not chosen:
            raise UserError(f"{path}: lists no image that is there; replace it by the official list")
        return chosen

    def _entry(self, line, domain, where):
        """ "<class>/<file>" of one line, whose label is right."""
        name, _, label = line.rpartition(" ")
        parts = name.strip().split("/")
        if len(parts) != 3 or parts[0] != domain or parts[1] not in self.classes or not label.isdecimal():
            raise UserError(
                f"{where}: {line[:80]!r} is not `{domain}/<class>/<file> label` with a class that has a "
                "folder; replace the list by the official one"
            )
        wanted = self.classes.index(parts[1]) + 1
        if int(label) != wanted:
            hint = (
                "; labels are counted from 1, these seem to count from 0" if int(label) == wanted - 1 else ""
            )
            raise UserError(
                f"{where}: label {label} of {name}, but class {parts[1]} is number {wanted} of "
                f"{len(self.classes)} in alphabetical order{hint}"
            )
        return f"{parts[1]}/{parts[2]}"


# Names to show


def shown_names(path, count, folders=None):
    """The names to show for `count` classes in the order of the logits, from a text file.

    Args:
        path: lines `folder name` (ImageNet's `n01440764 tench, Tinca tinca`) in any order, more than needed
            or not, where the class folders are known; else one name per line in the order of the classes.
        count: how many there are.
        folders: names of the class folders in the order of the logits, or None.

    Raises:
        UserError: no such text; another number of names; a folder has no line, or two; or names without
            folders beside folders that are numbered, and so are sorted otherwise than numbers are.
    """
    lines = [line for _, line in read_lines(paths.expanded(path, "class_names"), "class_names")]
    keyed = [tuple(parts) for parts in (line.split(None, 1) for line in lines) if len(parts) == 2]
    if folders and set(folders) & {folder for folder, _ in keyed}:
        return _by_folder(folders, keyed, path)
    natural = sorted(folders or (), key=_natural)
    if len(lines) == count and natural != list(folders or ()):
        at = next(place for place, name in enumerate(natural) if name != folders[place])
        raise UserError(
            f"class_names: {shown(path)} has no folder names, and the class folders are in the order "
            f"{shortened(list(folders[: at + 2]), at + 2)}, … of text, not of numbers: line "
            f"{at + 1} would name "
            f"folder {folders[at]}; write lines `folder name`"
        )
    if len(lines) != count:
        raise UserError(
            f"class_names: {shown(path)} has {len(lines)} names, but the model has {count} classes; give one "
            "name per line in the order of the classes"
        )
    return lines


def _by_folder(folders, keyed, path):
    """The names of the folders out of (folder, name) pairs; UserError unless each has just one."""
    names = {}
    for folder, name in keyed:
        if names.setdefault(folder, name) != name and folder in folders:
            raise UserError(f"class_names: {shown(path)} names {folder} twice, {names[folder]} and {name}")
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise UserError(
            f"class_names: {shown(path)} has no name for {shortened(missing, 3)}; give a line "
            "`folder name` for "
            "every class"
        )
    log.info("class names: %s", shortened([f"{folder} = {names[folder]}" for folder in folders], 3))
    return [names[folder] for folder in folders]


def _natural(name):
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
