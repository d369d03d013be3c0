"""What every component is: a class that knows how to build one kind of thing from a stream."""

from __future__ import annotations

import abc
import contextlib
import functools
import inspect
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any, FrozenSet, Mapping, Tuple

from seedregistry.errors import FactorySignatureError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

RESERVED: FrozenSet[str] = frozenset({"instance_id"})
"""Keywords that every builder keeps for itself."""


class Component(abc.ABC):
    """Knows how to build one kind of thing from a stream, and how to describe it for the ledger.

    To write one, name a purpose and give the methods :meth:`build` and :meth:`describe`. Register
    an instance with ``registry.register`` and build with ``registry.create``. A component keeps no
    state between builds and is shared by the registry's children.

    The registry opens a scope of the stream around :meth:`build`, so that a factory that draws from
    the default generators draws from the stream. A component for a thing that draws later hands it
    ``stream.generator(device)``.

    Attributes:
        purpose: the purpose that it builds for; one component per purpose in a registry.
        reserved: keywords that the builder keeps for itself; a factory with a parameter of that
            name is refused.

    Example:
        >>> import torch
        >>> from seedregistry import Component, SeedRegistry
        >>> class NoiseComponent(Component):
        ...     purpose = "noise"
        ...
        ...     def build(self, stream, factory, /, *args, **kwargs):
        ...         return factory(*args, **kwargs)
        ...
        ...     def describe(self, product):
        ...         return {"shape": tuple(product.shape)}
        >>> registry = SeedRegistry(42)
        >>> registry.register(NoiseComponent())
        >>> registry.create("noise", torch.rand, 3, instance_id="training").shape
        torch.Size([3])
    """

    reserved: FrozenSet[str] = RESERVED

    @property
    @abc.abstractmethod
    def purpose(self) -> str:
        """What the randomness is for."""

    def resolve(self, factory: Any) -> Any:
        """Return what is to be called, or refuse it, before anything is derived or set.

        Args:
            factory: what the user passed.

        Raises:
            FactorySignatureError: not callable, or it has a parameter that the builder keeps for
                itself.
        """
        refuse_reserved(factory, self.reserved, f"The {self.purpose} builder")
        return factory

    def draws(self, factory: Any) -> bool:  # noqa: ARG002
        """Return whether building can draw random numbers; where it cannot, no scope is opened.

        Args:
            factory: what :meth:`resolve` returned.
        """
        return True

    @abc.abstractmethod
    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Build one thing, inside the stream's scope.

        Args:
            stream: the stream; ``stream.generator(device)`` is a generator for the thing to keep.
            factory: what :meth:`resolve` returned.
            *args: for the factory.
            **kwargs: for the factory.
        """

    def describe_call(self, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return what the ledger keeps of a build's arguments: nothing, unless overridden.

        For what :meth:`describe` cannot read from the product.

        Args:
            args: as for :meth:`build`.
            kwargs: as for :meth:`build`.

        Returns:
            Content only, as scalars, sequences and mappings of them.
        """
        return {}

    @abc.abstractmethod
    def describe(self, product: Any) -> Mapping[str, Any]:
        """Return what the ledger keeps of a product.

        Args:
            product: what :meth:`build` returned.

        Returns:
            Content only, as scalars, sequences and mappings of them.
        """


# --- factories ------------------------------------------------------------------------------------

_signatures: weakref.WeakKeyDictionary[Any, FrozenSet[str]] = weakref.WeakKeyDictionary()
_CODE_HAS_NAMES = (types.FunctionType, types.MethodType)


def _code_names(code: types.CodeType) -> FrozenSet[str]:
    return frozenset(
        code.co_varnames[code.co_posonlyargcount : code.co_argcount + code.co_kwonlyargcount]
    )


def _parameter_names(factory: Any) -> FrozenSet[str]:
    """Return the names of a factory's parameters that a keyword can reach."""
    if isinstance(factory, functools.partial):
        return _parameter_names(factory.func) - frozenset(factory.keywords)
    # inspect.signature takes ten times as long as reading a function's code.
    if isinstance(factory, _CODE_HAS_NAMES) and not hasattr(factory, "__wrapped__"):
        return _code_names(factory.__code__)
    try:
        return _signatures[factory]
    except (KeyError, TypeError):
        pass

    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return frozenset()
    variadic = (
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.POSITIONAL_ONLY,
    )
    names = frozenset(parameter.name for parameter in parameters if parameter.kind not in variadic)
    with contextlib.suppress(TypeError):  # cannot be referenced weakly, or not hashed
        _signatures[factory] = names
    return names


def takes(factory: Any, name: str) -> bool:
    """Return whether a factory can be called with a keyword of that name."""
    if name in _parameter_names(factory):
        return True
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def refuse_reserved(factory: Any, reserved: FrozenSet[str], builder: str) -> None:
    """Refuse a factory that cannot be called through a builder.

    Args:
        factory: what the user passed.
        reserved: keywords that the builder keeps for itself.
        builder: how messages name the builder.

    Raises:
        FactorySignatureError: not callable, or it has parameters of those names.
    """
    if not callable(factory):
        message = (
            f"{builder} needs a class or a function to call; got {factory!r} "
            f"({type(factory).__name__})."
        )
        raise FactorySignatureError(message)

    taken = reserved & _parameter_names(factory)
    if taken:
        names = ", ".join(sorted(taken))
        message = (
            f"{builder} keeps a parameter of {describe_factory(factory)} for itself: {names}. "
            f"Bind it first: functools.partial(factory, {min(taken)}=...)."
        )
        raise FactorySignatureError(message)


def describe_factory(factory: Any) -> str:
    """Return the qualified name of a factory, or of what ``functools.partial`` binds.

    Never an address in memory, which would differ between processes.
    """
    while isinstance(factory, functools.partial):
        factory = factory.func
    name = getattr(factory, "__qualname__", None) or type(factory).__qualname__
    module = getattr(factory, "__module__", None) or type(factory).__module__
    return f"{module}.{name}"


def distribution_of(factory: Any) -> Tuple[str, str]:
    """Return the package that a factory comes from and its version, ``""`` each if it has none."""
    package = describe_factory(factory).partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", None)
    return (package, str(version)) if version is not None else ("", "")
