"""The journal: the file of a ledger while the run goes on.

Every entry is in it when the call that made it returns. One process writes a journal. A line is one
``write`` to a file opened for appending, so that a process that is killed leaves whole lines, save
perhaps the last. After an error, or an interrupt in the middle, the file is cut back to its last
whole line before the next one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from seedregistry.common.files import sync_folder
from seedregistry.errors import LedgerError, LedgerFormatError, LedgerIntegrityError
from seedregistry.ledger import chain, codec, records
from seedregistry.ledger.reader import load_stretches
from seedregistry.ledger.stretches import Stretch, entries_of, new_origin
from seedregistry.ledger.writer import Lines, storage_error

if TYPE_CHECKING:
    from types import FrameType

    from seedregistry.common.files import PathLike

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None

_SHOWN_TORN = 200


class _Pending(NamedTuple):
    """A write that may have been interrupted: it counts when the list has grown.

    Attributes:
        into: the list that takes the items.
        length: of the list before.
        head_before: chain value of the line before.
        head_after: chain value of its last line.
        size: bytes of the file after it.
    """

    into: List[Any]
    length: int
    head_before: bytes
    head_after: bytes
    size: int


class Journal:
    """An open journal. Thread-safe; belongs to the process that opened it.

    Args:
        path: of the file.
        descriptor: the file, open for reading and appending; the journal closes it.
        durable: flush every entry to the disk.
    """

    def __init__(self, path: Path, descriptor: int, *, durable: bool) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._descriptor = descriptor
        self._durable = durable
        self._writing: Optional[FrameType] = None
        self._pending: Optional[_Pending] = None
        self._lines = Lines()
        self._size = 0
        self._identity = (0, 0)

    def claim(self) -> int:
        """Lock the file for this process, and return its size in bytes.

        Raises:
            LedgerError: it is locked.
        """
        status = os.fstat(self._descriptor)
        self._identity = status.st_dev, status.st_ino
        if not stat.S_ISREG(status.st_mode):
            raise LedgerError(
                f"The journal {str(self.path)!r} is no regular file: nothing would be kept in it. "
                "Name another one."
            )
        _lock(self._descriptor, self.path)
        # Only now: before the lock was ours, another process may have been appending.
        return os.fstat(self._descriptor).st_size

    def go_on(self, head: bytes, size: int) -> None:
        """Continue after the first ``size`` bytes, whose last line has the chain value ``head``."""
        os.ftruncate(self._descriptor, size)
        self._lines = Lines(head)
        self._size = size

    def write(self, make: Callable[[Lines], bytes], into: List[Any], items: Sequence[Any]) -> None:
        """Write lines to the file and put items into a list: both, or neither.

        Whatever interrupts it, the file and the list agree when the next write begins.

        Args:
            make: returns the bytes to write, made by the ``Lines`` it is given.
            into: a list of entries, or of stretches.
            items: what goes into it, at least one.

        Raises:
            LedgerError: the journal is closed or in the middle of a write, or the file system
                refused; nothing was written.
        """
        with self.lock:
            self._require_open()
            self._require_name()
            # The frame, not a flag: an interrupt may hit the very line that would lower a flag, and
            # the journal would be refused for ever. A frame that has ended calls nobody.
            self._writing = sys._getframe()
            try:
                self._settle()
                head, length = self._lines.head, len(into)
                # Twice: making the lines moves their head, and may be interrupted as well.
                self._pending = _Pending(into, length, head, head, self._size)
                data = make(self._lines)
                self._pending = _Pending(
                    into, length, head, self._lines.head, self._size + len(data)
                )
                self._write_all(data)
                if self._durable:
                    os.fsync(self._descriptor)
                into.extend(items)  # in one step: from here on it counts
                self._settle()
            except BaseException as error:
                # Where the file cannot be cut back now, the write stays pending: the next one, or
                # the closing, tries again before it does anything else.
                with contextlib.suppress(OSError):
                    self._settle()
                if isinstance(error, OSError):
                    raise storage_error(
                        "write to the journal", self.path, error, "The entry is not recorded."
                    ) from error
                raise
            finally:
                self._writing = None

    def _require_open(self) -> None:
        if self._descriptor < 0:
            raise LedgerError(
                f"The journal {str(self.path)!r} is closed. Open it again with journal=, or take "
                "a new registry."
            )
        if self._writing is not None and _is_caller(self._writing):
            message = (
                f"The journal {str(self.path)!r} is in the middle of a write of this thread: a "
                "signal handler must not use it. Let the handler set a flag, and look at it in "
                "the main program."
            )
            raise LedgerError(message)

    def _require_name(self) -> None:
        """Refuse to write to a file that its path does not lead to any more.

        Raises:
            LedgerError: it was removed, renamed or replaced.
        """
        try:
            status = self.path.stat()
        except OSError:
            identity = None
        else:
            identity = status.st_dev, status.st_ino
        if identity != self._identity:
            what = "removed" if identity is None else "replaced"
            message = (
                f"The journal {str(self.path)!r} was {what} on the disk while it was being "
                "written, so the entry is not recorded. What was recorded before is in memory: "
                "registry.ledger.save(...) keeps it in a file of another name."
            )
            raise LedgerError(message)

    def _write_all(self, data: bytes) -> None:
        # A full disk or a signal may end a write early; the next one raises, or writes the rest.
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _settle(self) -> None:
        """Finish the last write, or take it back, by whether the list has its items.

        An interrupt may come between any two lines here, so each of them sets what it sets to a
        value that does not depend on how far an earlier call got. Settling twice is settling once.
        """
        pending = self._pending
        if pending is None:
            return

        # The list decides: it grows in one step, which a write to a file does not.
        if len(pending.into) > pending.length:
            self._size, self._lines.head = pending.size, pending.head_after
        else:
            self._lines.head = pending.head_before
            os.ftruncate(self._descriptor, self._size)
        # Last: what is interrupted before is done again as a whole.
        self._pending = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close the file and give its lock back. Closing twice is closing once."""
        with self.lock:
            if self._descriptor < 0:
                return
            self._require_open()
            self._writing = sys._getframe()
            with contextlib.suppress(OSError):
                self._settle()
            # Marked as closed first: the system gives the number to the next file that is opened,
            # and an interrupt here must not leave a journal that writes into that.
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
            self._writing = None

    def abandon(self) -> None:
        """Close the file without the lock, which a thread that a fork left behind may hold."""
        # The file's lock stays the parent's: closing a copy of a descriptor does not release it.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        self.abandon()


def _is_caller(frame: FrameType) -> bool:
    """Return whether a call is one of those that led here.

    A write is, where a signal handler that runs in the middle of it writes too.
    """
    caller: Optional[FrameType] = sys._getframe()
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame


def open_journal(
    path: PathLike, *, durable: bool, run: Optional[Tuple[int, str]] = None
) -> Tuple[Journal, Sequence[Stretch], Stretch]:
    """Open a journal: a new one, or one that goes on.

    Args:
        path: of the file; its folder must exist.
        durable: flush every entry to the disk before the call returns.
        run: master seed and scheme that a journal which goes on must have begun with.

    Returns:
        The journal, the stretches that it has already, and the empty stretch that
        entries go to from now on.

    Raises:
        LedgerError: another process, or another ledger of this one, writes it; or the file system
            refused.
        LedgerFormatError: the file is no ledger, or a saved one.
        LedgerIntegrityError: its lines do not hold together.
    """
    try:
        name = Path(path).resolve()
        descriptor = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
        )
    except (OSError, TypeError, ValueError) as error:
        raise storage_error("open the journal", path, error, "Nothing was recorded.") from error
    journal = Journal(name, descriptor, durable=durable)
    try:
        if journal.claim() == 0:
            return _begin(journal)
        return _resume(journal, run)
    except BaseException as error:
        journal.close()
        if isinstance(error, OSError):
            raise storage_error("open the journal", path, error, "Nothing was recorded.") from error
        raise


def _lock(descriptor: int, path: Path) -> None:
    if fcntl is None:  # pragma: no cover - Windows
        return
    try:
        # Of the open file, not of the process as with lockf: a second registry in this process is
        # kept out too, and closing the file elsewhere, as a reader does, gives nothing back.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        message = (
            f"The journal {str(path)!r} is being written by another process, or by another "
            "registry of this one. Give each its own file and merge them, or end the other: "
            "registry.ledger.close()."
        )
        raise LedgerError(message) from error


def is_being_written(path: PathLike) -> bool:
    """Return whether a process has this file open as its journal."""
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except (OSError, TypeError, ValueError):  # no such file, or no path: what opens it will say so
        pass
    return False


def _begin(journal: Journal) -> Tuple[Journal, Sequence[Stretch], Stretch]:
    stretch = Stretch(origin=new_origin())
    journal.write(
        lambda lines: lines.header("journal") + lines.place(*stretch.place, 0), [], [stretch]
    )
    sync_folder(journal.path.parent)  # else a loss of power could take the new name with it
    return journal, (), stretch


def _resume(
    journal: Journal, run: Optional[Tuple[int, str]]
) -> Tuple[Journal, Sequence[Stretch], Stretch]:
    path = journal.path
    try:
        loaded = load_stretches(path)
    except LedgerFormatError:
        if not _is_torn_header(path):
            raise
        journal.go_on(chain.START, 0)
        return _begin(journal)
    if loaded.form == "saved":
        message = (
            f"{str(path)!r} is a saved ledger, not a journal: it ends with its seal. Give "
            "the journal a file of its own."
        )
        raise LedgerFormatError(message)

    faults = [fault for fault in loaded.checker.faults if fault.is_fatal]
    if faults:
        more = f" and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        message = (
            f"The journal {str(path)!r} cannot go on, because it does not hold together: "
            f"{faults[0]}{more}. Keep it as evidence and begin another file."
        )
        raise LedgerIntegrityError(message)
    _refuse_other_run(path, loaded.stretches, run)

    journal.go_on(loaded.head or chain.START, loaded.good_size)
    stretch = _next_session(loaded.stretches)
    if loaded.torn:  # cut off just now: its traces are kept as an entry
        stretch.entries.append(_torn_record(loaded.torn))
    journal.write(
        lambda lines: (
            lines.place(*stretch.place, 0)
            + b"".join(lines.entry(codec.encode_line(record)[0]) for record in stretch.entries)
        ),
        [],
        [stretch],
    )
    return journal, loaded.stretches, stretch


def _refuse_other_run(
    path: Path, stretches: Sequence[Stretch], run: Optional[Tuple[int, str]]
) -> None:
    """Refuse a journal that another master seed or scheme began.

    Raises:
        LedgerError: names both.
    """
    of_first_origin = [stretch for stretch in stretches if stretch.origin == stretches[0].origin]
    began = [
        (begin.master_seed, begin.scheme)
        for begin in records.select(entries_of(of_first_origin), records.Run)
        if begin.parent is None
    ]
    if run is not None and began and began[0] != run:
        master_seed, scheme = began[0]
        message = (
            f"The journal {str(path)!r} belongs to master seed {master_seed} under {scheme!r}; "
            f"this registry has {run[0]} under {run[1]!r}. Go on with SeedRegistry({master_seed}, "
            f"scheme={scheme!r}, journal=...), or name another file."
        )
        raise LedgerError(message)


def _is_torn_header(path: Path) -> bool:
    """Return whether a file holds the beginning of a journal's first line and no more.

    The process was killed in the very first write then, and nothing was recorded.
    """
    header = Lines().header("journal")
    with path.open("rb") as file:
        return header.startswith(file.read(len(header) + 1))


def _torn_record(torn: bytes) -> records.Warned:
    shown = torn[:_SHOWN_TORN].decode(errors="replace")
    message = (
        f"An entry that was never finished, {len(torn)} bytes at the end of the journal, "
        f"was cut off: {shown}"
    )
    return records.Warned(category="TornLine", message=message)


def _next_session(stretches: Sequence[Stretch]) -> Stretch:
    """Return the empty stretch of a journal's next session.

    Its origin is that of the file's first entries: others may have been merged into the file.
    """
    if not stretches:
        return Stretch(origin=new_origin())
    origin = stretches[0].origin
    last = max(stretch.session for stretch in stretches if stretch.origin == origin)
    return Stretch(origin=origin, session=last + 1)
