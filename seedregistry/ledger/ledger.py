"""The ledger: an append-only list of records, in memory and on disk."""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections import Counter
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

from seedregistry.common import digest
from seedregistry.errors import LedgerError, LedgerIntegrityError
from seedregistry.ledger import codec, records
from seedregistry.ledger.chain import FORMAT
from seedregistry.ledger.records import Record
from seedregistry.ledger.stretches import Stretch, count, join, new_origin

if TYPE_CHECKING:
    from seedregistry.common.files import PathLike
    from seedregistry.ledger import diff, tables
    from seedregistry.ledger.journal import Journal
    from seedregistry.ledger.sessions import Sessions
    from seedregistry.ledger.verification import Fault, Verification
    from seedregistry.ledger.writer import Lines

# What reads, writes, verifies, compares and exports is imported by the methods that do: a registry
# that only records needs none of it, and starts a third sooner.
_log = logging.getLogger(__name__)

_ANY: Any = object()
_CLASSES = frozenset({*codec.KINDS.values(), records.Unknown})

_R = TypeVar("_R", bound=Record)


class Ledger:
    """An append-only record of every derivation and of what was built from it.

    Lives as long as its registry, and is shared by the registry's children. Thread-safe: ``append``
    is one list append. Pickles and copies are independent ledgers with the same records. In a
    forked child a ledger goes on in memory alone, and ``part`` has what the child added.

    ``digest`` covers content alone: order, threads, processes, hosts, versions and call sites do
    not change it. What is content is in the table of records in the reference.

    Example:
        >>> from seedregistry import Ledger, SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> seed = registry.seed("model", "training")
        >>> registry.ledger
        <Ledger of 2 records, digest 15ecc88a895a>
        >>> registry.ledger.save("ledger.jsonl")
        >>> Ledger.load("ledger.jsonl").short_digest
        '15ecc88a895a'

    Attributes:
        on_merge: called with the derivations that a merge is about to take, of families that are
            here already; None, or a function that raises to refuse them.
    """

    def __init__(self) -> None:
        self._begin([], None, None)

    def _begin(
        self, stretches: List[Stretch], current: Optional[Stretch], journal: Optional[Journal]
    ) -> None:
        self._stretches = stretches
        self._lock = threading.RLock()
        self._journal = journal
        self._sessions: Optional[Sessions] = None
        self._faults: Tuple[Fault, ...] = ()
        self._is_sealed = False
        self.on_merge: Optional[Callable[[List[records.Derivation]], None]] = None
        self._start_stretch(current)
        _live.add(self)

    def _start_stretch(self, current: Optional[Stretch] = None) -> None:
        """Let the entries that come go to a stretch that begins now."""
        self._current = current if current is not None else Stretch(origin="")
        self._stretches.append(self._current)
        self._records: List[Any] = self._current.entries

    @classmethod
    def with_journal(
        cls, path: PathLike, *, durable: bool = False, run: Optional[Tuple[int, str]] = None
    ) -> Ledger:
        """Return a ledger that writes every entry to a file before ``append`` returns.

        Where the file is a journal already, the ledger has its entries and goes on after them.

        Args:
            path: of the journal; its folder must exist.
            durable: flush each entry to the disk as well, so that it survives a loss of power.
            run: master seed and scheme that a journal which goes on must have begun with.

        Raises:
            LedgerError: another process, or another ledger of this one, writes it; it belongs to
                another run; or the file system refused. The file is as it was.
            LedgerFormatError: the file is no ledger, or a saved one.
            LedgerIntegrityError: its lines do not hold together. A torn last line is cut off and
                recorded.
        """
        from seedregistry.ledger.journal import open_journal
        from seedregistry.ledger.sessions import sessions_before

        ledger = cls.__new__(cls)
        journal, stretches, current = open_journal(path, durable=durable, run=run)
        ledger._begin(list(stretches), current, journal)
        ledger._sessions = sessions_before(stretches, current.origin)
        return ledger

    # --- adding -----------------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Add a record. In a journal it is on disk when the call returns.

        Raises:
            LedgerError: not a record of a known kind, longer than a line of a ledger may be, or the
                journal could not be written; nothing was added.
            LedgerIntegrityError: it is another value of what the sessions of the journal before
                this one agree on; nothing was added.
        """
        self.extend((record,))

    def extend(self, entries: Iterable[Record]) -> None:
        """Add several records as :meth:`append` does, all of them or none.

        Raises:
            LedgerError, LedgerIntegrityError: as for :meth:`append`.
        """
        added = list(entries)
        for record in added:
            if type(record) not in _CLASSES:
                message = (
                    f"A ledger takes records of its own kinds ({', '.join(codec.KINDS)}); got "
                    f"{type(record).__name__}."
                )
                raise LedgerError(message)
            codec.refuse_long(record)

        journal = self._journal
        if journal is None or not added:
            self._records.extend(added)
            return
        bodies = [codec.encode_line(record)[0] for record in added]
        with journal.lock:
            self._refuse_changes(added, journal)
            journal.write(lambda lines: b"".join(map(lines.entry, bodies)), self._records, added)

    def _refuse_changes(self, added: Iterable[Record], journal: Journal) -> None:
        """Refuse another value of what the sessions before this one agree on.

        Raises:
            LedgerIntegrityError: says of what, with both values.
        """
        if self._sessions is None:
            return
        self._sessions.catch_up(self._records)
        for record in added:
            change = self._sessions.change(record)
            if change is not None and change.is_contradiction:
                message = (
                    f"The journal {str(journal.path)!r} is that of another run: {change.message}. "
                    "Its digest would be that of neither. Go on with the value before, or give "
                    "what has changed a journal of its own; if one run has both, give the second "
                    "another instance id, or the note another name."
                )
                raise LedgerIntegrityError(message)

    def append_later(self, make: Callable[..., Record], *args: Any) -> None:
        """Add a record that is made when the ledger is first read.

        Making a record takes longer than deriving a seed, which need not wait for it. For a journal
        it is made at once.

        Args:
            make: returns the record; a pure function, called once or, by racing readers, more
                often.
            *args: for ``make``, immutable. Texts are names that were looked at before.

        Raises:
            LedgerError, LedgerIntegrityError: as for :meth:`append`.
        """
        # One append of a list, which threads need no lock for. No record is a tuple, so whoever
        # reads the list knows what is still to be made.
        if self._journal is not None:
            self.append(make(*args))
            return
        for argument in args:
            if argument.__class__ is tuple and codec.may_be_long(argument):
                self.append(make(*args))
                return
        self._records.append((make, *args))

    # --- reading ----------------------------------------------------------------------------------

    def _name_origin(self) -> None:
        # Late: most ledgers of workers are never read. But before a fork, so that parent and child
        # know the entries which they share by one name.
        if not self._current.origin:
            self._current.origin = new_origin()

    def _snapshot(self) -> List[Stretch]:
        """Return the stretches that are not empty as they are now, with their records made."""
        with self._lock:
            self._name_origin()
            stretches = list(self._stretches)
        return [stretch.snapshot() for stretch in stretches if stretch.entries]

    def __len__(self) -> int:
        return sum([len(stretch.entries) for stretch in self._stretches])

    def __iter__(self) -> Iterator[Record]:
        for stretch in self._snapshot():
            yield from stretch.entries

    def find(
        self,
        record_type: Type[_R] = Record,  # type: ignore[assignment]
        *,
        purpose: Any = _ANY,
        instance_id: Any = _ANY,
    ) -> Tuple[_R, ...]:
        """Return the records of a class, in the order of appending.

        Those that were merged come after this ledger's.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> from seedregistry.ledger import Derivation
            >>> registry = SeedRegistry(42)
            >>> registry.reserve("model", range(300))
            >>> [record.seed for record in registry.ledger.find(Derivation, instance_id=7)]
            [2012769020]

        Args:
            record_type: a record class; all classes by default.
            purpose: only records with this purpose.
            instance_id: only records with this instance id (None finds those without one).
        """
        matches = []
        for record in self:
            if not isinstance(record, record_type):
                continue
            if purpose is not _ANY and getattr(record, "purpose", _ANY) != purpose:
                continue
            if instance_id is not _ANY:
                # By type too: 7 and "7" never are equal, and True must not find 1.
                candidate = getattr(record, "instance_id", _ANY)
                if candidate != instance_id or type(candidate) is not type(instance_id):
                    continue
            matches.append(record)
        return tuple(matches)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted canonical content: 64 hexadecimal digits."""
        return count(self._snapshot())[1]

    @property
    def short_digest(self) -> str:
        """The first 12 hexadecimal digits of :attr:`digest`, for a paper."""
        return self.digest[: digest.SHORT_LENGTH]

    # --- files ------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write the ledger to a file, which is there whole or, after an error, as it was before.

        Args:
            path: of a file in format ``seedregistry.ledger/1``; written anew if it exists.

        Raises:
            LedgerError: the file system refused, or the file is a journal that is being written,
                which replacing would cut off from its process.
            LedgerIntegrityError: the ledger was loaded from a damaged file, whose traces saving
                would remove.
        """
        from seedregistry.ledger.journal import is_being_written
        from seedregistry.ledger.writer import file_lines, write_whole

        self._refuse_damage("saved")
        if is_being_written(path):
            message = (
                f"{os.fspath(path)!r} is a journal that is being written: give the saved "
                "ledger a name of its own."
            )
            raise LedgerError(message)
        write_whole(path, file_lines(join(self._snapshot())))

    @classmethod
    def load(cls, path: PathLike) -> Ledger:
        """Read a ledger from a file that :meth:`save` or a journal wrote.

        What is damaged is left out, logged, and reported by :meth:`verify`, which is what says that
        a ledger can be trusted. A ledger with damage can be read and compared; it is neither saved
        nor merged.

        Raises:
            LedgerFormatError: no ledger, of another version of the format, or with a line longer
                than 16 MiB.
            LedgerError: it cannot be opened or read.
        """
        from seedregistry.ledger.reader import load_stretches

        loaded = load_stretches(path)
        ledger = cls.__new__(cls)
        ledger._begin(list(loaded.stretches), None, None)
        ledger._faults = tuple(loaded.checker.faults)
        ledger._is_sealed = loaded.is_sealed
        if loaded.checker.faults:
            first, count = loaded.checker.faults[0], len(loaded.checker.faults)
            more = f" and {count - 1} more; verify() has them all" if count > 1 else ""
            _log.warning("%s: %s%s", os.fspath(path), first, more)
        return ledger

    def close(self) -> None:
        """End the journal with a seal and give its file back.

        Later entries are refused. The file may be opened again with ``journal=``, and then goes on
        after the seal. A ledger without a journal is left as it is.

        Raises:
            LedgerError: the file system refused.
        """
        journal = self._journal
        if journal is None:
            return
        with self._lock, journal.lock:  # in the order in which merge takes them
            if journal.is_closed:
                return
            journal.write(lambda lines: lines.seal(len(self), self.digest), [], [self])
            journal.close()

    def verify(self) -> Verification:
        """Check that the ledger holds together. Never raises.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> registry = SeedRegistry(42)
            >>> seed = registry.seed("model", "training")
            >>> print(registry.ledger.verify())
            verified: 2 entries, 1 seed derived again, digest 15ecc88a895a, not sealed

        For a ledger that was loaded: the chain, header and seal of its file. For every ledger: each
        seed and each child's master seed derived again from master seed and scheme, no two streams
        of a family with one seed, nothing built from a stream that was never derived, no split with
        two sets of indices. All faults are collected, each with its line.
        """
        from seedregistry.ledger.verification import Checker, Verification

        checker = Checker()
        checker.faults.extend(self._faults)
        line = 1  # of the header
        stretches = self._snapshot()
        for stretch in stretches:
            line += 1  # of the stretch
            checker.begin(*stretch.place)
            for record, record_line in zip(
                stretch.entries, stretch.lines or range(line + 1, line + 1 + len(stretch.entries))
            ):
                checker.check(record, record_line)
            line += len(stretch.entries)
        checker.finish()
        return Verification(
            faults=tuple(checker.faults),
            entries=checker.entries,
            seeds=checker.seeds,
            digest=count(stretches)[1],
            is_sealed=self._is_sealed and not self._records,
        )

    # --- other ledgers ----------------------------------------------------------------------------

    def part(self) -> Ledger:
        """Return what this ledger has beyond what it was copied with, for another to ``merge``.

        A worker hands it over. Of a ledger that is no copy it is the whole. With it come the
        inherited entries without which it could not be checked: the runs, and the derivations of
        the streams that were used. The part is an independent ledger, and pickles.

        Example:
            >>> import copy
            >>> from seedregistry import SeedRegistry
            >>> registry = SeedRegistry(42)
            >>> worker = copy.deepcopy(registry)  # as in another process
            >>> seed = worker.seed("model", "training")
            >>> registry.ledger.merge(worker.ledger.part())
            <Ledger of 2 records, digest 15ecc88a895a>
        """
        from seedregistry.ledger import merging

        stretches = self._snapshot()
        added = [stretch for stretch in stretches if not stretch.is_inherited]
        given = Ledger()
        given._stretches[:0] = [
            *merging.context_of([stretch for stretch in stretches if stretch.is_inherited], added),
            *added,
        ]
        given._faults = self._faults
        return given

    def merge(self, *others: Ledger) -> Ledger:
        """Take over the entries of other ledgers that are not here yet.

        The others may come from workers, ranks and other processes, or from files. Merging one
        again changes nothing, and the order of the others does not count. All are checked before
        the first is taken.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> first, second = SeedRegistry(42), SeedRegistry(42)
            >>> seeds = first.seed("model", "training"), second.seed("noise", "training")
            >>> merged = first.ledger.merge(second.ledger)
            >>> len(merged), len(merged.merge(second.ledger))
            (4, 4)

        Args:
            *others: ledgers, such as ``part()`` of those of other processes.

        Returns:
            This ledger.

        Raises:
            LedgerError: not a ledger, or the journal could not be written; nothing was taken.
            LedgerIntegrityError: an other contradicts this one, or was loaded from a damaged file;
                nothing was taken.
            SeedCollisionError: two streams of one family would have one seed (scheme
                ``sha256-31``); nothing was taken.
        """
        from seedregistry.ledger import merging

        for other in others:
            if not isinstance(other, Ledger):
                raise LedgerError(
                    "merge takes ledgers, such as part() of a worker's; got "
                    f"{type(other).__name__}."
                )
            other._refuse_damage("merged")

        # Before our lock is taken: the others may be merging us, each waiting for the other's lock.
        given = [stretch for other in others for stretch in other._snapshot()]
        with self._lock:
            stretches = self._snapshot()
            fresh, overlaps = merging.missing(stretches, given)
            merging.refuse_contradictions(overlaps, stretches, fresh)
            families = merging.families_of([*stretches, *fresh])
            merging.refuse_collisions(stretches, fresh, families)

            if fresh and self.on_merge is not None:
                self.on_merge(merging.related_derivations(stretches, fresh, families))
            journal = self._journal
            if journal is None:
                self._stretches.extend(fresh)
            elif fresh:
                journal.write(
                    functools.partial(_block, fresh, self._current), self._stretches, fresh
                )
            if fresh:
                self._is_sealed = False
        return self

    def diff(self, other: Ledger) -> diff.LedgerDiff:
        """Compare this ledger with another one.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> first, second = SeedRegistry(42), SeedRegistry(42)
            >>> seeds = first.seed("model", "training"), second.seed("model", "training")
            >>> seed = second.seed("noise", "training")
            >>> print(first.ledger.diff(second.ledger))
            contents differ: digests 15ecc88a895a and ...
            first: noise 'training': added, seed 1881595798
            noise: 1 added (training)

        Returns:
            What differs, the first stream first, then by purpose, then in circumstance. False when
            the contents are equal.
        """
        from seedregistry.ledger import diff

        return diff.compare(self._snapshot(), other._snapshot())

    @property
    def damage(self) -> Tuple[Fault, ...]:
        """The faults of the file that this ledger was loaded from; empty for a sound one."""
        return tuple(fault for fault in self._faults if fault.is_fatal)

    def _refuse_damage(self, what: str) -> None:
        damage = self.damage
        if damage:
            message = (
                f"This ledger was loaded from a damaged file ({damage[0]}) and is not {what}, "
                "which would hide it. verify() has every fault."
            )
            raise LedgerIntegrityError(message)

    # --- for people -------------------------------------------------------------------------------

    def to_dict(self) -> Dict[str, Any]:
        """Return everything as plain data: ``format``, ``digest`` and ``records``, a dict each."""
        return {
            "format": FORMAT,
            "digest": self.digest,
            "records": [codec.encode(record) for record in self],
        }

    def to_latex(
        self, *, every_stream: bool = False, label: str = "tab:seeds", unicode: bool = False
    ) -> str:
        r"""Return a table for a paper: ``booktabs`` and, past 40 rows, ``longtable``.

        The caption states scheme, master seed and digest.

        Args:
            every_stream: a row for each stream instead of one for each purpose.
            label: of the table, for ``\ref``.
            unicode: write all characters as they are, for XeLaTeX and LuaLaTeX. Otherwise those
                that pdfLaTeX does not know without a package are written by number, as in
                ``U+6A21``.
        """
        from seedregistry.ledger import export

        return export.to_latex(self.table(every_stream=every_stream), label=label, unicode=unicode)

    def to_markdown(self, *, every_stream: bool = False) -> str:
        """Return a table in Markdown.

        Args:
            every_stream: a row for each stream instead of one for each purpose.
        """
        from seedregistry.ledger import export

        return export.to_markdown(self.table(every_stream=every_stream))

    def to_csv(self, *, every_stream: bool = False) -> str:
        """Return a table as comma-separated values (RFC 4180) with a header, lines ended by CR LF.

        A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or CR has an apostrophe before it,
        so that no spreadsheet takes it for a formula. Numbers stay numbers.

        Args:
            every_stream: a row for each stream instead of one for each purpose.
        """
        from seedregistry.ledger import export

        return export.to_csv(self.table(every_stream=every_stream))

    def statement(self) -> str:
        """Return a statement on reproducibility in words, with the facts of this ledger filled in.

        It verifies the ledger first, and claims nothing that was not checked or recorded.
        """
        from seedregistry.ledger import statement

        return statement.write(count(self._snapshot())[0], self.verify())

    def summary(self) -> Dict[str, Any]:
        """Return the main facts as a flat dict of str and int, for an experiment tracker."""
        runs = self.find(records.Run)
        kinds = Counter(codec.kind_of(record) for record in self)
        flat: Dict[str, Any] = {
            "seedregistry/digest": self.digest,
            "seedregistry/master_seed": str(runs[0].master_seed) if runs else "",
            "seedregistry/scheme": runs[0].scheme if runs else "",
        }
        flat.update((f"seedregistry/{kind}", count) for kind, count in sorted(kinds.items()))
        return flat

    def table(self, *, every_stream: bool = False) -> tables.Table:
        """Return what the exports are made of: the rows of each registry.

        Args:
            every_stream: a row for each stream instead of one for each purpose.
        """
        from seedregistry.ledger import tables

        return tables.build(self._snapshot(), every_stream=every_stream)

    def __str__(self) -> str:
        from seedregistry.ledger import tables

        return tables.to_text(self.table()) + self._warning()

    def __repr__(self) -> str:
        return f"<Ledger of {len(self)} records, digest {self.short_digest}{self._warning(', ')}>"

    def _warning(self, separator: str = "\n") -> str:
        damage = len(self.damage)
        return (
            f"{separator}LOADED FROM A DAMAGED FILE: {damage} fault{'' if damage == 1 else 's'}, "
            "see verify()"
            if damage
            else ""
        )

    # --- copies -----------------------------------------------------------------------------------

    def __copy__(self) -> Ledger:
        twin = Ledger.__new__(Ledger)
        twin.__setstate__(self.__getstate__())
        return twin

    def __getstate__(self) -> Dict[str, Any]:
        stretches = self._snapshot()
        for stretch in stretches:  # those of the copy: a snapshot has stretches of its own
            stretch.is_inherited = True
        return {"stretches": stretches, "faults": self._faults, "is_sealed": self._is_sealed}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self._begin(state["stretches"], None, None)
        self._faults = state["faults"]
        self._is_sealed = state["is_sealed"]

    def __deepcopy__(self, memo: object) -> Ledger:
        return self.__copy__()  # records are immutable

    def _after_fork(self) -> None:
        """Become a copy, in a forked child: the entries so far and the journal are the parent's."""
        # A new lock: the parent's may be held by a thread that is not here.
        self._lock = threading.RLock()
        if self._journal is not None:
            self._journal.abandon()
            self._journal = None
        for stretch in self._stretches:
            stretch.is_inherited = True
        self._start_stretch()


def _block(stretches: Sequence[Stretch], current: Stretch, lines: Lines) -> bytes:
    """Return the lines of merged stretches in a journal, and the line that goes back to its own."""
    made = []
    for stretch in stretches:
        made.append(lines.place(*stretch.place, stretch.start))
        made.extend(lines.entry(codec.encode_line(record)[0]) for record in stretch.entries)
    made.append(lines.place(*current.place, current.end))
    return b"".join(made)


_live: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _before_fork() -> None:
    for ledger in list(_live):
        ledger._name_origin()


def _after_fork_in_child() -> None:
    for ledger in list(_live):
        ledger._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
