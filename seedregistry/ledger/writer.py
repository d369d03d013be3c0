"""Writing a ledger file: its lines in order, and a file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Iterator, Union

from seedregistry.errors import LedgerError
from seedregistry.ledger import chain, codec
from seedregistry.ledger.content import Contents
from seedregistry.ledger.reader import LONGEST_LINE

if TYPE_CHECKING:
    from seedregistry.ledger.parts import Part

PathLike = Union[str, "os.PathLike[str]"]

_BLOCK_BYTES = 1 << 20


class Lines:
    """Makes the lines of one file, each chained to the one before. Not thread-safe.

    Attributes:
        head: chain value of the last line: 32 bytes.
    """

    def __init__(self, head: bytes = chain.START) -> None:
        self.head = head

    def _add(self, body: bytes) -> bytes:
        value = chain.link(self.head, body)
        line = chain.join(value, body)
        if len(line) > LONGEST_LINE:
            message = (
                f"An entry of {len(line)} bytes is longer than the {LONGEST_LINE} that a line of "
                "a ledger may have. Note what identifies the data, such as its digest, instead "
                "of the data."
            )
            raise LedgerError(message)
        self.head = value
        return line

    def header(self, form: str) -> bytes:
        """Return the first line; ``form`` is ``"saved"`` or ``"journal"``."""
        return self._add(
            codec.canonical({"content": {"form": form, "format": chain.FORMAT}, "kind": "header"})
        )

    def part(self, origin: str, session: int, start: int) -> bytes:
        """Return the line that says where the entries after it come from."""
        return self._add(
            b'{"circumstance":{"origin":"%b","session":%d,"start":%d},"kind":"part"}'
            % (origin.encode(), session, start)
        )

    def entry(self, body: bytes) -> bytes:
        """Return the line of an entry.

        Raises:
            LedgerError: it would be longer than a reader takes; the chain stands where it stood.
        """
        return self._add(body)

    def seal(self, count: int, digest: str) -> bytes:
        """Return the seal over all lines before it."""
        body = codec.canonical(
            {"content": {"count": count, "digest": digest, "head": self.head.hex()}, "kind": "seal"}
        )
        self.head = chain.link_seal(self.head, body)
        return chain.join(self.head, body)


def saved_lines(parts: Iterable[Part]) -> Iterator[bytes]:
    """Yield the lines of a saved ledger: header, each part with its entries, seal."""
    lines, contents, count = Lines(), Contents(), 0
    yield lines.header("saved")
    for part in parts:
        yield lines.part(*part.place, part.start)
        contents.begin(*part.place)
        for record in part.entries:
            body, content = codec.written(record)
            if content is not None:
                contents.add(codec.kind_of(record), content)
            yield lines.entry(body)
        count += len(part.entries)
    yield lines.seal(count, contents.digest())


def storage_error(what: str, path: object, error: BaseException, state: str) -> LedgerError:
    """Return the error for a path that is none, or a file system that refuses."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return LedgerError(f"Could not {what} {str(path)!r}: {reason}. {state}")


def write_whole(path: PathLike, blocks: Iterable[bytes]) -> None:
    """Write a file so that, whatever happens, its name shows the old content or the new one, each whole.

    Written beside it under another name, flushed to the disk, and renamed.

    Raises:
        LedgerError: the file system refused; the old file is as it was, and nothing is left beside
            it.
    """
    try:
        target = Path(path).resolve()
        mode = target.stat().st_mode & 0o777 if target.exists() else None
    except (OSError, TypeError, ValueError) as error:
        raise storage_error("write", path, error, "Nothing was written.") from error
    temporary = (
        target.parent
        / f".{target.name.encode()[:100].decode(errors='ignore')}.{secrets.token_hex(8)}.tmp"
    )
    try:
        with temporary.open("xb") as file:
            if mode is not None:
                temporary.chmod(mode)
            file.writelines(_gather(blocks))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise storage_error(
                "write", path, error, "What was there before is as it was."
            ) from error
        raise


def _gather(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines in blocks of about a megabyte."""
    gathered, size = [], 0
    for line in lines:
        gathered.append(line)
        size += len(line)
        if size >= _BLOCK_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    yield b"".join(gathered)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a new name in it survives a loss of power.

    Where folders cannot be opened, nothing happens.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
