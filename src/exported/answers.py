"""What infer.py writes of each image: lines for people and programs, and a table."""

import csv
import json
import os

from src.data.files import shown

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for the beginning of a formula


def as_text(path, best, names):
    """A few lines for a person. best: [(class number, probability), …], names: of the classes, or None."""
    lines = [f"  {share:7.2%}  {shown(names[index]) if names else f'class {index}'}" for index, share in best]
    return "\n".join([shown(path), *lines])


def as_json(path, best, names):
    """One line for a program; see `as_text`."""
    top = [
        {"index": index, "class": names[index] if names else None, "probability": round(share, 6)}
        for index, share in best
    ]
    return json.dumps({"image": str(path), "top": top}, ensure_ascii=False)


class Table:
    """A CSV file in UTF-8: path, class, probability, second_class, second_probability, third_class, …

    A spreadsheet takes a cell that begins with = + - or @ for a formula. A path that does is written with ./
    before it, which names the same file. A class that does gets an apostrophe before it.

    Args:
        handle: a text file opened with newline="".
        columns: classes in a row.
    """

    ORDER = ("", "second_", "third_", "fourth_", "fifth_")

    def __init__(self, handle, columns):
        self.writer, self.columns = csv.writer(handle), columns
        begins = [self.ORDER[n] if n < len(self.ORDER) else f"{n + 1}th_" for n in range(columns)]
        self.writer.writerow(["path", *(f"{b}{name}" for b in begins for name in ("class", "probability"))])

    def add(self, path, best, names):
        """Write the row of an image; see `as_text`."""
        cells = [_path_cell(path)]
        for index, share in best:
            cells += [_class_cell(names[index] if names else str(index)), f"{share:.6f}"]
        self.writer.writerow(cells + [""] * (1 + 2 * self.columns - len(cells)))


def _path_cell(path):
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes that are not UTF-8
        text = shown(text)
    return os.path.join(".", text) if text.startswith(FORMULAS) else text


def _class_cell(name):
    return f"'{shown(name)}" if name.startswith(FORMULAS) else shown(name)
