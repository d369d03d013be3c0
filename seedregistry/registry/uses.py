"""What a registry's streams tell it when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional, Type

from seedregistry import derivation
from seedregistry.common.callsite import call_site
from seedregistry.common.identities import QualifiedId
from seedregistry.ledger import codec, records

if TYPE_CHECKING:
    from seedregistry.errors import SeedRegistryWarning
    from seedregistry.registry.shared import Shared
    from seedregistry.stream import Stream


class Host:
    """Takes notice of the uses of one registry's streams.

    The streams hold it and do not see the registry. Thread-safe. Lives as long as the registry or
    one of its streams.
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
        place = device or kind
        shared = self._shared
        with shared.lock:
            shared.guard.check_use(stream, site, place)
            shared.guard.mark_use(stream, site, place)
            tagged = codec.canonical(codec.tag_id(stream.instance_id)).decode()
            shared.handouts.add(f"{self._master_seed}/{stream.purpose}", tagged, place, generator)
            names = QualifiedId.of(stream)._asdict()
            shared.ledger.append(
                records.HandedOut(**names, kind=kind, device=device, call_site=site)
            )

    def note_scope(self, stream: Stream) -> None:
        """Take notice of a scope at a stream's start; only the first is recorded.

        Raises:
            StreamReuseError: the stream was used before and ``on_reuse`` forbids it.
        """
        site = call_site()
        shared = self._shared
        with shared.lock:
            shared.guard.check_use(stream, site)
            if shared.guard.mark_scope(stream, site):
                names = QualifiedId.of(stream)._asdict()
                shared.ledger.append(records.Scoped(**names, call_site=site))

    def late_seed(self, kind: str) -> int:
        """Return and record the seed of an accelerator that started inside a scope.

        Called when the scope ends.
        """
        seed = derivation.late_seed(self._master_seed, kind)
        self._shared.ledger.append(records.LateSeeded(kind=kind, seed=seed))
        return seed

    def note_epoch(
        self, stream: Stream, epoch: int, digest: Callable[[int], Optional[str]]
    ) -> None:
        """Record the indices of an epoch that begins, once for each epoch and order.

        Args:
            stream: the loader's.
            epoch: int >= 0.
            digest: returns the digest of an epoch's indices, or None where there are too many.
        """
        indices_digest = digest(epoch)
        if indices_digest is None:
            return

        shared = self._shared
        identity = QualifiedId.of(stream)
        key = (identity, epoch, indices_digest)
        with shared.lock:
            if key not in shared.epochs:
                shared.epochs.add(key)
                shared.ledger.append(
                    records.EpochStarted(
                        **identity._asdict(), epoch=epoch, indices_digest=indices_digest
                    )
                )

    def warn(self, stream: Stream, category: Type[SeedRegistryWarning], message: str) -> None:
        """Issue a warning about a stream, and record it."""
        self._shared.guard.warn(category, message, stream.purpose, stream.instance_id)
