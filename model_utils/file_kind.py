"""What a file really is, by its first bytes, where its name promised something else."""

import zipfile

BEGINNINGS = (  # bytes at the start, and what such a file is
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: fetch that with git lfs pull"),
    (b"<!DOCTYPE", "a web page, not the file itself: download it anew"),
    (b"<!doctype", "a web page, not the file itself: download it anew"),
    (b"<html", "a web page, not the file itself: download it anew"),
    (b"<?xml", "a web page, not the file itself: download it anew"),
    (b"\x1f\x8b", "packed with gzip: unpack it first"),
    (b"BZh", "packed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "packed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras, MATLAB 7.3)"),
    (b"\x93NUMPY", "a NumPy file (.npy)"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
PICKLES = (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46", b"\x80\x02", b"\x80\x03", b"\x80\x04")


def known(path):
    """What the file at `path` is, in words that complete "it is …"; None if nothing is recognised.

    Never raises for what is in the file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            tar = file.seek(257) and file.read(5) == b"ustar"
    except OSError:
        return None
    if not start:
        return "empty"
    for beginning, words in BEGINNINGS:
        if start.startswith(beginning):
            return words
    if start.startswith(b"PK\x03\x04"):
        return _zip(path)
    if tar:
        return "a tar archive: unpack it first"
    if start.startswith(PICKLES):
        return "a PyTorch file or another pickle (python -m src.pth2ckpt converts HarDNet's)"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**27:
        return "a safetensors file"
    return None


def suffix(path):
    """What `known` says, as the end of a message about a file that could not be read."""
    words = known(path)
    return f" (it is {words})" if words else ""


def _zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return "a zip archive that is cut short or damaged"
    last = {name.rpartition("/")[2] for name in names}
    if any("/code/" in f"/{name}" for name in names) and "data.pkl" in last:
        return (
            "a TorchScript program, not a file of weights: torch.save(torch.jit.load(FILE).state_dict(), …)"
        )
    if "data.pkl" in last:
        return "a PyTorch file (python -m src.pth2ckpt converts HarDNet's)"
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    return "a zip archive: unpack it first"
