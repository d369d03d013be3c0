"""Every error and warning of the library, as one tree.

Each class also derives from the builtin that a caller would expect to catch. The first argument is
always the whole message; other data are keyword attributes with defaults, kept in ``__dict__``, so
that ``pickle`` carries them between processes (``BaseException.__reduce__`` stores ``args`` and
``__dict__``). The tree::

    SeedRegistryError
    +-- DeterministicStateError (RuntimeError)
    |   +-- ScopeError
    |   +-- RngStateError
    |   +-- DeviceError
    |   +-- UndeclaredRandomnessError
    +-- SeedDerivationError
    |   +-- InvalidSeedError (ValueError)
    |   +-- InvalidNameError (ValueError)
    |   +-- SeedCollisionError (RuntimeError)
    +-- StreamReuseError (RuntimeError)
    +-- ComponentCreationError (RuntimeError)
    |   +-- FactorySignatureError (TypeError)
    |   +-- UnsupportedSchedulerError (ValueError)
    +-- ComponentRegistrationError (ValueError)
    +-- InvalidOptionError (ValueError)
    +-- UnknownPurposeError (LookupError)
    +-- OutOfRangeError (IndexError)
    +-- LoaderStateError (ValueError)
    +-- SampleAddressError (TypeError)
    +-- UnrepeatableSamplerError (ValueError)
    +-- ShardingError (RuntimeError)
    +-- LedgerError
    |   +-- LedgerFormatError (ValueError)
    |   +-- LedgerIntegrityError (ValueError)
    +-- AttributionError
        +-- RecipeError (ValueError)
        +-- ReplayError (RuntimeError)

    SeedRegistryWarning (UserWarning)
    +-- StreamReuseWarning
    +-- SimilarPurposeWarning
    +-- UndeclaredRandomnessWarning
    +-- ShuffleIgnoredWarning
    +-- EpochRepeatedWarning
    +-- DatasetGeneratorWarning
    +-- UnsharedInitialParametersWarning
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

__all__ = [
    "AttributionError",
    "ComponentCreationError",
    "ComponentRegistrationError",
    "DatasetGeneratorWarning",
    "DeterministicStateError",
    "DeviceError",
    "EpochRepeatedWarning",
    "FactorySignatureError",
    "InvalidNameError",
    "InvalidOptionError",
    "InvalidSeedError",
    "LedgerError",
    "LedgerFormatError",
    "LedgerIntegrityError",
    "LoaderStateError",
    "OutOfRangeError",
    "RecipeError",
    "ReplayError",
    "RngStateError",
    "SampleAddressError",
    "ScopeError",
    "SeedCollisionError",
    "SeedDerivationError",
    "SeedRegistryError",
    "SeedRegistryWarning",
    "ShardingError",
    "ShuffleIgnoredWarning",
    "SimilarPurposeWarning",
    "StreamReuseError",
    "StreamReuseWarning",
    "UndeclaredRandomnessError",
    "UndeclaredRandomnessWarning",
    "UnknownPurposeError",
    "UnrepeatableSamplerError",
    "UnsharedInitialParametersWarning",
    "UnsupportedSchedulerError",
]


class SeedRegistryError(Exception):
    """Root of every error that the library raises on purpose."""


class DeterministicStateError(SeedRegistryError, RuntimeError):
    """Generators or switches of the process could not be set, read or put back."""


class ScopeError(DeterministicStateError):
    """A scope was entered or left in a way that could not be honoured.

    Attributes:
        holder: ``str``, the thread and the line that hold the scope, where there is one; else
            ``""``.
    """

    def __init__(self, message: str = "", *, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class RngStateError(DeterministicStateError):
    """A saved generator state is missing, foreign or corrupt. Nothing has been changed.

    Attributes:
        entries: names of the offending entries of the state dict.
    """

    def __init__(self, message: str = "", *, entries: Tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.entries = tuple(entries)


class DeviceError(DeterministicStateError):
    """A device has no generator here.

    Unknown, unavailable, or without random numbers at all (``meta``).
    """


class UndeclaredRandomnessError(DeterministicStateError):
    """Something drew random numbers outside every stream.

    Attributes:
        source: what drew: an operator (``"aten::bernoulli_"``), ``"random"`` or ``"numpy.random"``.
        device: device of the draw, or ``""``.
        line: the caller's ``file:line``, or ``""`` where it cannot be known.
    """

    def __init__(
        self, message: str = "", *, source: str = "", device: str = "", line: str = ""
    ) -> None:
        super().__init__(message)
        self.source = source
        self.device = device
        self.line = line


class SeedDerivationError(SeedRegistryError):
    """A seed could not be derived from what was given."""


class InvalidSeedError(SeedDerivationError, ValueError):
    """A master seed is not an integer in the range that the call accepts.

    Attributes:
        value: ``repr`` of what came.
    """

    def __init__(self, message: str = "", *, value: str = "") -> None:
        super().__init__(message)
        self.value = value


class InvalidNameError(SeedDerivationError, ValueError):
    """A purpose, instance id or coordinate is of another type, empty, or not encodable.

    Attributes:
        value: ``repr`` of what came.
    """

    def __init__(self, message: str = "", *, value: str = "") -> None:
        super().__init__(message)
        self.value = value


class SeedCollisionError(SeedDerivationError, RuntimeError):
    """Two different streams would get one seed.

    Attributes:
        seed: the shared seed, or None.
        first: ``(purpose, instance_id)`` that has the seed.
        second: ``(purpose, instance_id)`` that was refused.
    """

    def __init__(
        self,
        message: str = "",
        *,
        seed: Optional[int] = None,
        first: Tuple[Any, ...] = (),
        second: Tuple[Any, ...] = (),
    ) -> None:
        super().__init__(message)
        self.seed = seed
        self.first = tuple(first)
        self.second = tuple(second)


class StreamReuseError(SeedRegistryError, RuntimeError):
    """A stream was used a second time in a registry with ``on_reuse="forbid"``."""


class ComponentCreationError(SeedRegistryError, RuntimeError):
    """A factory failed while a component was built; its own exception is the ``__cause__``.

    Attributes:
        purpose: purpose of the stream that it was built from.
        instance_id: instance id of that stream.
    """

    def __init__(self, message: str = "", *, purpose: str = "", instance_id: Any = None) -> None:
        super().__init__(message)
        self.purpose = purpose
        self.instance_id = instance_id


class FactorySignatureError(ComponentCreationError, TypeError):
    """A factory cannot be called through a builder.

    Not callable, or it has a parameter that the builder takes.
    """


class UnsupportedSchedulerError(ComponentCreationError, ValueError):
    """No scheduler goes by that name."""


class ComponentRegistrationError(SeedRegistryError, ValueError):
    """An object cannot be registered as a component, or its purpose is taken."""


class InvalidOptionError(SeedRegistryError, ValueError):
    """A setting of the library is not one of its documented values."""


class UnknownPurposeError(SeedRegistryError, LookupError):
    """A purpose has no component, or is outside the closed set of the registry."""


class OutOfRangeError(SeedRegistryError, IndexError):
    """A position or an index lies outside the order that it is looked up in.

    Attributes:
        value: the first offending number, or ``"start:stop"``.
    """

    def __init__(self, message: str = "", *, value: str = "") -> None:
        super().__init__(message)
        self.value = value


class LoaderStateError(SeedRegistryError, ValueError):
    """A loader's state dict does not belong to this loader. Nothing has been changed."""


class SampleAddressError(SeedRegistryError, TypeError):
    """A sample was asked for without the epoch and step that its random numbers come from."""


class UnrepeatableSamplerError(SeedRegistryError, ValueError):
    """What a sampler draws cannot be made a function of (stream, epoch)."""


class ShardingError(SeedRegistryError, RuntimeError):
    """There is more than one rank and nothing says who shards the data."""


class LedgerError(SeedRegistryError):
    """A ledger could not be read, written or combined."""


class LedgerFormatError(LedgerError, ValueError):
    """A ledger file is not in a format that this version reads."""


class LedgerIntegrityError(LedgerError, ValueError):
    """A ledger contradicts itself or another one."""


class AttributionError(SeedRegistryError):
    """A training run cannot be attributed or retrained."""


class RecipeError(AttributionError, ValueError):
    """A training, its data or its measurement cannot be replayed and differentiated."""


class ReplayError(AttributionError, RuntimeError):
    """A training that was run again is not the one before, bit for bit."""


class SeedRegistryWarning(UserWarning):
    """Root of every warning that the library issues."""


class StreamReuseWarning(SeedRegistryWarning):
    """A stream was used again where that usually repeats random numbers by accident."""


class SimilarPurposeWarning(SeedRegistryWarning):
    """A purpose is one edit away from a known one, and nobody registered it."""


class UndeclaredRandomnessWarning(SeedRegistryWarning):
    """``audit(mode="warn")`` saw a draw outside every stream."""


class ShuffleIgnoredWarning(SeedRegistryWarning):
    """A factory's loader shuffled, and the documented function was not asked to."""


class EpochRepeatedWarning(SeedRegistryWarning):
    """An iterator was left early, and plain iteration begins the same epoch again.

    Or ``set_epoch`` goes back to a pass that came without one.
    """


class DatasetGeneratorWarning(SeedRegistryWarning):
    """A dataset holds a random number generator, whose copies repeat in every worker and epoch."""


class UnsharedInitialParametersWarning(SeedRegistryWarning):
    """Retrainings start from many parameters, which one model's attribution does not predict."""
