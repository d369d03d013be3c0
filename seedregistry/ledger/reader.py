"""Reading a ledger file, line by line: what can be read, and a fault with its line for what cannot.

Nothing in a file makes this raise anything but the library's own errors, and no line makes it hold
more than ``LONGEST_LINE`` bytes: a file is data from somebody else. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from seedregistry.common.identities import QualifiedId
from seedregistry.errors import LedgerError, LedgerFormatError
from seedregistry.ledger import chain, codec, records
from seedregistry.ledger.chain import LONGEST_LINE
from seedregistry.ledger.content import Contents
from seedregistry.ledger.stretches import Place, Stretch
from seedregistry.ledger.verification import Checker, Verification

if TYPE_CHECKING:
    from seedregistry.common.files import PathLike
    from seedregistry.ledger.records import Record

_LARGEST_COUNT = 1 << 63
_PROGRESS_BYTES = 1 << 20
_VERSIONED = re.compile(r"seedregistry\.ledger/[0-9a-z.]{1,20}")

# Most lines of most ledgers: a derivation whose names need no escape. What it matches is canonical;
# what it does not match takes the long way and may be so too. At most 100 digits, so that int()
# stays quick: it takes quadratic time.
_PLAIN = rb'[^"\\\x00-\x1f\x7f-\xff]'
_DERIVATION = re.compile(
    rb'\{"circumstance":\{"call_site":"(%b*)"\},"content":\{"instance_id":(?:null|\{"s":"(%b*)"\}|\{"i":"(0|-?[1-9][0-9]{0,99})"\}),'
    rb'"master_seed":"(0|[1-9][0-9]{0,99})","purpose":"(%b*)","scheme":"(%b*)","seed":"(0|[1-9][0-9]{0,99})"\},'
    rb'"kind":"derivation"\}' % ((_PLAIN,) * 4)
)


class Reader:
    """Reads one file once. Subclasses say what is done with an entry.

    Attributes:
        checker: holds the faults; it sees the entries that a subclass gives it.
        form: ``"saved"`` or ``"journal"``, or None where the header is damaged.
        contents: of the entries so far.
        head: chain value of the last line, or None after a line that has none.
        is_sealed: the last line is a seal.
        good_size: size of the file up to the end of its last whole line, bytes.
        torn: the bytes after that, of a last line without its end.
    """

    def __init__(self, checker: Checker) -> None:
        self.checker = checker
        self.form: Optional[str] = None
        self.contents = Contents()
        self.head: Optional[bytes] = chain.START
        self.is_sealed = False
        self.good_size = 0
        self.torn = b""
        self._count = 0
        self._line = 0
        self._empty_until = -1
        self._has_origin = False
        self._place = ("", 0)
        self._serial = 0
        self._ends: Dict[Tuple[str, int], int] = {}
        self._recognised = 0
        self._other_format = ""

    # --- what subclasses do -----------------------------------------------------------------------

    def origin(self, origin: str, session: int, start: int) -> None:
        """Take notice of the place that the entries which follow come from."""

    def derivation(
        self, stream: QualifiedId, scheme: str, seed: int, site: bytes, line: int
    ) -> None:
        """Take a derivation; ``site`` is its call site as it stands in the file."""
        raise NotImplementedError

    def entry(self, record: Record, line: int) -> None:
        """Take an entry that did not come as a plain derivation."""
        raise NotImplementedError

    # --- lines ------------------------------------------------------------------------------------

    def read(self, path: PathLike, progress: Optional[Callable[[int], None]] = None) -> None:
        """Read a file to its end.

        Args:
            path: of the file.
            progress: told every megabyte or so how many bytes have been read.

        Raises:
            LedgerFormatError: no ledger, of another version of the format, or with a line past the
                limit.
            LedgerError: it cannot be opened or read.
        """
        try:
            with Path(path).open("rb") as file:
                self._read_lines(file, os.fspath(path), progress)
        except LedgerFormatError:  # a ValueError too
            raise
        except (OSError, TypeError, ValueError) as error:
            # The last two come from what is no path, or is one with a zero byte in it.
            reason = getattr(error, "strerror", None) or str(error)
            raise LedgerError(f"Could not read the ledger {str(path)!r}: {reason}.") from error

    def _read_lines(
        self, file: IO[bytes], path: str, progress: Optional[Callable[[int], None]]
    ) -> None:
        told = 0
        while True:
            # One byte more than is allowed: a longer line is seen, and never held whole.
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                break
            self._line += 1
            if len(line) > LONGEST_LINE:
                message = (
                    f"Line {self._line} of {path!r} is longer than {LONGEST_LINE} bytes: "
                    "this is not a ledger."
                )
                raise LedgerFormatError(message)
            if not line.endswith(b"\n"):  # only the last can lack it
                self.torn = line
                break
            self.good_size += len(line)
            if line == b"\n":
                self._read_empty_line()
            else:
                self._read_line(line[:-1], path)
            if progress is not None and self.good_size - told > _PROGRESS_BYTES:
                told = self.good_size
                progress(told)

        if not self._recognised:
            what = "is empty" if not self._line else "has no line of a ledger"
            raise LedgerFormatError(
                f"{path!r} {what}: expected {chain.FORMAT!r} in its first line. Was it written by "
                "save?"
            )
        if self._line == 1:  # no second line could tell another version from a flipped byte
            self._refuse_other_format(path)
        self._read_end()

    def _refuse_other_format(self, path: str) -> None:
        if self._other_format:
            message = (
                f"{path!r} has format {self._other_format!r}, which this version does not "
                f"read; it reads {chain.FORMAT!r}."
            )
            raise LedgerFormatError(message)

    def _read_end(self) -> None:
        if self.torn:
            message = (
                f"the line ends after {len(self.torn)} bytes: an entry that was being "
                "written when its process ended"
            )
            is_torn = self.form == "journal" and not _is_whole(self.torn)
            self.checker.fault(self._line, "torn" if is_torn else "line", message)
        if self.form is None:
            self.checker.fault(
                1, "header", f"the first line is not a header that names {chain.FORMAT!r}"
            )
        if self.form != "journal" and not self.is_sealed:
            self.checker.fault(
                self._line,
                "seal",
                "a saved ledger ends with a seal, and this one does not: its end is missing",
            )
        self.checker.faults.sort(key=lambda fault: fault.line)

    def _read_empty_line(self) -> None:
        """Take an empty line; of those in a row the first is the fault."""
        if self._line > self._empty_until + 1:
            self.checker.fault(
                self._line, "line", "it is empty (and so may be those right after it)"
            )
        self._empty_until = self._line
        self.head = None
        self.is_sealed = False

    def _read_line(self, line: bytes, path: str) -> None:
        """Check a whole line against the one before, and read its body."""
        try:
            value, body = chain.split(line)
        except LedgerFormatError as error:
            self.checker.fault(self._line, "line", str(error))
            self.head = None
            self.is_sealed = False
            return

        is_seal = body.endswith(b'"kind":"seal"}')
        if self.head is not None and value != (chain.link_seal if is_seal else chain.link)(
            self.head, body
        ):
            self._refuse_other_format(path)
            message = (
                "its chain value does not follow from its content and the line before: it was "
                "changed here"
            )
            self.checker.fault(self._line, "chain", message)

        was_sealed, self.is_sealed = self.is_sealed, False
        self._recognised += 1
        try:
            self._read_body(body, was_sealed=was_sealed)
        except LedgerFormatError as error:
            self.checker.fault(self._line, "line", str(error))
        # The value that is written, right or wrong: so each place that was changed is one fault,
        # and not all lines after it.
        self.head = value

    def _read_body(self, body: bytes, *, was_sealed: bool) -> None:
        """Read a line without its chain value: an entry, or what gives the file its structure."""
        if was_sealed and self.form == "saved":
            self.checker.fault(
                self._line,
                "seal",
                "a saved ledger ends with its seal, and here something follows it",
            )

        match = _DERIVATION.fullmatch(body)
        if match is not None:
            self._begin_entry()
            # The content is the body without its circumstance, which ends 3 bytes after the site.
            self.contents.add("derivation", b"{" + body[match.end(1) + 3 :])
            site, text, number, master_seed, purpose, scheme, seed = match.groups()
            instance_id = (
                text.decode() if text is not None else None if number is None else int(number)
            )
            stream = QualifiedId(int(master_seed), purpose.decode(), instance_id)
            self.derivation(stream, scheme.decode(), int(seed), site, self._line)
            return

        data = codec.parse(body)
        kind = data.get("kind") if type(data) is dict else None
        structure = {
            "header": self._read_header,
            "part": self._read_place,
            "seal": self._read_seal,
        }.get(str(kind))
        if structure is not None:
            if codec.canonical(data) != body:
                raise LedgerFormatError("not in canonical form")
            structure(data)
            return

        record = codec.decode(data)
        # Digests are over bytes: what says the same in other bytes must not pass.
        canonical, content = codec.encode_line(record)
        if canonical != body:
            raise LedgerFormatError("not in canonical form")
        self._begin_entry()
        if content is not None:
            self.contents.add(codec.kind_of(record), content)
        self.entry(record, self._line)

    def _begin_entry(self) -> None:
        if not self._has_origin:
            self.checker.fault(
                self._line, "origin", "nothing says where the entries from here on come from"
            )
            self._set_origin("0" * 16, 0, 0)
        self._count += 1
        self._serial += 1
        self._ends[self._place] = self._serial

    # --- lines that hold no entry -----------------------------------------------------------------

    def _read_header(self, data: Any) -> None:
        content = data.get("content")
        version = content.get("format") if type(content) is dict else None
        if type(version) is str and version != chain.FORMAT and _VERSIONED.fullmatch(version):
            # Another version, or a flipped byte. The next line tells: where it follows this one by
            # the rules of our version, the version was ours.
            self._other_format = version
        if self._line != 1:
            self.checker.fault(self._line, "header", "a header that is not the first line")
            return
        form = content.get("form") if type(content) is dict else None
        if (
            version != chain.FORMAT
            or form not in {"saved", "journal"}
            or data.keys() != {"content", "kind"}
            or len(content) != 2  # noqa: PLR2004 - form and format
        ):
            raise LedgerFormatError(
                f"a header names {chain.FORMAT!r} and is of form 'saved' or 'journal'"
            )
        self.form = str(form)

    def _read_place(self, data: Any) -> None:
        where = data.get("circumstance")
        if (
            type(where) is not dict
            or where.keys() != {"origin", "session", "start"}
            or len(data) != 2  # noqa: PLR2004 - itself and the kind
        ):
            raise LedgerFormatError("a part has an origin, a session and a start")
        origin, session, start = where["origin"], where["session"], where["start"]
        if type(origin) is not str or not re.fullmatch("[0-9a-f]{16}", origin):
            raise LedgerFormatError("an origin is 16 hexadecimal digits")
        for number in (session, start):
            if type(number) is not int or not 0 <= number < _LARGEST_COUNT:
                raise LedgerFormatError("a session and a start are integers from 0")
        self._set_origin(origin, session, start)

    def _set_origin(self, origin: str, session: int, start: int) -> None:
        self._has_origin = True
        place = (origin, session)
        # Two entries of one origin, session and number would be one to a merge.
        if start < self._ends.get(place, 0):
            message = (
                f"the entries from number {start} on of origin {origin}, session "
                f"{session}, stand in this file already"
            )
            self.checker.fault(self._line, "origin", message)
        self._place, self._serial = place, start
        self.contents.begin(origin, session)
        self.checker.begin(origin, session)
        self.origin(origin, session, start)

    def _read_seal(self, data: Any) -> None:
        self.is_sealed = True
        sealed = data.get("content")
        head = None if self.head is None else self.head.hex()
        expected: dict[str, Any] = {
            "count": self._count,
            "digest": self.contents.digest(),
            "head": head,
        }
        if type(sealed) is not dict or sealed.keys() != expected.keys() or len(data) != 2:  # noqa: PLR2004 - itself and the kind
            raise LedgerFormatError("a seal has a count, a digest and a head")
        for name, value in expected.items():
            if value is not None and sealed[name] != value:
                shown = str(sealed[name])[:64]
                self.checker.fault(
                    self._line,
                    "seal",
                    f"the seal says {name} {shown}, and the file up to here has {value}",
                )


def _is_whole(line: bytes) -> bool:
    """Return whether a last line holds a whole object and something after it.

    It was changed then, at its line feed for one, and not torn: a torn line lacks its own end.
    """
    try:
        _, end = json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return end < len(line.decode(errors="replace"))


class _Verifier(Reader):
    """Checks entries and keeps none."""

    def derivation(
        self, stream: QualifiedId, scheme: str, seed: int, site: bytes, line: int
    ) -> None:
        del site
        self.checker.check_derivation(stream, scheme, seed, line)

    def entry(self, record: Record, line: int) -> None:
        self.checker.check(record, line)


class _Loader(Reader):
    """Keeps entries, and checks none of them."""

    def __init__(self) -> None:
        super().__init__(Checker())
        self.stretches: List[Stretch] = []
        self._last: Dict[Place, Stretch] = {}
        self._interned: dict[Any, Any] = {}  # names that recur are kept once

    def origin(self, origin: str, session: int, start: int) -> None:
        stretch = self._last.get((origin, session))
        if stretch is None or stretch.end != start:
            stretch = Stretch(origin=origin, session=session, start=start, lines=array("L"))
            self.stretches.append(stretch)
            self._last[origin, session] = stretch
        self._take(stretch)

    def _take(self, stretch: Stretch) -> None:
        self._stretch = stretch
        self._append: Callable[[Any], None] = stretch.entries.append
        self._append_line: Callable[[int], None] = stretch.lines.append  # type: ignore[union-attr]

    def derivation(
        self, stream: QualifiedId, scheme: str, seed: int, site: bytes, line: int
    ) -> None:
        same = self._interned.setdefault
        self._append(
            records.Derivation(
                master_seed=same(stream.master_seed, stream.master_seed),
                scheme=same(scheme, scheme),
                purpose=same(stream.purpose, stream.purpose),
                instance_id=stream.instance_id,
                seed=seed,
                call_site=same(site, site.decode()),
            )
        )
        self._append_line(line)

    def entry(self, record: Record, line: int) -> None:
        self._append(record)
        self._append_line(line)


def load_stretches(path: PathLike) -> _Loader:
    """Read a file, and return its stretches and the faults of its lines.

    Raises:
        LedgerFormatError: no ledger, of another version of the format, or with a line past the
            limit.
        LedgerError: the file cannot be opened or read.
    """
    loader = _Loader()
    loader.read(path)
    return loader


def verify_file(
    path: PathLike, *, progress: Optional[Callable[[int], None]] = None
) -> Verification:
    """Verify a ledger file line by line, without loading it.

    Example:
        >>> from pathlib import Path
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import verify_file
        >>> registry = SeedRegistry(42)
        >>> seed = registry.seed("model", "training")
        >>> registry.ledger.save("ledger.jsonl")
        >>> verify_file("ledger.jsonl").ok
        True
        >>> saved = Path("ledger.jsonl").read_bytes()
        >>> size = Path("ledger.jsonl").write_bytes(saved.replace(b"1958051794", b"1958051795"))
        >>> [(fault.line, fault.code) for fault in verify_file("ledger.jsonl").faults]
        [(4, 'chain'), (4, 'seed'), (5, 'seal')]

    Args:
        path: of a file that ``Ledger.save`` or a journal wrote.
        progress: called every megabyte or so with the number of bytes that have been read.

    Returns:
        What was found in the chain, the header and the seal, in deriving every seed and every
        child's master seed again, and in looking for collisions and contradictions. Faults are
        collected, each with its line.

    Raises:
        LedgerFormatError: no ledger, of another version of the format, or with a line past the
            limit of 16 MiB.
        LedgerError: the file cannot be opened or read.
    """
    checker = Checker()
    reader = _Verifier(checker)
    reader.read(path, progress)
    checker.finish()
    return Verification(
        faults=tuple(checker.faults),
        entries=checker.entries,
        seeds=checker.seeds,
        digest=reader.contents.digest(),
        is_sealed=reader.is_sealed,
    )
