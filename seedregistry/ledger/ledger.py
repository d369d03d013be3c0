"""The ledger in memory: an append-only list of records, and what can be asked of it."""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type, TypeVar

from seedregistry import digest
from seedregistry.errors import LedgerError
from seedregistry.ledger import codec, records
from seedregistry.ledger.records import Record

__all__ = ["FORMAT", "Ledger"]

FORMAT = "seedregistry.ledger/1"

_ANY: Any = object()
_ID_WIDTH = 24
_CLASSES = frozenset(codec.KINDS.values())

_R = TypeVar("_R", bound=Record)


class Ledger:
    """An append-only record of every derivation and of what was built from it.

    Lives as long as its registry, and is shared by the registry's children. Thread-safe: ``append`` is one list append.
    Pickles and copies are independent ledgers with the same records.

    ``digest`` covers content alone, as a multiset: order, threads, hosts, versions and call sites do not change it.
    """

    def __init__(self) -> None:
        self._records: List[Any] = []
        self._settled = 0

    def append(self, record: Record) -> None:
        """Add a record.

        Raises:
            LedgerError: not a record of a known kind.
        """
        if type(record) not in _CLASSES:
            message = f"A ledger takes records of its own kinds ({', '.join(codec.KINDS)}); got {type(record).__name__}."
            raise LedgerError(message)
        self._records.append(record)

    def append_later(self, make: Callable[..., Record], *args: Any) -> None:
        """Add a record that is made when the ledger is first read: building is not held up by writing it down.

        Args:
            make: returns the record; a pure function, called once or, by racing readers, more often.
            *args: for ``make``, immutable.
        """
        self._records.append((make, *args))

    def _settle(self) -> List[Record]:
        """Make the records that were left for later, and return all of them."""
        entries = self._records
        end = len(entries)
        for index in range(self._settled, end):
            entry = entries[index]
            if type(entry) is tuple:
                entries[index] = entry[0](*entry[1:])
        self._settled = max(self._settled, end)
        return entries[:end]

    def __len__(self) -> int:
        return len(self._records)

    def __copy__(self) -> Ledger:
        twin = Ledger()
        twin._records = self._settle()
        return twin

    def __getstate__(self) -> List[Record]:
        return self._settle()

    def __setstate__(self, state: List[Record]) -> None:
        self._records = state
        self._settled = len(state)

    def __deepcopy__(self, memo: object) -> Ledger:
        return self.__copy__()  # records are immutable

    def __iter__(self) -> Iterator[Record]:
        return iter(self._settle())

    def find(
        self,
        record_type: Type[_R] = Record,  # type: ignore[assignment]
        *,
        purpose: Any = _ANY,
        instance_id: Any = _ANY,
    ) -> Tuple[_R, ...]:
        """Return the records of a class, in the order of appending.

        Args:
            record_type: a record class; all classes by default.
            purpose: only records with this purpose.
            instance_id: only records with this instance id (None finds those without one).
        """
        found = []
        for record in self._settle():
            if not isinstance(record, record_type):
                continue
            if purpose is not _ANY and getattr(record, "purpose", _ANY) != purpose:
                continue
            if instance_id is not _ANY:
                own = getattr(record, "instance_id", _ANY)
                if own != instance_id or type(own) is not type(instance_id):
                    continue
            found.append(record)
        return tuple(found)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted canonical content: 64 hexadecimal digits."""
        contents = (codec.content(record) for record in self._settle())
        return digest.digest_sorted(f"{FORMAT}/content", (part for part in contents if part is not None))

    @property
    def short_digest(self) -> str:
        """The first 12 hexadecimal digits of :attr:`digest`, for a paper."""
        return self.digest[: digest.SHORT_LENGTH]

    def to_dict(self) -> Dict[str, Any]:
        """Return everything as plain data: format, digest and one dict a record, in the order of appending."""
        return {
            "format": FORMAT,
            "digest": self.digest,
            "records": [codec.encode(record) for record in self._settle()],
        }

    def summary(self) -> Dict[str, Any]:
        """Return the main facts as a flat dict of str and int, for an experiment tracker."""
        runs = self.find(records.Run)
        kinds = Counter(codec.kind_of(record) for record in self._settle())
        flat: Dict[str, Any] = {
            "seedregistry/digest": self.digest,
            "seedregistry/master_seed": str(runs[0].master_seed) if runs else "",
            "seedregistry/scheme": runs[0].scheme if runs else "",
        }
        flat.update((f"seedregistry/{kind}", count) for kind, count in sorted(kinds.items()))
        return flat

    def _purpose_lines(self, master_seed: int) -> Iterator[Tuple[str, str, str]]:
        streams: Dict[str, List[records.Derivation]] = {}
        for derivation in self.find(records.Derivation):
            if derivation.master_seed == master_seed:
                streams.setdefault(derivation.purpose, []).append(derivation)
        uses = Counter(
            record.purpose
            for record in self._settle()
            if isinstance(record, (records.Built, records.HandedOut, records.Split, records.Scoped))
            and record.master_seed == master_seed
        )
        for purpose, found in streams.items():
            first, last = found[0], found[-1]
            if len(found) == 1:
                ids = _show_id(first.instance_id)
                seeds = f"seed {first.seed}"
            else:
                ids = f"{_show_id(first.instance_id)} .. {_show_id(last.instance_id)}"
                seeds = f"{len(found)} streams"
            count = uses[purpose]  # of the stream's start; positions are not counted
            counted = f", {count} use{'' if count == 1 else 's'}" if count else ""
            yield purpose, ids, seeds + counted

    def __str__(self) -> str:
        lines = []
        for run in self.find(records.Run):
            title = f"master seed {run.master_seed}  scheme {run.scheme}"
            if run.parent is not None:
                title = f"child {run.purpose} {_show_id(run.instance_id)}  {title}"
            lines.append(title)
            rows = list(self._purpose_lines(run.master_seed))
            widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
            lines.extend(f"  {p:<{widths[0]}}  {i:<{widths[1]}}  {s}" for p, i, s in rows)
        lines.append(f"digest {self.short_digest}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Ledger of {len(self)} records, digest {self.short_digest}>"


def _show_id(instance_id: Optional[object]) -> str:
    text = "-" if instance_id is None else str(instance_id)
    return text if len(text) <= _ID_WIDTH else text[: _ID_WIDTH - 1] + "…"
