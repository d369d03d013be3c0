"""What a registry shares with its children, and what its streams tell it when they are used."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Optional, Set, Tuple, Type

from seedregistry import derivation, rng
from seedregistry.callsite import call_site
from seedregistry.guard import Guard
from seedregistry.ledger import Ledger, codec, records

if TYPE_CHECKING:
    from seedregistry.components.base import Component
    from seedregistry.errors import SeedRegistryWarning
    from seedregistry.stream import Stream

__all__ = ["Host", "Shared"]


class Shared:
    """What a registry and its children have in common. Lives as long as any of them; guarded by one lock.

    Pickles and deep-copies without the generators that were handed out.
    """

    def __init__(self, *, on_reuse: str, purposes: Optional[Iterable[str]]) -> None:
        self.ledger = Ledger()
        self.guard = Guard(self.ledger, on_reuse=on_reuse, purposes=purposes)
        self.components: Dict[str, Component] = {}
        self.splits: Dict[Tuple[object, ...], str] = {}
        self.epochs: Set[Tuple[object, ...]] = set()
        self.has_environment = False
        self._make_transient()

    def keep_in(self, ledger: Ledger) -> None:
        """Record in another ledger, and claim the seeds of the streams that it has already.

        Raises:
            SeedCollisionError: two of them have one seed.
        """
        refusing = {name for name, scheme in derivation.SCHEMES.items() if scheme.refuses_shared_seeds}
        for record in ledger.find(records.Derivation):
            if record.scheme in refusing:
                self.guard.claim(record.seed, (record.master_seed, record.purpose, record.instance_id))
        self.ledger = ledger
        self.guard.ledger = ledger
        ledger.on_merge = self._claim

    def _make_transient(self) -> None:
        self.lock = threading.RLock()
        self.handouts = rng.Handouts()
        self.ledger.on_merge = self._claim
        _live.add(self)

    def _claim(self, derivations: Iterable[records.Derivation]) -> None:
        """Claim the seeds of streams that other processes derived.

        Raises:
            SeedCollisionError: one of them is another stream's here; none was claimed.
        """
        with self.lock:
            self.guard.claim_all(
                (record.seed, (record.master_seed, record.purpose, record.instance_id)) for record in derivations
            )

    def __getstate__(self) -> Dict[str, Any]:
        with self.lock:
            state = {name: value for name, value in vars(self).items() if name not in {"lock", "handouts"}}
            return {name: value.copy() if isinstance(value, (dict, set)) else value for name, value in state.items()}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_transient()


_live: weakref.WeakSet[Shared] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for shared in list(_live):
        shared.lock = threading.RLock()  # the parent's may be held by a thread that is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Host:
    """Takes notice of the uses of one registry's streams: the streams hold it, and the registry stays out of their sight.

    Thread-safe. Lives as long as the registry or one of its streams.
    """

    def __init__(self, master_seed: int, shared: Shared) -> None:
        self._master_seed = master_seed
        self._shared = shared

    def note_generator(self, stream: Stream, kind: str, device: str, generator: Any) -> None:
        """Record a generator that is being handed out.

        Raises:
            StreamReuseError: the stream was used before and ``on_reuse`` forbids it.
        """
        site = call_site()
        shared = self._shared
        with shared.lock:
            shared.guard.check_use(stream, site, device or kind)
            shared.guard.mark_use(stream, site, device or kind)
            tagged = codec.canonical(codec.tag_id(stream.instance_id)).decode()
            shared.handouts.add(f"{self._master_seed}/{stream.purpose}", tagged, device or kind, generator)
            shared.ledger.append(
                records.HandedOut(
                    master_seed=self._master_seed,
                    purpose=stream.purpose,
                    instance_id=stream.instance_id,
                    kind=kind,
                    device=device,
                    call_site=site,
                )
            )

    def note_scope(self, stream: Stream) -> None:
        """Record a scope at a stream's start. Only the first is an entry in the ledger.

        Raises:
            StreamReuseError: the stream was used before and ``on_reuse`` forbids it.
        """
        site = call_site()
        shared = self._shared
        with shared.lock:
            shared.guard.check_use(stream, site)
            if shared.guard.mark_scope(stream, site):
                shared.ledger.append(
                    records.Scoped(
                        master_seed=self._master_seed,
                        purpose=stream.purpose,
                        instance_id=stream.instance_id,
                        call_site=site,
                    )
                )

    def late_seed(self, kind: str) -> int:
        """Return and record the seed of an accelerator that started inside a scope; called when the scope ends."""
        seed = derivation.late_seed(self._master_seed, kind)
        self._shared.ledger.append(records.LateSeeded(kind=kind, seed=seed))
        return seed

    def note_epoch(self, stream: Stream, epoch: int, digest: Callable[[int], Optional[str]]) -> None:
        """Record the indices of an epoch that begins, once for each epoch and order.

        Args:
            stream: the loader's.
            epoch: int >= 0.
            digest: returns the digest of an epoch's indices, or None where there are too many.
        """
        shared = self._shared
        indices_digest = digest(epoch)
        if indices_digest is None:
            return
        key = (stream.words(), epoch, indices_digest)
        with shared.lock:
            if key in shared.epochs:
                return
            shared.epochs.add(key)
            shared.ledger.append(
                records.EpochStarted(
                    master_seed=self._master_seed,
                    purpose=stream.purpose,
                    instance_id=stream.instance_id,
                    epoch=epoch,
                    indices_digest=indices_digest,
                )
            )

    def warn(self, stream: Stream, category: Type[SeedRegistryWarning], message: str) -> None:
        """Issue a warning about a stream, and record it."""
        self._shared.guard.warn(category, message, stream.purpose, stream.instance_id)
