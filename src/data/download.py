"""Fetching public data: a file gets into its folder only with its published checksum, whole or not at all.

Data sets that can't be fetched, because they ask for a registration, have no stable address or no published
checksum, are named in ELSEWHERE with the place to get them from.
"""

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from model_utils import archives
from model_utils.errors import UserError
from src.data.files import shown

TIMEOUT_SECONDS = 20
IMAGENETTE = {  # folder's name in the archive and here: MD5 of <name>.tgz as torchvision checks it
    "imagenette2-160": "e793b78cc4c9e9a4ccc0c1155377a412",
    "imagenette2-320": "3df6f0d01a2c9592104656642f5e78a3",
    "imagenette2": "fe2fc210e6bb7c5664d602c3cd71e612",
}
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/"
ELSEWHERE = {
    "MNIST-M": "make it with create_mnistm.py, or get mnist_m.tar.gz by hand from http://yaroslav.ganin.net/",
    "PACS": "get it by hand from https://drive.google.com/drive/folders/0B6x7gtvErXgfUU1WcGY5SzdwZVk",
    "ImageNet": "get it from https://image-net.org, after registration",
}


def fetch(what, folder, name, urls, checksum):
    """Download one file into `folder`, trying the addresses in turn; returns its path.

    Args:
        what: name of the data set, for messages.
        folder: made if it is missing; the file is put into it only when its checksum is right.
        name: of the file there.
        urls: addresses of the same file.
        checksum: "md5:…" or "sha256:…", as published.

    Raises:
        UserError: none of the addresses has that file, or it can't be written.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    folder, failures = Path(folder), []
    with _writing(folder, name), _staging(folder) as staging:
        for url in urls:
            try:
                fetched = pooch.retrieve(
                    url,
                    known_hash=checksum,
                    fname=name,
                    path=staging,
                    downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_SECONDS),
                )
            except requests.RequestException as error:
                failures.append(f"{url} ({_reason(error)})")
            except ValueError:  # pooch: the hash does not match; its own temporary file is gone
                kind = checksum.partition(":")[0].upper()
                failures.append(f"{url} (another file than published: wrong {kind})")
            else:
                Path(fetched).replace(folder / name)
                return folder / name
    raise UserError(
        f"{what}: {name} could not be downloaded from {', '.join(failures)}; check the network, or put the "
        f"file into {shown(folder)} by hand"
    )


def fetch_folder(what, folder, name, urls, checksum, inside):
    """Download an archive and unpack it, so that `folder` holds what lies in its folder `inside`.

    `folder` must be missing or empty. It appears in one step, when everything in it is complete; links, and
    paths that lead out of the archive, are refused (model_utils/archives.py).

    Raises:
        UserError: as `fetch` does, or the archive is damaged or hostile, or holds no folder `inside`.
    """
    folder = Path(os.path.abspath(folder))
    with _writing(folder.parent, folder.name), _staging(folder.parent) as staging:
        archive = fetch(what, Path(staging, "archive"), name, urls, checksum)
        unpacked = Path(staging, "unpacked")
        unpacked.mkdir()
        archives.unpack(archive, unpacked)
        if not (unpacked / inside).is_dir():
            raise UserError(f"{what}: {name} holds no folder {inside}; get another copy by hand")
        (unpacked / inside).replace(folder)


def fetch_image_folder(path):
    """Fetch the data set that belongs into `path`, a missing or empty `dataset_path`, as its name says.

    Raises:
        UserError: the name is not that of a data set that can be fetched, or `fetch_folder` fails.
    """
    name = Path(path).name
    if name not in IMAGENETTE:
        raise UserError(
            f"dataset_path: nothing is in {shown(path)}, and download knows no data set {shown(name)!r}; it "
            f"fetches folders called {', '.join(IMAGENETTE)}. ImageNet: {ELSEWHERE['ImageNet']}"
        )
    file = f"{name}.tgz"
    fetch_folder("Imagenette", path, file, [IMAGENETTE_URL + file], f"md5:{IMAGENETTE[name]}", name)


def is_missing(path):
    """Whether there is nothing at `path`, or an empty folder."""
    return not os.path.lexists(path) or os.path.isdir(path) and not os.listdir(path)


def _staging(folder):
    """A new temporary folder in `folder`, made with its parents if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".download-", dir=folder)


@contextlib.contextmanager
def _writing(folder, name):
    """Errors of the file system as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{shown(folder)}: cannot write {name} there ({error.strerror}); choose another folder"
        ) from error


def _reason(error):
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__
