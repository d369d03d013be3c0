"""The registry: the one object of an experiment that owns the master seed.

Here the RNG wing (derivation, streams, scopes, components) and the ledger wing meet: everything
that is derived or built goes through the registry and is recorded.
"""

from __future__ import annotations

import datetime as dt
import difflib
import logging
import secrets
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

from seedregistry import audit, derivation, rng
from seedregistry.common import ranks
from seedregistry.common.callsite import call_site
from seedregistry.components.base import Component
from seedregistry.components.dataloader import DataLoaderComponent
from seedregistry.components.model import ModelComponent
from seedregistry.components.optimizer import OptimizerComponent
from seedregistry.components.scheduler import SchedulerComponent
from seedregistry.data.options import LoaderOptions
from seedregistry.data.split import split_dataset
from seedregistry.errors import (
    ComponentRegistrationError,
    InvalidOptionError,
    LedgerIntegrityError,
    UnknownPurposeError,
)
from seedregistry.ledger import Ledger, records
from seedregistry.registry import checkpoint
from seedregistry.registry.building import build_recorded
from seedregistry.registry.global_state import GlobalState, refuse_in_scope, set_global_state
from seedregistry.registry.shared import Shared
from seedregistry.registry.uses import Host
from seedregistry.stream import Stream

if TYPE_CHECKING:
    import os
    import random

    import numpy as np
    import torch
    from torch.utils.data import Subset

    from seedregistry.data.loader import SeededDataLoader
    from seedregistry.data.shards import Shard
    from seedregistry.derivation import InstanceId

_log = logging.getLogger(__name__)

_ID_TYPES = frozenset({str, int, type(None)})

StreamName = Tuple[str, Any]
_Model = TypeVar("_Model")
_Optimizer = TypeVar("_Optimizer")


class SeedRegistry:
    """Owns the master seed of an experiment; derives, hands out, builds and records.

    Every random decision is a pure function of (master seed, purpose, instance, position): the
    order in which things are asked for, added or left out changes nothing for the others.

    Lifetime: one object for an experiment; pass it on. Thread-safe. It pickles and deep-copies into
    an independent registry with the same seeds, components and records; only the generators that
    were handed out stay with the original. Equal words give equal numbers in every process.

    Args:
        master_seed: int or ``numpy.integer``, ``0 <= master_seed < 2**128``. None draws 128 bits
            from the operating system, records them and logs the line to paste.
        scheme: ``"sha256-31"`` (the documented seeds) or ``"sha256-256"`` (no collisions,
            full-width generators).
        journal: path of a file in which every entry of the ledger is when the call that made it
            returns. A file that is there goes on, and must be a journal of the same master seed and
            scheme. In a run with several ranks, those above 0 get their rank before the suffix:
            ``ledger.rank1.jsonl``.
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
        LedgerFormatError, LedgerIntegrityError: the journal's file is none, or does not hold
            together.
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
        drawn = master_seed is None
        number = (
            secrets.randbits(derivation.MASTER_SEED_BITS)
            if drawn
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
        if drawn:
            _log.info(
                "No master seed was given; drew one. To repeat this run: SeedRegistry(%d)", number
            )

    def _begin(self, master_seed: int, scheme: derivation.Scheme, shared: Shared) -> None:
        self._master_seed = master_seed
        self._scheme = scheme
        self._shared = shared
        self._host = Host(master_seed, shared)
        self._seeds: Dict[StreamName, int] = {}
        self._streams: Dict[Tuple[str, Any, type], Stream] = {}
        self._children: Dict[Tuple[str, Any, type], SeedRegistry] = {}

    # --- words ------------------------------------------------------------------------------------

    @property
    def master_seed(self) -> int:
        """The one integer that the experiment starts from."""
        return self._master_seed

    @property
    def scheme(self) -> str:
        """The name of the rule from words to seeds."""
        return self._scheme.name

    @property
    def ledger(self) -> Ledger:
        """The record of every derivation and of what was built; shared with the children."""
        return self._shared.ledger

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, tuple) or len(name) != 2:  # noqa: PLR2004 - a pair
            return False
        if not isinstance(name[0], str) or type(name[1]) not in _ID_TYPES:
            return False
        return name in self._seeds

    def __len__(self) -> int:
        return len(self._seeds)

    def __iter__(self) -> Iterator[StreamName]:
        return iter(tuple(self._seeds))

    def __repr__(self) -> str:
        count, offspring = len(self), len(self._children)
        recorded = len(self.ledger)
        streams = f"{count} stream{'' if count == 1 else 's'}"
        children = f", {offspring} {'child' if offspring == 1 else 'children'}" if offspring else ""
        kept = f"{recorded} record{'' if recorded == 1 else 's'}"
        return f"<SeedRegistry {self._master_seed}, {self.scheme}: {streams}{children}, {kept}>"

    # --- derivation -------------------------------------------------------------------------------

    def seed(self, purpose: str, instance_id: InstanceId = None) -> int:
        """Return the component seed of (purpose, instance id): int, ``0 <= seed < 2**31``.

        Derived once, then cached.

        Raises:
            InvalidNameError: a word is of another type, empty or not encodable.
            SeedCollisionError: another stream of this registry or its relatives has the seed
                (scheme ``sha256-31``).
            UnknownPurposeError: the set of purposes is closed and this one is not in it.
        """
        # The type is looked at before the cache, in which True and 1.0 would find the entry of 1.
        if instance_id.__class__ in _ID_TYPES and purpose.__class__ is str:
            seed = self._seeds.get((purpose, instance_id))
            if seed is not None:
                return seed
        return self._derive(purpose, instance_id)

    def _derive(self, purpose: object, instance_id: object) -> int:
        name = derivation.validate_purpose(purpose)
        identity = derivation.validate_instance_id(instance_id)
        shared = self._shared
        scheme = self._scheme
        with shared.lock:
            known = self._seeds.get((name, identity))
            if known is not None:
                return known
            shared.guard.check_purpose(name, shared.components)
            seed = scheme.derive(self._master_seed, name, identity)
            if scheme.refuses_shared_seeds:
                shared.guard.claim(seed, (self._master_seed, name, identity))
            self._add(name, identity, seed, call_site(1))  # seed() is the caller
        return seed

    def _add(self, purpose: str, instance_id: InstanceId, seed: int, site: str) -> None:
        """Record a derivation and keep its seed; the lock is held and the seed is claimed."""
        scheme = self._scheme.name
        self._shared.ledger.append_later(
            _derivation, self._master_seed, scheme, purpose, instance_id, seed, site
        )
        self._seeds[purpose, instance_id] = seed
        if _log.isEnabledFor(logging.DEBUG):
            extra = self._extra(purpose, instance_id, seed)
            _log.debug("derived %s/%s: %d", purpose, instance_id, seed, extra=extra)

    def _extra(self, purpose: str, instance_id: InstanceId, seed: int) -> Dict[str, Any]:
        return {
            "master_seed": self._master_seed,
            "purpose": purpose,
            "instance_id": instance_id,
            "component_seed": seed,
        }

    def reserve(self, purpose: str, instance_ids: Iterable[InstanceId]) -> None:
        """Derive the streams of many instances now, so that a collision is refused before the first training.

        All or nothing. Deriving is no use of a stream.

        Args:
            purpose: the purpose.
            instance_ids: the ids; a str is refused, as it would be taken apart into letters.

        Raises:
            InvalidNameError: a word is not of an accepted type.
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
        identities = [derivation.validate_instance_id(instance_id) for instance_id in instance_ids]
        shared = self._shared
        site = call_site()
        with shared.lock:
            shared.guard.check_purpose(name, shared.components)
            fresh = [
                key
                for key in dict.fromkeys((name, identity) for identity in identities)
                if key not in self
            ]
            seeds = [self._scheme.derive(self._master_seed, *key) for key in fresh]
            if self._scheme.refuses_shared_seeds:
                shared.guard.claim_all(
                    (seed, (self._master_seed, *key)) for seed, key in zip(seeds, fresh)
                )
            for key, seed in zip(fresh, seeds):
                self._add(*key, seed, site)

    def stream(self, purpose: str, instance_id: InstanceId = None) -> Stream:
        """Return the stream of (purpose, instance id), always the same object.

        Looking it up is no use of it.

        Raises:
            InvalidNameError, SeedCollisionError, UnknownPurposeError: as for :meth:`seed`.
        """
        seed = self.seed(purpose, instance_id)
        identity = derivation.validate_instance_id(instance_id)
        name = (str.__str__(purpose), identity, type(identity))
        stream = self._streams.get(name)
        if stream is None:
            made = Stream(
                self._master_seed, self._scheme.name, name[0], identity, seed=seed, host=self._host
            )
            stream = self._streams.setdefault(name, made)
        return stream

    def generator(
        self,
        purpose: str,
        instance_id: InstanceId = None,
        *,
        device: Union[str, torch.device] = "cpu",
    ) -> torch.Generator:
        """Return a new ``torch.Generator`` on a device, at the stream's start.

        See :meth:`Stream.generator`.
        """
        rng.resolve_device(device)  # before anything is derived
        return self.stream(purpose, instance_id).generator(device)

    def numpy(self, purpose: str, instance_id: InstanceId = None) -> np.random.Generator:
        """Return a new ``numpy.random.Generator`` at the stream's start.

        See :meth:`Stream.numpy`.
        """
        return self.stream(purpose, instance_id).numpy()

    def python(self, purpose: str, instance_id: InstanceId = None) -> random.Random:
        """Return a new ``random.Random`` at the stream's start. See :meth:`Stream.python`."""
        return self.stream(purpose, instance_id).python()

    def child(self, purpose: str, instance_id: InstanceId = None) -> SeedRegistry:
        """Return the registry inside this one at (purpose, instance id).

        A fold, a trial, a repetition.

        Its master seed is derived from the stream's key; ledger, components and the guard against
        shared seeds are this registry's. The same words give the same object.

        Raises:
            InvalidNameError, SeedCollisionError, UnknownPurposeError: as for :meth:`seed`.
        """
        stream = self.stream(purpose, instance_id)
        name = (stream.purpose, stream.instance_id, type(stream.instance_id))
        with self._shared.lock:
            child = self._children.get(name)
            if child is None:
                child = SeedRegistry.__new__(SeedRegistry)
                child._begin(derivation.child_master_seed(stream.key), self._scheme, self._shared)
                self._shared.ledger.append(
                    records.Run(
                        master_seed=child._master_seed,
                        scheme=self._scheme.name,
                        parent=self._master_seed,
                        purpose=stream.purpose,
                        instance_id=stream.instance_id,
                        began=_now(),
                        call_site=call_site(),
                    )
                )
                self._children[name] = child
        return child

    # --- components -------------------------------------------------------------------------------

    def register(self, component: Component) -> None:
        """Add a component for its purpose. Validated first; nothing is changed when it is refused.

        Raises:
            ComponentRegistrationError: not a :class:`~seedregistry.Component` instance, or its
                purpose is taken.
            InvalidNameError: its purpose is not a name.
            UnknownPurposeError: the set of purposes is closed and this one is not in it.
        """
        given: object = component
        if not isinstance(given, Component):
            hint = " Pass an instance, not the class." if isinstance(given, type) else ""
            message = f"register takes an instance of a Component subclass; got {given!r}.{hint}"
            raise ComponentRegistrationError(message)
        purpose = derivation.validate_purpose(component.purpose)
        shared = self._shared
        shared.guard.require_purpose(purpose)
        with shared.lock:
            if purpose in shared.components:
                message = (
                    f"Purpose {purpose!r} has a component already, "
                    f"{type(shared.components[purpose]).__name__}. Call "
                    f"registry.unregister({purpose!r}) first to replace it."
                )
                raise ComponentRegistrationError(message)
            shared.components[purpose] = component

    def unregister(self, purpose: str) -> Component:
        """Remove the component of a purpose and return it.

        Raises:
            UnknownPurposeError: there is none.
        """
        with self._shared.lock:
            component = self._component(purpose)
            del self._shared.components[component.purpose]
        return component

    def _component(self, purpose: object) -> Component:
        components = self._shared.components
        name = derivation.validate_purpose(purpose)
        component = components.get(name)
        if component is None:
            nearest = difflib.get_close_matches(name, sorted(components), n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            known = ", ".join(repr(known) for known in sorted(components))
            message = f"No component for purpose {name!r}. Registered: {known}.{hint}"
            raise UnknownPurposeError(message)
        return component

    def create(
        self,
        purpose: str,
        factory: Any,
        /,
        *args: Any,
        instance_id: InstanceId = None,
        **kwargs: Any,
    ) -> Any:
        """Build with the component registered for a purpose, inside the scope of (purpose, instance id), and record it.

        Args:
            purpose: a purpose with a component.
            factory: a class or function, or what else the component takes.
            *args: for the factory.
            instance_id: which one of several.
            **kwargs: for the factory, untouched.

        Raises:
            UnknownPurposeError: no component has that purpose; the message has the nearest.
            FactorySignatureError: not callable, or it has a parameter named ``instance_id``.
            ComponentCreationError: from the factory's own exception.
        """
        return self._build(self._component(purpose), factory, args, kwargs, instance_id)

    def model(
        self,
        factory: Callable[..., _Model],
        /,
        *args: Any,
        instance_id: InstanceId = None,
        **kwargs: Any,
    ) -> _Model:
        """Build a model: ``factory(*args, **kwargs)`` in the scope of ("model", instance id).

        Bit-equal to ``torch.manual_seed(registry.seed("model", instance_id))`` and the bare call,
        under ``sha256-31``; the default generators are as before after it. The ledger keeps the
        number of parameters and their digest.

        Raises:
            FactorySignatureError, ComponentCreationError: as for :meth:`create`.
        """
        model: _Model = self._build(self._component("model"), factory, args, kwargs, instance_id)
        return model

    def optimizer(
        self,
        cls: Callable[..., _Optimizer],
        params: Any,
        /,
        *args: Any,
        instance_id: InstanceId = None,
        **kwargs: Any,
    ) -> _Optimizer:
        """Build an optimizer: ``cls(params, *args, **kwargs)`` in the scope of ("optimizer", instance id).

        Raises:
            FactorySignatureError, ComponentCreationError: as for :meth:`create`.
        """
        optimizer: _Optimizer = self._build(
            self._component("optimizer"), cls, (params, *args), kwargs, instance_id
        )
        return optimizer

    def scheduler(
        self,
        cls_or_name: Any,
        optimizer: torch.optim.Optimizer,
        /,
        *args: Any,
        instance_id: InstanceId = None,
        **kwargs: Any,
    ) -> Any:
        """Build a scheduler in the scope of ("scheduler", instance id).

        Args:
            cls_or_name: a class, or the name of one in ``torch.optim.lr_scheduler``.
            optimizer: the optimizer.
            *args: for the class.
            instance_id: which one of several.
            **kwargs: for the class.

        Raises:
            UnsupportedSchedulerError: no scheduler goes by that name.
            FactorySignatureError, ComponentCreationError: as for :meth:`create`.
        """
        return self._build(
            self._component("scheduler"), cls_or_name, (optimizer, *args), kwargs, instance_id
        )

    def dataloader(
        self,
        source: Any,
        /,
        *,
        instance_id: InstanceId = None,
        order: Optional[str] = None,
        shard: Shard = None,
        global_batch_size: Optional[int] = None,
        epochs: str = "advance",
        **kwargs: Any,
    ) -> SeededDataLoader:
        """Build a loader whose order, samples and batches are functions of the stream ("dataloader", instance id).

        Args:
            source: a dataset (an object with ``__getitem__`` or ``__iter__``), or a class or
                function that returns a ``DataLoader``, which is rebuilt with every argument kept.
            instance_id: which one of several.
            order: how an epoch is shuffled: ``"documented"`` (``randperm`` seeded with ``seed +
                epoch``; the default under ``sha256-31``), ``"hashed"`` (``randperm`` at the
                position (epoch,); the default under ``sha256-256``) or ``"indexed"`` (a keyed
                permutation, position by position: any step of 10**12 samples in constant time).
            shard: with several ranks, True (each rank its part, from ``torch.distributed``), (rank,
                world size), or False (a framework divides the batches, or every rank sees all). Not
                said, iteration raises.
            global_batch_size: samples a step of all ranks together, instead of ``batch_size``,
                which is of each rank: step k is the same samples for every number of ranks; the
                last one is padded from the beginning, or dropped.
            epochs: ``"advance"``: ``loader.epoch`` goes up after each pass; ``"repeat"``: the same
                until told otherwise.
            **kwargs: for ``DataLoader`` (``batch_size=``, ``shuffle=``, ``num_workers=``, ...) or
                for the factory.

        Raises:
            InvalidOptionError: ``generator=`` beside a dataset, options that exclude each other, or
                another value of one.
            UnrepeatableSamplerError: a sampler's draws cannot be made a function of (stream,
                epoch).
            FactorySignatureError, ComponentCreationError: as for :meth:`create`.
        """
        component = self._component("dataloader")
        options = LoaderOptions(
            order=order, shard=shard, global_batch_size=global_batch_size, epochs=epochs
        )
        loader: SeededDataLoader = self._build(
            component, source, (), {**kwargs, **options.keywords()}, instance_id
        )
        return loader

    def _build(
        self,
        component: Component,
        factory: Any,
        args: Tuple[Any, ...],
        kwargs: Mapping[str, Any],
        instance_id: InstanceId,
        *,
        torch_only: bool = False,
    ) -> Any:
        """Build one thing and record it.

        ``torch_only`` builds are those of the documented functions.
        """
        resolved = component.resolve(factory)
        stream = self.stream(component.purpose, instance_id)
        return build_recorded(
            component,
            stream,
            resolved,
            args,
            kwargs,
            shared=self._shared,
            late_seed=self._host.late_seed,
            torch_only=torch_only,
        )

    def split(
        self,
        dataset: Any,
        lengths: Sequence[Union[int, float]],
        *,
        instance_id: InstanceId = None,
    ) -> List[Subset[Any]]:
        """Split a dataset as ``torch.utils.data.random_split`` does with the generator of ("split", instance id).

        The ledger keeps the lengths and a digest of the indices. The same split made again is
        checked against it.

        Args:
            dataset: a dataset with a length.
            lengths: sample counts that add up to the dataset's, or fractions that add up to 1.
            instance_id: which one of several.

        Raises:
            ComponentCreationError: the lengths do not fit the dataset.
            LedgerIntegrityError: the same split gave other indices than before, as another version
                of torch might.
        """
        stream = self.stream("split", instance_id)
        site = call_site()
        parts, digest = split_dataset(dataset, lengths, rng.make_generator("cpu", stream))
        counts = tuple(len(part) for part in parts)
        shared = self._shared
        with shared.lock:
            key = (stream.words(), counts)
            known = shared.splits.get(key)
            if known is None:
                shared.guard.check_use(stream, site)
                shared.guard.mark_use(stream, site)
                shared.splits[key] = digest
                shared.ledger.append(
                    records.Split(
                        master_seed=self._master_seed,
                        purpose=stream.purpose,
                        instance_id=stream.instance_id,
                        lengths=counts,
                        indices_digest=digest,
                        call_site=site,
                    )
                )
            elif known != digest:
                message = (
                    f"Split '{stream.label}' into {counts} has indices {digest[:12]} now "
                    f"and had {known[:12]} before."
                )
                raise LedgerIntegrityError(message)
        return parts

    # --- the state of the process -----------------------------------------------------------------

    def set_global_state(
        self, *, deterministic: str = "off", fill_uninitialized_memory: bool = False
    ) -> GlobalState:
        """Seed the default generators of the process and set torch's determinism switches.

        A master seed below 2**32 seeds python, NumPy and torch with that integer, as the documented
        function does; a larger one sets each from words of its own, from stream ("global", None).
        Call it first, or not at all: whatever is built from the registry does not depend on it.

        Args:
            deterministic: ``"off"`` leaves the switches alone; ``"warn"`` asks for deterministic
                algorithms and warns where there is none; ``"strict"`` raises there.
            fill_uninitialized_memory: fill fresh memory with NaN or the largest value, which costs
                time.

        Returns:
            A handle whose ``.report`` says what took effect, and whose ``.revert()`` gives the
            generators and the caller's switches back, as the end of a ``with`` block does. Without
            either it stays.

        Raises:
            InvalidOptionError: not one of these values; nothing was changed.
            ScopeError: inside a scope, whose end would undo it.
        """
        is_small = self._master_seed < 1 << rng.GLOBAL_SEED_BITS
        refuse_in_scope("set_global_state was called")
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
                switches=tuple((switch.name, switch.found) for switch in handle.report.switches),
            )
        )
        return handle

    def record_environment(self, *, command_line: bool = False, paths: bool = False) -> None:
        """Put the environment of the process, as it is now, into the ledger, as circumstance.

        What is recorded by itself, once, with the first thing that is built, has neither a command
        line nor a path.

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
        return audit.Audit(mode, self._shared.ledger.append)

    def note(self, /, **config: Any) -> None:
        """Put settings of your own into the ledger, as content.

        ``registry.note(lr=0.1, batch_size=256)``.

        Args:
            **config: str, int, float, bool, None, and sequences and mappings of them.

        Raises:
            InvalidOptionError: a value of another type; nothing was recorded.
        """
        for name, value in config.items():
            if not records.is_plain(value):
                message = (
                    f"note({name}=...) takes str, int, float, bool, None and sequences and "
                    f"mappings of them; got {type(value).__name__}. Pass what identifies it, such "
                    "as its name."
                )
                raise InvalidOptionError(message)
        for name, value in config.items():
            self._shared.ledger.append(records.Note(name=name, value=records.freeze(value)))

    def state_dict(self) -> Dict[str, Any]:
        """Return the state of the default generators and of the generators handed out that somebody still holds.

        For code that draws outside scopes. Generators of positions are left out: they are made
        again from their position. Ints, strings and byte tensors only, in format
        ``seedregistry.registry/1``: ``torch.load(weights_only=True)`` reads it.

        Raises:
            ScopeError: inside a scope, where the default generators are the scope's.
            RngStateError: NumPy's global generator is of a kind that cannot be saved.
        """
        return checkpoint.save_state(self._shared, self._master_seed, self.scheme)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators as :meth:`state_dict` found them, here or in another process.

        All of them, or none.

        Raises:
            RngStateError: another format, master seed or scheme, or an entry that is missing,
                foreign or corrupt; the message names it and nothing was changed.
            ScopeError: inside a scope, whose end would undo it.
        """
        checkpoint.load_state(self._shared, self._master_seed, self.scheme, state)

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


def _derivation(
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
