"""The part of PACS that some figures were measured on.

    python -m benchmarks.pacs_part FOLDER [--write | --copy TO]

Compares FOLDER, which holds <domain>/<class>/*, with the list benchmarks/pacs_part.sha256: 60 images of each
of seven classes in four domains, one line `SHA-256  path` for each, as sha256sum writes and checks it. Files
that are not in the list do not matter, so FOLDER may be the whole of PACS. `--copy TO` makes the part from
it; `--write` writes the list anew, of all files in FOLDER.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from model_utils import cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError, shortened

LIST = ROOT / "benchmarks" / "pacs_part.sha256"


def digest(path):
    """SHA-256 of a file, as hexadecimal text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listed():
    """{path relative to the folder of domains: SHA-256} of the list."""
    lines = (line.split("  ", 1) for line in LIST.read_text(encoding="utf-8").splitlines())
    return {name: value for value, name in lines}


def differences(folder):
    """What of the list is missing in `folder`, and what has another content: two sorted lists of paths."""
    wanted = listed()
    missing = sorted(name for name in wanted if not (folder / name).is_file())
    other = sorted(n for n in wanted.keys() - set(missing) if digest(folder / n) != wanted[n])
    return missing, other


def write(folder):
    """Write the list of all images in `folder`, sorted by path; returns how many there are."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/*/*") if file.is_file())
    with atomic(LIST) as temporary:
        text = "".join(f"{digest(folder / name)}  {name}\n" for name in names)
        temporary.write_text(text, encoding="utf-8")
    return len(names)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--copy", type=Path, metavar="TO")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        raise UserError(
            f"{arguments.folder}: is no folder; give the one that holds <domain>/<class>/* of PACS"
        )
    if arguments.write:
        print(f"{LIST.name}: {write(arguments.folder)} files")
        return
    missing, other = differences(arguments.folder)
    if missing or other:
        raise UserError(
            f"{arguments.folder}: {len(missing)} of the listed files are missing ({shortened(missing, 2)}), "
            f"{len(other)} have another content ({shortened(other, 2)}); figures on it are not comparable"
        )
    if arguments.copy:
        for name in listed():
            target = arguments.copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(arguments.folder / name, target)
    print(f"{arguments.folder}: holds all {len(listed())} files of the list, with the same content")


if __name__ == "__main__":
    cli.run(main)
