"""Whether a ledger holds together.

Every seed is derived again, no two streams have one seed, and nothing is built from nowhere.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, DefaultDict, Dict, List, Optional, Set, Tuple

import attrs

from seedregistry import derivation
from seedregistry.common.identities import QualifiedId
from seedregistry.errors import InvalidNameError, InvalidSeedError
from seedregistry.ledger import records
from seedregistry.ledger.claims import Families, Owners, Schemes, Splits
from seedregistry.ledger.sessions import Sessions

if TYPE_CHECKING:
    from seedregistry.ledger.records import InstanceId, Record

_SHOWN = 20


@attrs.frozen(kw_only=True)
class Fault:
    """Something that does not hold.

    Example:
        >>> from seedregistry import Ledger
        >>> from seedregistry.ledger import Scoped
        >>> ledger = Ledger()
        >>> ledger.append(Scoped(master_seed=42, purpose="dropout", instance_id=None))
        >>> [fault] = ledger.verify().faults
        >>> str(fault)
        "line 3: stream: 'dropout' of 42 is used and was never derived"
        >>> fault.is_fatal
        True

    Attributes:
        line: number of the line in the file, from 1; for a ledger that was not loaded, in the file
            that ``save`` would write.
        code: ``"chain"``, ``"header"``, ``"seal"``, ``"line"`` (not a line of this format),
            ``"origin"``, ``"torn"`` (the last line of a journal was never finished), ``"run"``,
            ``"seed"``, ``"stream"`` (used and never derived), ``"collision"``,
            ``"contradiction"`` or ``"changed"`` (a journal went on with one more value of
            something that had several).
        message: what is wrong, in words.
    """

    line: int
    code: str
    message: str

    @property
    def is_fatal(self) -> bool:
        """Whether evidence is damaged: by all but an unfinished entry or one more value."""
        return self.code not in {"torn", "changed"}

    def __str__(self) -> str:
        return f"line {self.line}: {self.code}: {self.message}"


@attrs.frozen(kw_only=True)
class Verification:
    """What :meth:`Ledger.verify` or :func:`verify_file` reports. True when nothing is damaged.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> seed = registry.seed("model", "training")
        >>> verification = registry.ledger.verify()
        >>> bool(verification), verification.faults
        (True, ())
        >>> print(verification)
        verified: 2 entries, 1 seed derived again, digest 15ecc88a895a, not sealed

    Attributes:
        faults: what does not hold, in the order of lines. A torn last line of a journal and a
            changed value are among them and damage nothing.
        entries: number of entries looked at.
        seeds: number of seeds and master seeds of children that were derived again.
        digest: digest of the content, 64 hexadecimal digits.
        is_sealed: the file ends with a seal, so that entries lost from its end would be seen. A
            journal that is not closed has none: compare its digest with one that was printed.
    """

    faults: Tuple[Fault, ...]
    entries: int
    seeds: int
    digest: str
    is_sealed: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not any(fault.is_fatal for fault in self.faults)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        verdict = "verified" if self.ok else "NOT VERIFIED"
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        counts = f"{entries}, {seeds} derived again, digest {self.digest[:12]}"
        shown = [f"{verdict}: {counts}{'' if self.is_sealed else ', not sealed'}"]
        shown += [str(fault) for fault in self.faults[:_SHOWN]]
        if len(self.faults) > _SHOWN:
            shown.append(f"and {len(self.faults) - _SHOWN} more faults")
        return "\n".join(shown)


class Checker:
    """Looks at the entries of one ledger in turn, then at what only the whole shows.

    Not thread-safe.

    Attributes:
        faults: what does not hold so far.
        entries: number of entries looked at.
        seeds: number of seeds derived again.
    """

    def __init__(self) -> None:
        self.faults: List[Fault] = []
        self.entries = 0
        self.seeds = 0
        self._schemes: Dict[Tuple[int, str], int] = {}
        self._families = Families()
        self._late: List[Tuple[int, records.LateSeeded]] = []
        # What is kept of each derivation is a plain tuple, equal to its QualifiedId: the garbage
        # collector stops looking at tuples of plain values, and never at a million of the others.
        self._derived: Set[Tuple[int, str, InstanceId]] = set()
        self._used: Dict[QualifiedId, int] = {}
        self._named: Dict[Tuple[int, str], int] = {}
        self._claims: List[Tuple[int, Tuple[int, str, InstanceId], int]] = []
        self._scheme_at = Schemes()
        self._splits: List[Tuple[str, int, records.Split]] = []
        self._origins: Dict[str, Dict[int, List[Tuple[int, Record]]]] = {}
        self.begin("0", 0)

    def begin(self, origin: str, session: int) -> None:
        """Say where the entries that are looked at next come from."""
        self._origin = origin
        self._said = self._origins.setdefault(origin, {}).setdefault(session, [])
        self._named_here: Set[Tuple[int, str]] = set()

    def fault(self, line: int, code: str, message: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(line=line, code=code, message=message))

    def check(self, record: Record, line: int) -> None:
        """Look at an entry."""
        if isinstance(record, records.Derivation):
            self.check_derivation(QualifiedId.of(record), record.scheme, record.seed, line)
            return
        self.entries += 1
        if isinstance(record, records.Run):
            self._check_run(record, line)
        elif isinstance(record, records.LateSeeded):
            self._late.append((line, record))
        elif isinstance(record, records.Note):
            self._said.append((line, record))
        elif isinstance(record, records.FROM_STREAMS):
            stream = QualifiedId.of(record)
            self._used.setdefault(stream, line)
            if isinstance(record, records.Built):
                self._said.append((line, record))
            elif isinstance(record, records.Split):
                self._splits.append((self._origin, line, record))

    def check_derivation(self, stream: QualifiedId, scheme: str, seed: int, line: int) -> None:
        """Look at a derivation: derive it again."""
        self.entries += 1
        master_seed, purpose, instance_id = stream
        # Once for each registry, not once for each stream: a ledger may have millions of streams.
        if (master_seed, scheme) not in self._named_here:
            if not self._is_master_seed(master_seed, line):
                return
            self._named_here.add((master_seed, scheme))
            self._named.setdefault((master_seed, scheme), line)
            self._scheme_at.add(self._origin, master_seed, scheme)
        rule = derivation.SCHEMES.get(scheme)
        if rule is None:
            self.fault(
                line,
                "seed",
                f"scheme {scheme!r} is unknown to this version: its seed cannot be derived again",
            )
            return
        try:
            expected = rule.derive(master_seed, derivation.validate_purpose(purpose), instance_id)
        except InvalidNameError as error:
            self.fault(line, "seed", str(error))
            return
        self.seeds += 1
        if seed != expected:
            name = _show(purpose, instance_id)
            self.fault(
                line,
                "seed",
                (
                    f"{name} has seed {expected} under {scheme} and master seed {master_seed}, not "
                    f"{seed}"
                ),
            )
        identity = (master_seed, purpose, instance_id)
        self._derived.add(identity)
        if rule.refuses_shared_seeds:
            self._claims.append((seed, identity, line))

    def _is_master_seed(self, master_seed: int, line: int) -> bool:
        try:
            derivation.validate_master_seed(master_seed)
        except InvalidSeedError as error:
            self.fault(line, "run", str(error))
            return False
        return True

    def _check_run(self, run: records.Run, line: int) -> None:
        if not self._is_master_seed(run.master_seed, line):
            return
        self._schemes.setdefault((run.master_seed, run.scheme), line)
        self._scheme_at.add(self._origin, run.master_seed, run.scheme)
        if run.scheme not in derivation.SCHEMES:
            self.fault(line, "run", f"scheme {run.scheme!r} is unknown to this version")
        if run.parent is None:
            return
        if run.purpose is None or not self._is_master_seed(run.parent, line):
            self.fault(line, "run", "a child names its parent and the stream it came from")
            return
        try:
            key = derivation.stream_key(
                run.parent, derivation.validate_purpose(run.purpose), run.instance_id
            )
        except InvalidNameError as error:
            self.fault(line, "run", str(error))
            return
        self.seeds += 1
        expected = derivation.child_master_seed(key)
        self._used.setdefault(QualifiedId(run.parent, run.purpose, run.instance_id), line)
        if run.master_seed != expected:
            name = _show(run.purpose, run.instance_id)
            self.fault(
                line,
                "run",
                f"child {name} of {run.parent} has master seed {expected}, not {run.master_seed}",
            )
        self._families.add(run.master_seed, run.parent)

    def _check_splits(self) -> None:
        """Look for a split of one stream, under one scheme, that has two sets of indices."""
        splits = Splits()
        for origin, line, split in self._splits:
            scheme = self._scheme_at.find(origin, split.master_seed)
            earlier = splits.claim_split(scheme, split)
            if earlier is not None:
                name = _show(split.purpose, split.instance_id)
                message = (
                    f"split {name} into {split.lengths} has indices "
                    f"{split.indices_digest[:12]} here and {earlier[:12]} before"
                )
                self.fault(line, "contradiction", message)

    def finish(self) -> None:
        """Look at what only the whole ledger shows; call it once, after the last entry."""
        # Merged entries may stand before the run or the derivation that they belong to.
        masters = {master_seed for master_seed, _ in self._schemes}
        for (master_seed, scheme), line in self._named.items():
            if (master_seed, scheme) not in self._schemes:
                message = (
                    f"a stream of master seed {master_seed} under {scheme}, of which no "
                    "run is recorded"
                )
                self.fault(line, "run", message)

        for line, late in self._late:
            self.seeds += 1
            if late.seed not in {
                derivation.late_seed(master_seed, late.kind) for master_seed in masters
            }:
                self.fault(
                    line,
                    "seed",
                    f"the late seed of {late.kind} comes from no master seed of this ledger",
                )

        for stream, line in self._used.items():
            if stream not in self._derived:
                name = _show(*stream.stream_id)
                message = f"{name} of {stream.master_seed} is used and was never derived"
                self.fault(line, "stream", message)
        self._check_splits()
        self._find_collisions()
        self._find_changes()
        self.faults.sort(key=lambda fault: fault.line)

    def _find_collisions(self) -> None:
        """Look for two streams of one family, a registry with its children, that have one seed."""
        owners: DefaultDict[int, Owners] = defaultdict(Owners)  # by family
        for seed, stream, line in self._claims:
            owner = owners[self._families.root(stream[0])].claim(seed, stream)
            if owner is not None:
                both = f"{_show(*owner[1:])} and {_show(*stream[1:])}"
                self.fault(
                    line, "collision", f"{both} have one seed, {seed}: they draw the same numbers"
                )

    def _find_changes(self) -> None:
        """Look for builds and notes to which a later session of a journal gives another value."""
        for said in self._origins.values():
            if len(said) == 1:
                continue
            sessions = Sessions()
            for session in sorted(said):
                sessions.begin()
                for line, record in said[session]:
                    change = sessions.change(record)
                    if change is not None:
                        code = "contradiction" if change.is_contradiction else "changed"
                        self.fault(line, code, change.message)
                    sessions.add(record)


def _show(purpose: object, instance_id: Optional[object]) -> str:
    return repr(purpose) if instance_id is None else f"({purpose!r}, {instance_id!r})"
