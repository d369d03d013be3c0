"""Where entries come from: origins, sessions and the stretches of a ledger.

An *origin* is one ledger object in one process, named by 64 random bits. A *session* is one life of
a journal: each time the file is opened again, its origin begins another. An entry is known for ever
by its origin, session and serial number, which is why merging a ledger twice is merging it once.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import attrs

from seedregistry.ledger import codec
from seedregistry.ledger.content import Contents

if TYPE_CHECKING:
    from seedregistry.ledger.records import Record

Place = Tuple[str, int]
"""Origin and session."""


def new_origin() -> str:
    """Return the name of a new origin: 16 hexadecimal digits from the operating system."""
    return secrets.token_hex(8)


@attrs.define(kw_only=True, eq=False)
class Stretch:
    """Entries of a ledger that come from one place, in order.

    Attributes:
        origin: 16 hexadecimal digits.
        session: int >= 0.
        start: serial number of the first entry.
        entries: the records, and tuples (function, *arguments) of those that are not made yet.
        lines: for each the number of its line in the file that it was loaded from; None where it
            was not loaded.
        is_inherited: the entries came with a copy of the ledger: who has the original has them.
    """

    origin: str
    session: int = 0
    start: int = 0
    entries: List[Any] = attrs.field(factory=list)
    lines: Optional[Sequence[int]] = None
    is_inherited: bool = False
    _made: int = attrs.field(default=0, init=False)

    @property
    def place(self) -> Place:
        """Origin and session."""
        return self.origin, self.session

    @property
    def end(self) -> int:
        """The serial number after that of the last entry."""
        return self.start + len(self.entries)

    def snapshot(self) -> Stretch:
        """Return the stretch as it is now, with all its records made.

        Entries that are added later are not in it.
        """
        entries = self.entries
        end = len(entries)  # once: another thread may be appending
        for index in range(self._made, end):
            entry = entries[index]
            # In place, so that it is made once; two racing readers make one each, of equal value.
            if type(entry) is tuple:
                entries[index] = entry[0](*entry[1:])
        self._made = max(self._made, end)
        now = attrs.evolve(self, entries=entries[:end])
        now._made = end
        return now

    def cut(self, start: int, end: int) -> Stretch:
        """Return the entries with serial numbers from ``start`` up to, not including, ``end``."""
        chosen = self.entries[start - self.start : end - self.start]
        return Stretch(origin=self.origin, session=self.session, start=start, entries=chosen)


def join(stretches: Iterable[Stretch]) -> List[Stretch]:
    """Return the stretches as a file holds them: what goes on from another is one with it."""
    whole: List[Stretch] = []
    last: Dict[Place, Stretch] = {}
    for stretch in stretches:
        before = last.get(stretch.place)
        if before is not None and before.end == stretch.start:
            before.entries.extend(stretch.entries)
        else:
            last[stretch.place] = attrs.evolve(stretch, entries=list(stretch.entries))
            whole.append(last[stretch.place])
    return whole


def entries_of(stretches: Iterable[Stretch]) -> Iterator[Record]:
    """Yield the entries of stretches, one stretch after the other."""
    for stretch in stretches:
        yield from stretch.entries


def count(stretches: Iterable[Stretch]) -> Tuple[List[Record], str]:
    """Return the records that count, and the digest of their content."""
    entries, digest = count_with_origins(stretches)
    return [record for _, record in entries], digest


def count_with_origins(stretches: Iterable[Stretch]) -> Tuple[List[Tuple[str, Record]], str]:
    """Return the records that count, each after its origin, and the digest of their content.

    What a resumed journal, or two processes, have said again does not count twice; circumstance
    always counts.
    """
    contents = Contents()
    entries = []
    for stretch in stretches:
        contents.begin(*stretch.place)
        for record in stretch.entries:
            content = codec.content(record)
            if content is None or contents.add(codec.kind_of(record), content):
                entries.append((stretch.origin, record))
    return entries, contents.digest()
