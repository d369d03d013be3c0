"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import Callable, Iterable, Union

PathLike = Union[str, "os.PathLike[str]"]

_LONGEST_NAME = 100
_SEAL = b"seedregistry.sealed/1 "


def write_atomically(
    path: PathLike, content: Union[bytes, Iterable[bytes], Callable[[Path], object]]
) -> None:
    """Write a file whole: its name shows the old content or the new one, whatever happens.

    The content is written beside the file under a random name, flushed to the disk, and renamed;
    then the folder is flushed, so that the new name survives a loss of power too. A file that is
    replaced keeps its mode; a link is followed.

    Args:
        path: of the file; its folder must exist.
        content: bytes, blocks of bytes, or a function that writes to the path it is given.

    Raises:
        OSError: the file system refused. The old file is as it was, and nothing is left beside it.
    """
    target = Path(path).resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else None
    # Cut: with the suffix, a name of the full length would be too long for the file system.
    stem = target.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    temporary = target.parent / f".{stem}.{secrets.token_hex(8)}.tmp"

    try:
        temporary.touch(exist_ok=False)
        if mode is not None:
            temporary.chmod(mode)  # before the content: what is private is never readable
        if callable(content):
            content(temporary)
        else:
            with temporary.open("wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
        _sync_file(temporary)
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def seal(content: bytes) -> bytes:
    """Return content behind a line with its SHA-256, by which :func:`unseal` knows damage."""
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unseal(sealed: bytes) -> bytes:
    """Return what :func:`seal` was given.

    Raises:
        ValueError: it was not sealed, or a bit of it has changed since.
    """
    line, _, content = sealed.partition(b"\n")
    if not line.startswith(_SEAL):
        raise ValueError(f"it does not begin with {_SEAL.decode().strip()!r}")
    if line[len(_SEAL) :].decode("ascii", "replace") != hashlib.sha256(content).hexdigest():
        raise ValueError("its content is not what was written: the digests differ")
    return content


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what may be written to
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a new name in it survives a loss of power.

    Nothing happens where folders cannot be opened, as on Windows.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
