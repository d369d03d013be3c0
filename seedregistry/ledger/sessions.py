"""What the sessions of a journal say of one thing, one session after the other.

A run that goes on builds its things and notes its settings again, and the digest counts them once.
With another value the digest would be that of neither run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import attrs

from seedregistry.common.identities import QualifiedId
from seedregistry.ledger import codec, records

if TYPE_CHECKING:
    from seedregistry.ledger.stretches import Stretch

Topic = Tuple[object, ...]

_SHOWN_VALUES = 3
_LONGEST_VALUE = 100


def topic_of(record: records.Record) -> Optional[Topic]:
    """Return what a build, a split or a note is about; None for other records."""
    if isinstance(record, records.Note):
        return "note", record.name
    if isinstance(record, records.Built):
        return "built", *QualifiedId.of(record)
    if isinstance(record, records.Split):
        return "split", *QualifiedId.of(record), record.lengths
    return None


@attrs.frozen(kw_only=True)
class Change:
    """A value that no session before had.

    Attributes:
        message: what it is about, with the earlier values and the new one.
        is_contradiction: the sessions before agree on one value, which this session has not said.
            Otherwise the run itself says several values, such as a setting for each trial, and this
            may be the next.
    """

    message: str
    is_contradiction: bool


class Sessions:
    """The builds, splits and notes of the sessions of one origin. Not thread-safe."""

    def __init__(self) -> None:
        self._before: Dict[Topic, Dict[bytes, records.Record]] = {}
        self._now: Dict[Topic, Dict[bytes, records.Record]] = {}
        self._count = 0

    def begin(self) -> None:
        """Let the records that come be those of another session."""
        for topic, values in self._now.items():
            # In the order in which they were said, each once.
            for content, record in values.items():
                self._before.setdefault(topic, {}).setdefault(content, record)
        self._now = {}
        self._count = 0

    def add(self, record: records.Record) -> None:
        """Take a record of this session."""
        topic = topic_of(record)
        if topic is not None:
            self._now.setdefault(topic, {})[_content(record)] = record

    def catch_up(self, entries: Sequence[records.Record]) -> None:
        """Take what is new among all records of this session."""
        # From the list that decides what is recorded, so that no interrupt leaves the two apart.
        end = len(entries)
        for record in entries[self._count : end]:
            self.add(record)
        self._count = end

    def change(self, record: records.Record) -> Optional[Change]:
        """Return what a record of this session changes; None where it repeats or is new."""
        topic = topic_of(record)
        before = None if topic is None else self._before.get(topic)
        if topic is None or before is None:
            return None

        content, now = _content(record), self._now.get(topic, {})
        # Who has said all that was said before may go on: so would a run without interruption.
        if content in before or content in now or before.keys() <= now.keys():
            return None
        return Change(
            message=_show_change(list(before.values()), record), is_contradiction=len(before) == 1
        )


def sessions_before(stretches: Iterable[Stretch], origin: str) -> Optional[Sessions]:
    """Return what an origin's sessions say; None where there was none."""
    of_origin = [stretch for stretch in stretches if stretch.origin == origin]
    if not of_origin:
        return None
    sessions = Sessions()
    for stretch in sorted(of_origin, key=lambda stretch: (stretch.session, stretch.start)):
        sessions.begin()
        for record in stretch.entries:
            sessions.add(record)
    sessions.begin()
    return sessions


def _content(record: records.Record) -> bytes:
    return codec.content(record) or b""  # builds, splits and notes are content


def _show_change(before: List[records.Record], record: Any) -> str:
    if isinstance(record, records.Note):
        values = ", ".join(_show(noted.value) for noted in records.select(before, records.Note))
        return f"note {record.name!r} is {_show(record.value)} here and {values} before"

    pairs = [
        f"{name.strip()} {_show(here)} here and {_show(there)} before"
        for name, here, there in _differences(_facts(record), _facts(before[-1]))
    ]
    more = [f"{len(pairs) - _SHOWN_VALUES} more"] if len(pairs) > _SHOWN_VALUES else []
    what = "split" if isinstance(record, records.Split) else "what was built from"
    stream = f"({record.purpose!r}, {record.instance_id!r})"
    return f"{what} {stream} has {', '.join(pairs[:_SHOWN_VALUES] + more)}"


def _facts(record: Any) -> records.Value:
    """Return what a build or a split says, as pairs."""
    if isinstance(record, records.Built):
        facts = (("factory", record.factory), ("drew", record.drew))
        return (*record.description, *facts, ("distribution", record.distribution))
    return (("indices", record.indices_digest),)


def _differences(
    first: records.Value, second: records.Value, name: str = ""
) -> Iterator[Tuple[str, records.Value, records.Value]]:
    """Yield where two values differ: the way there by the names of pairs, and both."""
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        for here, there in zip(first, second):
            if _is_pair(here) and _is_pair(there) and here[0] == there[0]:
                yield from _differences(here[1], there[1], f"{name} {here[0]}")
            else:
                yield from _differences(here, there, name)
    elif repr(first) != repr(second):  # NaN does not equal itself, and 1 equals True
        yield name, first, second


def _is_pair(value: records.Value) -> bool:
    return isinstance(value, tuple) and len(value[1:]) == 1 and isinstance(value[0], str)


def _show(value: records.Value) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
