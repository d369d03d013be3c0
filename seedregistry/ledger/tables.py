"""The ledger as a table, which is what prints and exports are made from.

It has a row for each purpose, or for each stream.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import attrs

from seedregistry.common import digest
from seedregistry.common.identities import QualifiedId
from seedregistry.ledger import records
from seedregistry.ledger.claims import schemes_of
from seedregistry.ledger.stretches import count_with_origins

if TYPE_CHECKING:
    from seedregistry.ledger.records import InstanceId
    from seedregistry.ledger.stretches import Stretch

    _Name = Tuple[str, QualifiedId]

HEADER = ("registry", "purpose", "instance", "streams", "seed", "uses", "built")
"""The columns of an export."""

_ID_WIDTH = 24
_NOTE_WIDTH = 160
_DIGEST_LENGTH = 64
_SHOWN_FACTORIES = 3


@attrs.frozen(kw_only=True)
class Row:
    """The streams of one purpose in one registry, or one of them.

    Attributes:
        purpose: the purpose.
        instance: its instance id, or the first and the last, as text.
        streams: how many.
        seed: the seed of one stream, or ``""``.
        uses: how often the streams were used from their start: generators, scopes, builds and
            splits. What is drawn at positions is not counted.
        built: what was built, in short.
    """

    purpose: str
    instance: str
    streams: int
    seed: str
    uses: int
    built: str


@attrs.frozen(kw_only=True)
class Section:
    """The rows of one registry.

    Attributes:
        name: ``""`` for the experiment's own registry, ``"fold 0"`` and the like for a child.
        master_seed: its master seed.
        scheme: its scheme.
        rows: its rows.
    """

    name: str
    master_seed: int
    scheme: str
    rows: Tuple[Row, ...]


@attrs.frozen(kw_only=True)
class Table:
    """All registries of a ledger.

    Attributes:
        sections: one for each registry, the experiment's own first.
        notes: name and value of each note, as text.
        digest: of the ledger's content, 64 hexadecimal digits.
    """

    sections: Tuple[Section, ...]
    notes: Tuple[Tuple[str, str], ...] = ()
    digest: str

    @property
    def facts(self) -> Tuple[Tuple[str, str], ...]:
        """What a caption states: master seeds, schemes and the short digest, as (name, text).

        Children are left out, since their master seeds follow from their parents'.
        """
        roots = [section for section in self.sections if not section.name] or list(
            self.sections[:1]
        )
        masters = ", ".join(dict.fromkeys(str(section.master_seed) for section in roots)) or "none"
        schemes = ", ".join(dict.fromkeys(section.scheme for section in roots)) or "none"
        return (
            ("master seed", masters),
            ("scheme", schemes),
            ("digest", self.digest[: digest.SHORT_LENGTH]),
        )

    def cells(self) -> Iterator[Tuple[str, ...]]:
        """Yield the rows of an export, as text, in the columns of :data:`HEADER`."""
        for section in self.sections:
            for row in section.rows:
                yield (
                    section.name,
                    row.purpose,
                    row.instance,
                    str(row.streams),
                    row.seed,
                    str(row.uses),
                    row.built,
                )


def show_id(instance_id: Optional[object], width: int = _ID_WIDTH) -> str:
    """Return an instance id as text that is not too wide; ``-`` for none."""
    text = "-" if instance_id is None else str(instance_id)
    return text if len(text) <= width else text[: width - 1] + "…"


def build(stretches: Sequence[Stretch], *, every_stream: bool = False) -> Table:
    """Return the table of a ledger."""
    entries, content_digest = count_with_origins(stretches)
    schemes = schemes_of(stretches)
    runs: Dict[Tuple[int, str], records.Run] = {}
    streams: Dict[Tuple[int, str], Dict[str, Dict[InstanceId, records.Derivation]]] = {}
    uses: Counter[_Name] = Counter()
    built: Dict[_Name, Counter[str]] = {}
    notes: Dict[Tuple[str, str], None] = {}
    for origin, record in entries:
        if isinstance(record, records.Derivation):
            of_registry = streams.setdefault((record.master_seed, record.scheme), {})
            of_purpose = of_registry.setdefault(record.purpose, {})
            of_purpose.setdefault(record.instance_id, record)
        elif isinstance(record, records.Note):
            notes[record.name, show_value(record.value)] = None
        elif isinstance(record, records.Run):
            runs.setdefault((record.master_seed, record.scheme), record)
        elif isinstance(record, records.USES):
            scheme = schemes.find(origin, record.master_seed)
            if scheme is None:  # of a worker, and either may be it: the first, and never both
                scheme = next((name for number, name in runs if number == record.master_seed), "")
            stream = scheme, QualifiedId.of(record)
            uses[stream] += 1
            if isinstance(record, records.Built):
                product = _show_built(record, in_full=every_stream)
                built.setdefault(stream, Counter())[product] += 1

    sections = []
    for run in sorted(runs.values(), key=lambda run: run.parent is not None):
        purposes = streams.get((run.master_seed, run.scheme), {})
        rows = [
            _row(list(group), uses, built)
            for streams_of in purposes.values()
            for group in (
                ([derived] for derived in streams_of.values())
                if every_stream
                else [streams_of.values()]
            )
        ]
        name = "" if run.parent is None else f"{run.purpose} {show_id(run.instance_id)}"
        sections.append(
            Section(name=name, master_seed=run.master_seed, scheme=run.scheme, rows=tuple(rows))
        )
    return Table(sections=tuple(sections), notes=tuple(notes), digest=content_digest)


def show_value(value: object) -> str:
    """Return a note's value as text, cut where it is long.

    Pairs are written as ``name value``, and of a digest its first digits.
    """
    if isinstance(value, tuple):
        pairs = [
            item
            for item in value
            if isinstance(item, tuple) and len(item[1:]) == 1 and isinstance(item[0], str)
        ]
        is_mapping = len(pairs) == len(value) > 0
        shown = [
            f"{item[0]} {show_value(item[1])}" if is_mapping else show_value(item) for item in value
        ]
        text = (", " if is_mapping else " ").join(shown)
    else:
        text = str(value)
        is_digest = len(text) == _DIGEST_LENGTH and set(text) <= set("0123456789abcdef")
        text = text[: digest.SHORT_LENGTH] if is_digest else text
    return text if len(text) <= _NOTE_WIDTH else f"{text[: _NOTE_WIDTH - 1]}…"


def _show_built(record: records.Built, *, in_full: bool) -> str:
    name = record.factory.rpartition(".")[2]
    if in_full:
        for key in ("digest", "order_digest"):
            value = dict(record.description).get(key)
            if isinstance(value, str):
                return f"{name} {value[: digest.SHORT_LENGTH]}"
    return name


def _row(
    group: List[records.Derivation],
    uses: Counter[_Name],
    built: Dict[_Name, Counter[str]],
) -> Row:
    first, last = group[0], group[-1]
    names: Counter[str] = Counter()
    count = 0
    for derivation in group:
        stream = derivation.scheme, QualifiedId.of(derivation)
        count += uses[stream]
        names.update(built.get(stream, {}))
    shown = [name if times == 1 else f"{times} x {name}" for name, times in names.items()]
    more = [f"{len(shown) - _SHOWN_FACTORIES} more"] if len(shown) > _SHOWN_FACTORIES else []
    is_single = len(group) == 1
    return Row(
        purpose=first.purpose,
        instance=show_id(first.instance_id)
        if is_single
        else f"{show_id(first.instance_id)} .. {show_id(last.instance_id)}",
        streams=len(group),
        seed=str(first.seed) if is_single else "",
        uses=count,
        built=", ".join(shown[:_SHOWN_FACTORIES] + more),
    )


def to_text(table: Table) -> str:
    """Return the table as plain lines, for a terminal."""
    lines = []
    for section in table.sections:
        title = f"master seed {section.master_seed}  scheme {section.scheme}"
        lines.append(f"child {section.name}  {title}" if section.name else title)
        rows = [(row.purpose, row.instance, _seeds(row)) for row in section.rows]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines.extend(f"  {p:<{widths[0]}}  {i:<{widths[1]}}  {s}" for p, i, s in rows)
    lines.extend(f"note {name}: {value}" for name, value in table.notes)
    lines.append(f"digest {table.digest[: digest.SHORT_LENGTH]}")
    return "\n".join(map(visible, lines))


def _seeds(row: Row) -> str:
    uses = f", {plural(row.uses, 'use')}" if row.uses else ""
    return (f"seed {row.seed}" if row.streams == 1 else f"{row.streams} streams") + uses


def visible(text: str) -> str:
    """Return text with escapes for what would move a terminal's cursor or end a line."""
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    )


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 stream``, ``2 streams``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def list_with_and(items: Iterable[str]) -> str:
    """Return items as in a sentence: ``a, b and c``."""
    listed = list(items)
    return (
        listed[0]
        if len(listed) == 1
        else f"{', '.join(listed[:-1])} and {listed[-1]}"
        if listed
        else "none"
    )
