"""Unpacking archives from strangers: files and folders only, and only inside the folder they belong to."""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from model_utils.errors import UserError

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


def unpack_all(folder):
    """Unpack every tar and zip archive under `folder` beside itself; the archives stay.

    Returns:
        The archives' paths relative to `folder`.

    Raises:
        UserError: one is damaged, larger than the disk, or holds a link, an absolute path or one with "..".
    """
    names = sorted(path for path in Path(folder).rglob("*") if path.name.lower().endswith(ENDINGS))
    names = [path for path in names if path.is_file()]
    for path in names:
        unpack(path, path.parent)
    return [str(path.relative_to(folder)) for path in names]


def unpack(path, folder):
    """Unpack one archive into `folder`, or nothing of it if it holds what it must not.

    Raises UserError as `unpack_all` does.
    """
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                members = [(m.filename, m.is_dir(), _zip_kind(m), m.file_size, m) for m in archive.infolist()]
                _write(path, Path(folder), members, archive.open)
        else:
            with tarfile.open(path) as archive:
                members = [(m.name, m.isdir(), _tar_kind(m), m.size, m) for m in archive.getmembers()]
                _write(path, Path(folder), members, archive.extractfile)
    except DAMAGED as error:
        raise UserError(f"archive {path} is damaged or of an unknown kind ({error})") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: zipfile, encrypted
        raise UserError(f"archive {path} cannot be unpacked: {error}") from error


def _zip_kind(member):
    kind = stat.S_IFMT(member.external_attr >> 16)
    return "link" if kind == stat.S_IFLNK else "file" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "device"


def _tar_kind(member):
    if member.issym() or member.islnk():
        return "link"
    return "file" if member.isfile() or member.isdir() else "device"


def _write(path, folder, members, open_member):
    """members: list of (name, is a folder, kind, size in bytes, handle for `open_member`)."""
    for name, _, kind, _, _ in members:
        place = PurePosixPath(name.replace("\\", "/"))
        if kind != "file":
            raise UserError(f"archive {path} holds a {kind} ({name!r:.80}); only files are unpacked")
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise UserError(f"archive {path} holds a path outside its folder ({name!r:.80})")
    size, free = sum(member[3] for member in members), shutil.disk_usage(folder).free
    if size > free:
        raise UserError(f"archive {path} takes {size} bytes unpacked, but only {free} are free in {folder}")
    for name, is_folder, _, _, handle in members:
        target = folder / name
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member(handle) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
