"""What a registry shares with its children: ledger, guard, components, and one lock."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Dict, Iterable, Optional, Set, Tuple

from seedregistry import rng
from seedregistry.common.identities import QualifiedId
from seedregistry.ledger import Ledger, records
from seedregistry.ledger.claims import Splits, claims_of
from seedregistry.registry.guard import Guard

if TYPE_CHECKING:
    from seedregistry.components.base import Component


class Shared:
    """What a registry and its children have in common. Lives as long as any of them.

    Whoever changes it holds its lock. Pickles and deep-copies without the generators that were
    handed out.

    Attributes:
        ledger: the records.
        guard: what was derived and used.
        components: by purpose.
        splits: (stream, lengths, scheme) to the digest of the split's indices.
        epochs: (stream, epoch, digest of its indices) of every epoch that was recorded.
        has_environment: whether the environment is in the ledger.
        lock: held for every change; its holder may take it again.
        handouts: the generators at their stream's start that somebody still holds.
    """

    def __init__(self, *, on_reuse: str, purposes: Optional[Iterable[str]]) -> None:
        self.ledger = Ledger()
        self.guard = Guard(self.ledger, on_reuse=on_reuse, purposes=purposes)
        self.components: Dict[str, Component] = {}
        self.splits = Splits()
        self.epochs: Set[Tuple[QualifiedId, int, str]] = set()
        self.has_environment = False
        self._make_transient()

    def keep_in(self, ledger: Ledger) -> None:
        """Record in another ledger, and claim the seeds of the streams that it already has.

        Raises:
            SeedCollisionError: two of them have one seed.
        """
        self._claim(claims_of(ledger))
        self.ledger = ledger
        self.guard.ledger = ledger
        ledger.on_merge = self._claim

    def record_environment(self, *, command_line: bool = False, paths: bool = False) -> None:
        """Put the environment of the process, as it is now, into the ledger, each time."""
        from seedregistry.common import environment

        values = records.freeze(
            environment.snapshot(command_line=command_line, paths=paths).to_dict()
        )
        with self.lock:
            self.ledger.append(records.EnvironmentSeen(values=values))  # type: ignore[arg-type]
            self.has_environment = True

    def record_environment_once(self) -> None:
        """Put the environment, without command line and paths, into the ledger, once."""
        if not self.has_environment:  # nearly always it is there, and no lock is needed to see it
            with self.lock:
                if not self.has_environment:
                    self.record_environment()

    def _make_transient(self) -> None:
        self.lock = threading.RLock()
        self.handouts = rng.Handouts()
        self.ledger.on_merge = self._claim
        _live.add(self)

    def _claim(self, derivations: Iterable[records.Derivation]) -> None:
        """Claim the seeds of streams that were derived elsewhere, or of none of them.

        Raises:
            SeedCollisionError: one of the seeds is another stream's.
        """
        with self.lock:
            self.guard.claim_all((record.seed, QualifiedId.of(record)) for record in derivations)

    def __getstate__(self) -> Dict[str, Any]:
        with self.lock:
            # Copied: another thread may change them while the copy is being pickled.
            return {
                name: value.copy() if isinstance(value, (dict, set)) else value
                for name, value in vars(self).items()
                if name not in {"lock", "handouts"}
            }

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_transient()


_live: weakref.WeakSet[Shared] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for shared in list(_live):
        shared.lock = threading.RLock()  # the parent's may be held by a thread that is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
