"""The components of a registry: what it builds models, optimizers, schedulers and loaders with."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Tuple, TypeVar

from seedregistry import derivation
from seedregistry.common.options import did_you_mean, join_choices
from seedregistry.components.base import Component
from seedregistry.data.options import LoaderOptions
from seedregistry.errors import ComponentRegistrationError, UnknownPurposeError
from seedregistry.registry.building import build

if TYPE_CHECKING:
    import torch

    from seedregistry.data.loader import SeededDataLoader
    from seedregistry.data.shards import Shard
    from seedregistry.derivation import InstanceId
    from seedregistry.registry.shared import Shared
    from seedregistry.stream import Stream

_Model = TypeVar("_Model")
_Optimizer = TypeVar("_Optimizer")


class Builders(abc.ABC):
    """The half of a registry that builds; the other half derives and records."""

    _shared: Shared

    @abc.abstractmethod
    def stream(self, purpose: str, instance_id: InstanceId = None) -> Stream:
        """Return the stream of (purpose, instance id)."""

    def register(self, component: Component) -> None:
        """Add a component for its purpose. Validated first; nothing is changed when it is refused.

        Args:
            component: an instance; the children of this registry have it too.

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
            message = (
                f"No component for purpose {name!r}. Registered: "
                f"{join_choices(sorted(components))}.{did_you_mean(name, components)}"
            )
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
        """Build with the component of a purpose, and record it.

        Whatever the factory draws from default generators comes from stream (purpose, instance id).

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

        Under ``sha256-31`` it is bit-equal to ``torch.manual_seed(registry.seed("model",
        instance_id))`` and the bare call. The default generators are afterwards as they were. The
        ledger keeps the number of parameters and their digest.

        Example:
            >>> import torch
            >>> from seedregistry import SeedRegistry
            >>> registry = SeedRegistry(42)
            >>> model = registry.model(torch.nn.Linear, 3, 2, instance_id="training")
            >>> again = SeedRegistry(42).model(torch.nn.Linear, 3, 2, instance_id="training")
            >>> torch.equal(model.weight, again.weight)
            True

        Args:
            factory: a class or a function that returns a model.
            *args: for the factory.
            instance_id: which one of several.
            **kwargs: for the factory.

        Returns:
            What the factory returned.

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
        """Build an optimizer: ``cls(params, *args, **kwargs)``.

        It is called in the scope of ("optimizer", instance id).

        Example:
            >>> import torch
            >>> from seedregistry import SeedRegistry
            >>> registry = SeedRegistry(42)
            >>> model = registry.model(torch.nn.Linear, 3, 2)
            >>> optimizer = registry.optimizer(torch.optim.SGD, model.parameters(), lr=0.1)
            >>> optimizer.defaults["lr"]
            0.1

        Args:
            cls: a class such as ``torch.optim.AdamW``, or a function.
            params: parameters or groups of them, as the class takes them.
            *args: for the class.
            instance_id: which one of several.
            **kwargs: for the class.

        Returns:
            What the class returned.

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
            optimizer: whose learning rates it sets.
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
        validation: bool = False,
        **kwargs: Any,
    ) -> SeededDataLoader:
        """Build a loader whose order, samples and batches follow from a stream and the epoch.

        The stream is ("dataloader", instance id). A sample is the same in every worker.

        Example:
            >>> from seedregistry import SeedRegistry
            >>> registry = SeedRegistry(42)
            >>> loader = registry.dataloader(
            ...     range(10), instance_id="training", batch_size=5, shuffle=True
            ... )
            >>> [batch.tolist() for batch in loader]
            [[8, 9, 5, 2, 3], [0, 4, 6, 7, 1]]
            >>> loader.epoch
            1

        Args:
            source: a dataset (an object with ``__getitem__`` or ``__iter__``), or a class or
                function that returns a ``DataLoader``, which is rebuilt with every argument kept.
            instance_id: which one of several.
            order: how an epoch is shuffled: ``"documented"`` (``randperm`` seeded with ``seed +
                epoch``; the default under ``sha256-31``), ``"hashed"`` (``randperm`` at the
                position (epoch,); the default under ``sha256-256``) or ``"indexed"`` (a keyed
                permutation, position by position: any step of 10**12 samples in constant time).
            shard: with several ranks, True (each rank its share, from ``torch.distributed``),
                (rank, world size), or False (a framework divides the batches, or every rank sees
                all). None raises when several ranks iterate.
            global_batch_size: samples a step of all ranks together, instead of ``batch_size``,
                which is of each rank: step k is the same samples for every number of ranks; the
                last one is padded from the beginning, or dropped.
            epochs: ``"advance"``: ``loader.epoch`` goes up after each pass; ``"repeat"``: it stays
                until it is set.
            validation: every pass is the same, of epoch 0 unless ``loader.epoch`` is assigned, so
                that a loader with random augmentation measures alike each time; ``set_epoch``, by
                which frameworks count, changes nothing.
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
            order=order,
            shard=shard,
            global_batch_size=global_batch_size,
            epochs=epochs,
            validation=validation,
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
        """Build one thing with a component, which need not be registered, and record it.

        ``torch_only`` builds are those of the documented functions.
        """
        resolved = component.resolve(factory)  # refused before anything is derived
        stream = self.stream(component.purpose, instance_id)
        return build(
            component, stream, resolved, args, kwargs, shared=self._shared, torch_only=torch_only
        )
