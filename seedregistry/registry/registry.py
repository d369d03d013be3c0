"""The registry: the one object of an experiment that owns the master seed.

Here the generators (derivation, streams, scopes, components) and the ledger meet: everything that
is derived or built goes through the registry and is recorded.
"""

from __future__ import annotations

import datetime as dt
import logging
import secrets
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from seedregistry import derivation, rng
from seedregistry.common import ranks
from seedregistry.common.callsite import call_site
from seedregistry.common.identities import QualifiedId, StreamId
from seedregistry.components.dataloader import DataLoaderComponent
from seedregistry.components.model import ModelComponent
from seedregistry.components.optimizer import OptimizerComponent
from seedregistry.components.scheduler import SchedulerComponent
from seedregistry.errors import (
    InvalidOptionError,
    LedgerError,
    LedgerIntegrityError,
)
from seedregistry.ledger import Ledger, codec, records
from seedregistry.registry.builders import Builders
from seedregistry.registry.shared import Shared
from seedregistry.registry.uses import Host
from seedregistry.stream import Stream

if TYPE_CHECKING:
    import os
    import random

    import numpy as np
    import torch
    from torch.utils.data import Subset

    from seedregistry import audit
    from seedregistry.derivation import InstanceId
    from seedregistry.registry.global_state import GlobalState

_log = logging.getLogger(__name__)

_LONG_NAME = 1 << 20
_LONGEST_SITE = 4096

_ID_TYPES = frozenset({str, int, type(None)})


class SeedRegistry(Builders):
    """Owns the master seed of an experiment; derives, hands out, builds and records.

    Every random decision is a pure function of (master seed, purpose, instance, position): the
    order in which things are asked for, added or left out changes nothing for the others.

    Lifetime: one object for an experiment; pass it on. Thread-safe. It pickles and deep-copies into
    an independent registry with the same seeds, components and records; only the generators that
    were handed out stay with the original. Equal names give equal numbers in every process.

    It counts, lists and contains the streams that were derived: ``len(registry)``, iteration over
    (purpose, instance id) in the order of derivation, ``("model", 7) in registry``.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> model = registry.model(torch.nn.Linear, 3, 2, instance_id="training")
        >>> registry.seed("model", "training")
        1958051794
        >>> ("model", "training") in registry
        True

    Args:
        master_seed: int or ``numpy.integer``, ``0 <= master_seed < 2**128``. None draws 128 bits
            from the operating system, records them and logs the line to paste.
        scheme: ``"sha256-31"`` (the documented seeds) or ``"sha256-256"`` (no collisions,
            full-width generators).
        journal: path of a file in which every entry of the ledger is when the call that made it
            returns. A file that is there goes on, and must be a journal of the same master seed and
            scheme. Of several ranks, those above 0 write to a file with their rank before the
            suffix: ``ledger.rank1.jsonl``.
        durable: flush each entry of the journal to the disk, so that it survives a loss of power as
            well as a kill.
        on_reuse: ``"auto"`` (a stream used twice is sharing with an instance id and a warning
            without one; two generators from one line are a warning), ``"allow"``, ``"warn"`` (every
            second use) or ``"forbid"`` (an error).
        purposes: the closed set of purposes; None leaves it open.

    Attributes:
        master_seed: int.
        scheme: name of the scheme.
        ledger: the :class:`~seedregistry.Ledger`, shared with the children.

    Raises:
        InvalidSeedError: the master seed is not such an integer.
        InvalidOptionError: another argument is not one of its values.
        LedgerError: the journal is written by somebody else, belongs to another registry, or the
            file system refused.
        LedgerFormatError: the journal's file is no ledger.
        LedgerIntegrityError: the journal's file does not hold together.
    """

    def __init__(
        self,
        master_seed: Optional[int] = None,
        *,
        scheme: str = derivation.DEFAULT_SCHEME,
        journal: Union[str, os.PathLike[str], None] = None,
        durable: bool = False,
        on_reuse: str = "auto",
        purposes: Optional[Iterable[str]] = None,
    ) -> None:
        is_drawn = master_seed is None
        number = (
            secrets.randbits(derivation.MASTER_SEED_BITS)
            if is_drawn
            else derivation.validate_master_seed(master_seed)
        )
        rule = derivation.find_scheme(scheme)
        shared = Shared(on_reuse=on_reuse, purposes=purposes)
        if journal is not None:  # last: nothing is written for a registry that is refused
            path = ranks.path_of_rank(journal)
            shared.keep_in(Ledger.with_journal(path, durable=durable, run=(number, rule.name)))

        for component in (
            ModelComponent(),
            OptimizerComponent(),
            SchedulerComponent(),
            DataLoaderComponent(),
        ):
            shared.components[component.purpose] = component
        self._begin(number, rule, shared)
        shared.ledger.append(
            records.Run(master_seed=number, scheme=rule.name, began=_now(), call_site=call_site())
        )
        if is_drawn:
            _log.info(
                "No master seed was given; drew one. To repeat this run: SeedRegistry(%d)", number
            )

    def _begin(self, master_seed: int, scheme: derivation.Scheme, shared: Shared) -> None:
        self._master_seed = master_seed
        self._scheme = scheme
        self._shared = shared
        self._host = Host(master_seed, shared)
        # By plain pairs, which the StreamId equals and which are made in a tenth of its time.
        self._seeds: Dict[Tuple[str, InstanceId], int] = {}
        self._streams: Dict[Tuple[str, InstanceId], Stream] = {}
        self._children: Dict[Tuple[str, InstanceId], SeedRegistry] = {}
        self._unsettled: Optional[Tuple[str, InstanceId, int]] = None

    # --- what it is -------------------------------------------------------------------------------

    @property
    def master_seed(self) -> int:
        """The one integer that the experiment starts from."""
        return self._master_seed

    @property
    def scheme(self) -> str:
        """The name of the rule from names to seeds."""
        return self._scheme.name

    @property
    def ledger(self) -> Ledger:
        """The record of every derivation and of what was built; shared with the children."""
        return self._shared.ledger

    def __contains__(self, names: object) -> bool:
        if not isinstance(names, tuple) or len(names) != 2:  # noqa: PLR2004 - a pair
            return False
        # The type of the id first: True and 1.0 would find the entry of 1, and a list has no hash.
        if not isinstance(names[0], str) or type(names[1]) not in _ID_TYPES:
            return False
        return names in self._seeds

    def __len__(self) -> int:
        return len(self._seeds)

    def __iter__(self) -> Iterator[Tuple[str, Any]]:
        return ((purpose, instance_id) for purpose, instance_id in tuple(self._seeds))

    def __repr__(self) -> str:
        counts = [_show_count(len(self), "stream")]
        if self._children:
            counts.append(_show_count(len(self._children), "child", "children"))
        counts.append(_show_count(len(self.ledger), "record"))
        return f"<SeedRegistry {self._master_seed}, {self.scheme}: {', '.join(counts)}>"

    # --- derivation -------------------------------------------------------------------------------

    def seed(self, purpose: str, instance_id: InstanceId = None) -> int:
        """Return the component seed of (purpose, instance id): int, ``0 <= seed < 2**31``.

        Derived and recorded once, then looked up.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> SeedRegistry(42).seed("model", "training")
            1958051794

        Args:
            purpose: what the randomness is for.
            instance_id: which one of several: None, an int or a str; ``7`` and ``"7"`` are two.

        Raises:
            InvalidNameError: a name is of another type, empty or not encodable.
            SeedCollisionError: another stream of this registry or its relatives has the seed
                (scheme ``sha256-31``).
            UnknownPurposeError: the set of purposes is closed and this one is not in it.
        """
        # The type is looked at before the map, in which True and 1.0 would find the entry of 1.
        if instance_id.__class__ in _ID_TYPES and purpose.__class__ is str:
            seed = self._seeds.get((purpose, instance_id))
            if seed is not None:
                return seed
        return self._derive(purpose, instance_id)

    def _derive(self, purpose: object, instance_id: object) -> int:
        name = derivation.validate_purpose(purpose)
        identity = derivation.validate_instance_id(instance_id)
        shared, scheme = self._shared, self._scheme
        with shared.lock:
            if self._unsettled is not None:
                self._settle(*self._unsettled)
            # Plain tuples, which equal StreamId and QualifiedId: making those would be a third of
            # the time of a first derivation.
            seed = self._seeds.get((name, identity))
            if seed is not None:
                return seed
            self._refuse_long(name, identity)
            shared.guard.check_purpose(name, shared.components)
            seed = scheme.derive(self._master_seed, name, identity)
            if scheme.refuses_shared_seeds:
                shared.guard.claim(seed, (self._master_seed, name, identity))
            self._add(name, identity, seed, call_site(1))  # seed() is the caller
        return seed

    def _refuse_long(self, purpose: str, instance_id: InstanceId) -> None:
        """Refuse names that are longer than a line of the ledger may be, before they are derived.

        Raises:
            LedgerError: says how long.
        """
        if len(purpose) < _LONG_NAME and not (
            instance_id.__class__ is str and len(instance_id) >= _LONG_NAME  # type: ignore[arg-type]
        ):
            return
        # With room for a seed and a call site, which are looked up later.
        site = " " * _LONGEST_SITE
        names = self._master_seed, self._scheme.name, purpose, instance_id
        codec.refuse_long(_make_record(*names, 0, site))

    def _add(self, purpose: str, instance_id: InstanceId, seed: int, site: str) -> None:
        """Record a derivation and keep its seed; the lock is held and the seed is claimed."""
        # Ctrl-C may come between the record and the map. The next derivation looks which it was:
        # one that is recorded twice, or not at all, would change the digest.
        self._unsettled = purpose, instance_id, seed
        scheme = self._scheme.name
        self._shared.ledger.append_later(
            _make_record, self._master_seed, scheme, purpose, instance_id, seed, site
        )
        self._seeds[purpose, instance_id] = seed
        self._unsettled = None
        if _log.isEnabledFor(logging.DEBUG):
            extra = {
                "master_seed": self._master_seed,
                "purpose": purpose,
                "instance_id": instance_id,
                "component_seed": seed,
            }
            _log.debug("derived %s/%s: %d", purpose, instance_id, seed, extra=extra)

    def _settle(self, purpose: str, instance_id: InstanceId, seed: int) -> None:
        """Keep the seed of a derivation that was interrupted, if it had been recorded."""
        stream = (self._master_seed, purpose, instance_id)
        derivations = self._shared.ledger.find(records.Derivation)
        if any(QualifiedId.of(entry) == stream for entry in derivations):
            self._seeds[purpose, instance_id] = seed
        self._unsettled = None

    def reserve(self, purpose: str, instance_ids: Iterable[InstanceId]) -> None:
        """Derive the streams of many instances now: a collision is refused before any is used.

        All or nothing. Deriving is no use of a stream.

        Args:
            purpose: what the randomness is for.
            instance_ids: the ids; a str is refused, as it would be taken apart into letters.

        Raises:
            InvalidNameError: a name is not of an accepted type.
            InvalidOptionError: ``instance_ids`` is a str.
            SeedCollisionError: two of them, or one and an earlier stream, have one seed; nothing
                was derived.
        """
        name = derivation.validate_purpose(purpose)
        if isinstance(instance_ids, (str, bytes)):
            message = (
                "reserve takes a collection of ids, such as [f'lds_{i}' for i in "
                f"range(300)]; got {instance_ids!r}."
            )
            raise InvalidOptionError(message)
        stream_ids = dict.fromkeys(
            StreamId(name, derivation.validate_instance_id(instance_id))
            for instance_id in instance_ids
        )

        shared, scheme, site = self._shared, self._scheme, call_site()
        with shared.lock:
            if self._unsettled is not None:
                self._settle(*self._unsettled)
            for _, instance_id in stream_ids:
                self._refuse_long(name, instance_id)
            shared.guard.check_purpose(name, shared.components)
            identities = [
                QualifiedId(self._master_seed, *stream_id)
                for stream_id in stream_ids
                if stream_id not in self._seeds
            ]
            seeds = [scheme.derive(*identity) for identity in identities]
            if scheme.refuses_shared_seeds:
                shared.guard.claim_all(zip(seeds, identities))
            for identity, seed in zip(identities, seeds):
                self._add(identity.purpose, identity.instance_id, seed, site)

    def stream(self, purpose: str, instance_id: InstanceId = None) -> Stream:
        """Return the stream of (purpose, instance id), always the same object.

        Looking it up is no use of it.

        Example:
            >>> import torch
            >>> from seedregistry import SeedRegistry
            >>> dropout = SeedRegistry(42).stream("dropout", "training")
            >>> with dropout.scope(3, 4):  # epoch 3, step 4
            ...     noise = torch.rand(2)
            >>> torch.equal(noise, torch.rand(2, generator=dropout.at(3, 4).generator()))
            True

        Args:
            purpose: what the randomness is for.
            instance_id: which one of several: None, an int or a str.

        Raises:
            InvalidNameError, SeedCollisionError, UnknownPurposeError: as for :meth:`seed`.
        """
        seed = self.seed(purpose, instance_id)
        # The str itself: no subclass of it with a hash of its own.
        name, identity = str.__str__(purpose), derivation.validate_instance_id(instance_id)
        stream = self._streams.get((name, identity))
        if stream is None:
            made = Stream(
                self._master_seed, self._scheme.name, name, identity, seed=seed, host=self._host
            )
            stream = self._streams.setdefault((name, identity), made)
        return stream

    def generator(
        self,
        purpose: str,
        instance_id: InstanceId = None,
        *,
        device: Union[str, torch.device] = "cpu",
    ) -> torch.Generator:
        """Return a new ``torch.Generator`` on a device, at the stream's start.

        Counts as a use of the stream, as every generator at its start does; see
        :meth:`Stream.generator`.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> generator = SeedRegistry(42).generator("noise", "training")
            >>> generator.initial_seed() == SeedRegistry(42).seed("noise", "training")
            True

        Args:
            purpose: what the randomness is for.
            instance_id: which one of several: None, an int or a str.
            device: where it generates.

        Raises:
            DeviceError: the device is unknown, unavailable or has no generators; nothing was
                derived.
            StreamReuseError: the stream was used before and ``on_reuse`` forbids it.
            InvalidNameError, SeedCollisionError, UnknownPurposeError: as for :meth:`seed`.
        """
        rng.resolve_device(device)  # before anything is derived
        return self.stream(purpose, instance_id).generator(device)

    def numpy(self, purpose: str, instance_id: InstanceId = None) -> np.random.Generator:
        """Return a new ``numpy.random.Generator`` at the stream's start: :meth:`Stream.numpy`."""
        return self.stream(purpose, instance_id).numpy()

    def python(self, purpose: str, instance_id: InstanceId = None) -> random.Random:
        """Return a new ``random.Random`` at the stream's start: :meth:`Stream.python`."""
        return self.stream(purpose, instance_id).python()

    def child(self, purpose: str, instance_id: InstanceId = None) -> SeedRegistry:
        """Return the registry inside this one for a fold, a trial or a repetition.

        Its master seed is derived from the key of stream (purpose, instance id); ledger, components
        and the guard against shared seeds are this registry's. Equal names give the same object.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> registry = SeedRegistry(42)
            >>> fold = registry.child("fold", 0)
            >>> fold is registry.child("fold", 0)
            True
            >>> fold.seed("model") == registry.seed("model")
            False

        Args:
            purpose: what is repeated, such as ``"fold"``.
            instance_id: which one of them.

        Raises:
            InvalidNameError, SeedCollisionError, UnknownPurposeError: as for :meth:`seed`.
        """
        stream = self.stream(purpose, instance_id)
        stream_id = StreamId(stream.purpose, stream.instance_id)
        with self._shared.lock:
            child = self._children.get(stream_id)
            if child is None:
                child = SeedRegistry.__new__(SeedRegistry)
                child._begin(derivation.child_master_seed(stream.key), self._scheme, self._shared)
                self._shared.ledger.append(
                    records.Run(
                        master_seed=child._master_seed,
                        scheme=self._scheme.name,
                        parent=self._master_seed,
                        **stream_id._asdict(),
                        began=_now(),
                        call_site=call_site(),
                    )
                )
                self._children[stream_id] = child
        return child

    # --- splits -----------------------------------------------------------------------------------

    def split(
        self,
        dataset: Any,
        lengths: Sequence[Union[int, float]],
        *,
        instance_id: InstanceId = None,
    ) -> List[Subset[Any]]:
        """Split a dataset at random, as ``torch.utils.data.random_split`` does.

        The generator is that of stream ("split", instance id). The ledger keeps the lengths and a
        digest of the indices. A split that is made again is checked against it.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> train, test = SeedRegistry(42).split(range(10), [0.8, 0.2])
            >>> list(train), list(test)
            ([0, 1, 3, 5, 2, 6, 4, 8], [9, 7])

        Args:
            dataset: a dataset with a length.
            lengths: sample counts that add up to the dataset's, or fractions that add up to 1.
            instance_id: which one of several.

        Returns:
            A ``Subset`` for each length, in their order.

        Raises:
            ComponentCreationError: the lengths do not fit the dataset.
            LedgerIntegrityError: a split that was made before, here or in the journal, has other
                indices now, as another version of torch might give it.
            StreamReuseError: the stream was used before for something else and ``on_reuse`` forbids
                it.
        """
        from seedregistry.data.split import split_dataset

        stream = self.stream("split", instance_id)
        site = call_site()
        subsets, digest = split_dataset(dataset, lengths, rng.make_generator("cpu", stream))
        counts = tuple(map(len, subsets))

        shared = self._shared
        identity = QualifiedId.of(stream)
        with shared.lock:
            key = (identity, counts, self.scheme)
            is_first = key not in shared.splits
            if is_first:
                shared.guard.check_use(stream, site)
                shared.guard.mark_use(stream, site)
            earlier = shared.splits.claim(key, digest)
            if earlier is not None:
                message = (
                    f"Split '{stream.label}' into {counts} has indices {digest[:12]} now "
                    f"and had {earlier[:12]} before."
                )
                raise LedgerIntegrityError(message)
            if is_first:
                record = records.Split(
                    **identity._asdict(), lengths=counts, indices_digest=digest, call_site=site
                )
                try:
                    shared.ledger.append(record)
                except LedgerError:
                    del shared.splits[key]  # not recorded, so not made
                    raise
        return subsets

    # --- the state of the process -----------------------------------------------------------------

    def set_global_state(
        self, *, deterministic: str = "off", fill_uninitialized_memory: bool = False
    ) -> GlobalState:
        """Seed the default generators of the process and set torch's determinism switches.

        A master seed below 2**32 seeds python, NumPy and torch with that integer, as
        :func:`~seedregistry.functional.set_global_deterministic_state` does; a larger one sets each
        library from other bits of the key of stream ("global", None). Call it first, or not at all:
        whatever is built from the registry does not depend on it.

        Args:
            deterministic: ``"off"`` leaves the switches alone; ``"warn"`` asks for deterministic
                algorithms and warns where there is none; ``"strict"`` raises there.
            fill_uninitialized_memory: fill fresh memory with NaN or the largest value, which costs
                time.

        Returns:
            A handle whose ``.report`` says what took effect, and whose ``.revert()`` gives the
            caller's generators and switches back, as the end of a ``with`` block does. Without
            either the state stays.

        Raises:
            InvalidOptionError: ``deterministic`` is another value; nothing was changed.
            ScopeError: inside a scope, whose end would undo it.
        """
        from seedregistry.registry.global_state import refuse_in_scope, set_global_state

        refuse_in_scope("set_global_state was called")
        is_small = self._master_seed < 1 << rng.GLOBAL_SEED_BITS
        handle = set_global_state(
            self._master_seed if is_small else self.stream("global"),
            deterministic=deterministic,
            fill_uninitialized_memory=fill_uninitialized_memory,
            late_seed=self._host.late_seed,
        )
        self._shared.record_environment_once()
        self._shared.ledger.append(
            records.Determinism(
                mode=deterministic,
                fill_uninitialized_memory=fill_uninitialized_memory,
                ineffective=tuple(str(entry) for entry in handle.report.ineffective),
                switches=tuple((switch.name, switch.after) for switch in handle.report.switches),
            )
        )
        return handle

    def record_environment(self, *, command_line: bool = False, paths: bool = False) -> None:
        """Put the environment of the process, as it is now, into the ledger, as circumstance.

        The library records it by itself, once, with the first thing that is built. That record has
        neither a command line nor a path.

        Args:
            command_line: also the command line. It may hold whatever was typed, secrets among it.
            paths: also the working directory and the paths of the script and of Python. They may
                name the user.
        """
        self._shared.record_environment(command_line=command_line, paths=paths)

    def audit(self, mode: str = "error") -> audit.Audit:
        """Return a block in which every draw comes from a stream, or is reported.

        Args:
            mode: ``"error"`` raises at the first operator that draws outside every stream, and at
                the end for python and NumPy; ``"warn"`` warns, once for each operator and line.

        Raises:
            InvalidOptionError: another mode.
            UndeclaredRandomnessError: from the block: operator, device and line.
        """
        from seedregistry.audit import Audit

        return Audit(mode, self._shared.ledger.append)

    def note(self, /, **config: Any) -> None:
        """Put settings into the ledger, as content: ``registry.note(lr=0.1, batch_size=256)``.

        Args:
            **config: str, int, float, bool, None, and sequences, mappings, namespaces of argparse
                and instances of dataclasses of them. A sequence of pairs is not the mapping of
                these pairs.

        Raises:
            InvalidOptionError: a value of another type; nothing was recorded.
            LedgerError: a value of more than 16 MiB; nothing was recorded.
            LedgerIntegrityError: a journal that goes on has another value; nothing was recorded.
        """
        from seedregistry.ledger.settings import freeze_setting

        # All are checked before one is recorded.
        self._shared.ledger.extend(
            [
                records.Note(name=name, value=freeze_setting(name, value))
                for name, value in config.items()
            ]
        )

    def state_dict(self) -> Dict[str, Any]:
        """Return the state of the generators, for code that draws outside scopes.

        It has the default generators and those that were handed out and that somebody still holds.
        Generators of positions are left out: they are made again from their position. Ints, strings
        and byte tensors only, in format ``seedregistry.registry/1``:
        ``torch.load(weights_only=True)`` reads it.

        Raises:
            ScopeError: inside a scope, where the default generators are the scope's.
            RngStateError: NumPy's global generator is of a kind that cannot be saved.
        """
        from seedregistry.registry.checkpoint import save_state

        return save_state(self._shared, self._master_seed, self.scheme)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators as :meth:`state_dict` saw them, here or in another process.

        All of them, or none.

        Args:
            state: what :meth:`state_dict` returned; every generator that is held here needs an
                entry, and each entry a generator.

        Raises:
            RngStateError: another format, master seed or scheme, or an entry that is missing,
                foreign or corrupt; the message names it and nothing was changed.
            ScopeError: inside a scope, whose end would undo it.
        """
        from seedregistry.registry.checkpoint import load_state

        load_state(self._shared, self._master_seed, self.scheme, state)

    # --- copies -----------------------------------------------------------------------------------

    def __getstate__(self) -> Dict[str, Any]:
        with self._shared.lock:
            return {
                "master_seed": self._master_seed,
                "scheme": self.scheme,
                "shared": self._shared,
                "seeds": dict(self._seeds),
                "children": dict(self._children),
            }

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self._begin(state["master_seed"], derivation.find_scheme(state["scheme"]), state["shared"])
        self._seeds = state["seeds"]
        self._children = state["children"]


def _now() -> str:
    return dt.datetime.now(tz=dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _show_count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _make_record(
    master_seed: int, scheme: str, purpose: str, instance_id: InstanceId, seed: int, site: str
) -> records.Derivation:
    return records.Derivation(
        master_seed=master_seed,
        scheme=scheme,
        purpose=purpose,
        instance_id=instance_id,
        seed=seed,
        call_site=site,
    )
