"""Whether a ledger holds together.

Every seed derived again, no two streams with one seed, nothing built from nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set, Tuple

import attrs

from seedregistry import derivation
from seedregistry.errors import InvalidNameError, InvalidSeedError
from seedregistry.ledger import records

if TYPE_CHECKING:
    from seedregistry.ledger.records import InstanceId, Record

_SHOWN = 20


@attrs.frozen(kw_only=True)
class Fault:
    """Something that does not hold.

    Attributes:
        line: where: number of the line in the file, from 1; for a ledger that was not loaded, in
            the file that ``save`` would write.
        code: ``"chain"``, ``"header"``, ``"seal"``, ``"line"`` (not a line of this format),
            ``"origin"``, ``"torn"`` (the last line of a journal was never finished), ``"run"``,
            ``"seed"``, ``"stream"`` (used and never derived), ``"collision"`` or
            ``"contradiction"``.
        message: what is wrong, in words.
    """

    line: int
    code: str
    message: str

    @property
    def is_fatal(self) -> bool:
        """Whether evidence is damaged: all but an entry that was never finished."""
        return self.code != "torn"

    def __str__(self) -> str:
        return f"line {self.line}: {self.code}: {self.message}"


@attrs.frozen(kw_only=True)
class Verification:
    """What ``verify`` found. True when nothing is damaged.

    Attributes:
        faults: what does not hold, in the order of lines; a torn last line of a journal is among
            them and damages nothing.
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


Names = Tuple[int, str, Any, type]
"""A stream: master seed, purpose, instance id and its type, since 7 and "7" are two ids."""


def names_of(record: Any) -> Names:
    """Return the stream that a record is about."""
    return record.master_seed, record.purpose, record.instance_id, type(record.instance_id)


def source_of(child: Any) -> Names:
    """Return the stream that a child registry, by its run, came from."""
    return child.parent, child.purpose, child.instance_id, type(child.instance_id)


class Families:
    """Which registries belong together: each with its children."""

    def __init__(self) -> None:
        self._parents: Dict[int, int] = {}
        self._roots: Dict[int, int] = {}

    def add(self, master_seed: int, parent: int) -> None:
        """Say of a registry what its parent is."""
        self._parents.setdefault(master_seed, parent)
        self._roots.clear()

    def root(self, master_seed: int) -> int:
        """Return the master seed that the family of a registry began with."""
        root = self._roots.get(master_seed)
        if root is None:
            root, seen = master_seed, {master_seed}
            while root in self._parents and self._parents[root] not in seen:
                root = self._parents[root]
                seen.add(root)
            self._roots[master_seed] = root
        return root


class Checker:
    """Looks at the entries of one ledger in turn, then at what only the whole shows.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self.faults: List[Fault] = []
        self.entries = 0
        self.seeds = 0
        self._schemes: Dict[Tuple[int, str], int] = {}
        self._families = Families()
        self._late: List[Tuple[int, records.LateSeeded]] = []
        self._derived: Set[Names] = set()
        self._used: Dict[Names, int] = {}
        self._named: Dict[Tuple[int, str], int] = {}
        self._owners: List[Tuple[int, int, str, InstanceId, int]] = []
        self._splits: Dict[Tuple[Any, ...], str] = {}

    def fault(self, line: int, code: str, message: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(line=line, code=code, message=message))

    def check(self, record: Record, line: int) -> None:
        """Look at an entry."""
        if isinstance(record, records.Derivation):
            self.check_derivation(
                record.master_seed,
                record.scheme,
                record.purpose,
                record.instance_id,
                record.seed,
                line=line,
            )
            return
        self.entries += 1
        if isinstance(record, records.Run):
            self._check_run(record, line)
        elif isinstance(record, records.LateSeeded):
            self._late.append((line, record))
        elif isinstance(record, records.USES):
            names = names_of(record)
            self._used.setdefault(names, line)
            if isinstance(record, records.Split):
                self._check_split(record, names, line)

    def check_derivation(
        self,
        master_seed: int,
        scheme: str,
        purpose: str,
        instance_id: InstanceId,
        seed: int,
        *,
        line: int,
    ) -> None:
        """Look at a derivation: derive it again."""
        self.entries += 1
        if (master_seed, scheme) not in self._named:
            if not self._is_master_seed(master_seed, line):
                return
            self._named[master_seed, scheme] = line
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
        self._derived.add((master_seed, purpose, instance_id, type(instance_id)))
        if rule.refuses_shared_seeds:
            self._owners.append((seed, master_seed, purpose, instance_id, line))

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
        self._used.setdefault(source_of(run), line)
        if run.master_seed != expected:
            name = _show(run.purpose, run.instance_id)
            self.fault(
                line,
                "run",
                f"child {name} of {run.parent} has master seed {expected}, not {run.master_seed}",
            )
        self._families.add(run.master_seed, run.parent)

    def _check_split(self, split: records.Split, names: Names, line: int) -> None:
        earlier = self._splits.setdefault((*names, split.lengths), split.indices_digest)
        if earlier != split.indices_digest:
            name = _show(split.purpose, split.instance_id)
            message = (
                f"split {name} into {split.lengths} has indices "
                f"{split.indices_digest[:12]} here and {earlier[:12]} before"
            )
            self.fault(line, "contradiction", message)

    def finish(self) -> None:
        """Look at what only the whole ledger shows; call it once, after the last entry."""
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
        for names, line in self._used.items():
            if names not in self._derived:
                self.fault(
                    line,
                    "stream",
                    f"{_show(names[1], names[2])} of {names[0]} is used and was never derived",
                )
        self._find_collisions()
        self.faults.sort(key=lambda fault: fault.line)

    def _find_collisions(self) -> None:
        """Look for two streams of one family, a registry with its children, that have one seed."""
        owners: Dict[Tuple[int, int], Names] = {}
        for seed, master_seed, purpose, instance_id, line in self._owners:
            names = (master_seed, purpose, instance_id, type(instance_id))
            owner = owners.setdefault((self._families.root(master_seed), seed), names)
            if owner != names:
                both = f"{_show(*owner[1:3])} and {_show(purpose, instance_id)}"
                self.fault(
                    line, "collision", f"{both} have one seed, {seed}: they draw the same numbers"
                )


def _show(purpose: object, instance_id: Optional[object]) -> str:
    return repr(purpose) if instance_id is None else f"({purpose!r}, {instance_id!r})"
