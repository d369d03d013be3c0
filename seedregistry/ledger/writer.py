"""Writing a ledger file: its lines in order, and a file that is there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Iterator

from seedregistry.common.files import PathLike, write_atomically
from seedregistry.errors import LedgerError
from seedregistry.ledger import chain, codec
from seedregistry.ledger.chain import LONGEST_LINE
from seedregistry.ledger.content import Contents

if TYPE_CHECKING:
    from seedregistry.ledger.stretches import Stretch

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

    def place(self, origin: str, session: int, start: int) -> bytes:
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


def file_lines(stretches: Iterable[Stretch]) -> Iterator[bytes]:
    """Yield the lines of a saved ledger: header, each stretch with its entries, seal."""
    lines, contents, count = Lines(), Contents(), 0
    yield lines.header("saved")
    for stretch in stretches:
        yield lines.place(*stretch.place, stretch.start)
        contents.begin(*stretch.place)
        for record in stretch.entries:
            body, content = codec.encode_line(record)
            if content is not None:
                contents.add(codec.kind_of(record), content)
            yield lines.entry(body)
        count += len(stretch.entries)
    yield lines.seal(count, contents.digest())


def storage_error(what: str, path: object, error: BaseException, state: str) -> LedgerError:
    """Return the error for a path that is none, or a file system that refuses."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return LedgerError(f"Could not {what} {str(path)!r}: {reason}. {state}")


def write_whole(path: PathLike, blocks: Iterable[bytes]) -> None:
    """Write a ledger's file, which is there whole, or as it was before.

    Raises:
        LedgerError: the file system refused; the old file is as it was, and nothing is left beside
            it.
    """
    try:
        target = Path(path).resolve()
    except (OSError, TypeError, ValueError) as error:  # the last two: no path
        raise storage_error("write", path, error, "Nothing was written.") from error

    try:
        write_atomically(target, _gather(blocks))
    except OSError as error:
        state = "What was there before is as it was."
        raise storage_error("write", path, error, state) from error


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
