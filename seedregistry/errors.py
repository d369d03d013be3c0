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
    """Root of every error that the library raises on purpose.

    Each is also the builtin that a caller would expect, so that code which knows nothing of the
    library catches it too.

    Example:
        >>> from seedregistry import SeedRegistry, SeedRegistryError
        >>> try:
        ...     SeedRegistry(-1)
        ... except SeedRegistryError as error:
        ...     print(type(error).__name__, isinstance(error, ValueError))
        InvalidSeedError True
    """


class DeterministicStateError(SeedRegistryError, RuntimeError):
    """Generators or switches of the process could not be set, read or put back.

    Example:
        >>> from seedregistry import DeterministicStateError, SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> try:
        ...     with registry.stream("dropout").scope(0):
        ...         registry.state_dict()  # it would save the scope's state and not the program's
        ... except DeterministicStateError as error:
        ...     print(type(error).__name__)
        ScopeError
    """


class ScopeError(DeterministicStateError):
    """A scope was entered or left in a way that could not be honoured.

    Where there are several ranks, a scope has to be told what they share: dropout is usually to
    differ between the ranks, and initial parameters must be equal on all of them. Nothing in the
    code tells the two apart, and a wrong guess shows in no error, so none is made.

    Example:
        Nothing says what four ranks share (here torch is made to say that there are four):

        >>> import torch
        >>> from unittest import mock
        >>> from seedregistry import SeedRegistry
        >>> four_ranks = mock.patch.multiple(
        ...     "torch.distributed", is_initialized=lambda: True, get_world_size=lambda: 4
        ... )
        >>> dropout = SeedRegistry(42).stream("dropout", "training")
        >>> epoch, step, rank = 0, 7, 3
        >>> with four_ranks, dropout.scope(epoch, step):
        ...     mask = torch.rand(3)
        Traceback (most recent call last):
            ...
        seedregistry.errors.ScopeError: There are 4 ranks and scope() of 'dropout/training' was ...

        With ``rank=rank`` each rank draws numbers that no other rank draws, and with ``rank=None``
        all ranks draw the same:

        >>> with four_ranks, dropout.scope(epoch, step, rank=rank):
        ...     mask = torch.rand(3)
        >>> with four_ranks, dropout.scope(epoch, step, rank=None):
        ...     shared_mask = torch.rand(3)
        >>> torch.equal(mask, shared_mask)
        False

    Attributes:
        holder: ``str``, the thread and the line that hold the scope, where there is one; else
            ``""``.
    """

    def __init__(self, message: str = "", *, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class RngStateError(DeterministicStateError):
    """A saved generator state is missing, foreign or corrupt. Nothing has been changed.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42).load_state_dict(SeedRegistry(7).state_dict())
        Traceback (most recent call last):
            ...
        seedregistry.errors.RngStateError: The state does not belong to this registry: ...

    Attributes:
        entries: names of the offending entries of the state dict.
    """

    def __init__(self, message: str = "", *, entries: Tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.entries = tuple(entries)


class DeviceError(DeterministicStateError):
    """A device is unknown or not available here, or has no random numbers at all (``meta``).

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42).generator("noise", device="meta")
        Traceback (most recent call last):
            ...
        seedregistry.errors.DeviceError: Device 'meta' holds no data and has no generator. ...
    """


class UndeclaredRandomnessError(DeterministicStateError):
    """Something drew random numbers outside every stream.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> with SeedRegistry(42).audit():
        ...     noise = torch.rand(3)
        Traceback (most recent call last):
            ...
        seedregistry.errors.UndeclaredRandomnessError: aten::rand drew from the default ...

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
    """A seed could not be derived from what was given.

    Example:
        >>> from seedregistry import SeedDerivationError, SeedRegistry
        >>> try:
        ...     SeedRegistry(42).seed("")
        ... except SeedDerivationError as error:
        ...     print(error)
        A purpose must not be empty; say what the randomness is for.
    """


class InvalidSeedError(SeedDerivationError, ValueError):
    """A master seed is not an integer in the range that the call accepts.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry("42")
        Traceback (most recent call last):
            ...
        seedregistry.errors.InvalidSeedError: The master seed must be an integer... Did you mean 42?

    Attributes:
        value: ``repr`` of what came.
    """

    def __init__(self, message: str = "", *, value: str = "") -> None:
        super().__init__(message)
        self.value = value


class InvalidNameError(SeedDerivationError, ValueError):
    """A purpose, instance id or coordinate is of another type, empty, or not encodable.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42).seed("model", 1.5)
        Traceback (most recent call last):
            ...
        seedregistry.errors.InvalidNameError: An instance id must be None, an int or a str; ...

    Attributes:
        value: ``repr`` of what came.
    """

    def __init__(self, message: str = "", *, value: str = "") -> None:
        super().__init__(message)
        self.value = value


class SeedCollisionError(SeedDerivationError, RuntimeError):
    """Two different streams would get one seed.

    Under the scheme ``sha256-31`` a seed has 31 bits. Of experiments with ten thousand streams
    about one in forty has two with the same seed, and these would draw the same numbers under two
    names. ``7`` and ``"7"`` always share theirs, since the documented formula writes both in one
    way.

    Example:
        Two of many retrainings would begin with equal parameters:

        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> registry.seed("model", "lds_23202")
        571989311
        >>> registry.seed("model", "lds_29047")
        Traceback (most recent call last):
            ...
        seedregistry.errors.SeedCollisionError: Streams ('model', 'lds_23202') and ('model', ...

        Rename one of them, where the other seeds have to stay as they are:

        >>> registry.seed("model", "retraining_29047") == 571989311
        False

        In a new experiment take the scheme that sets generators from a stream's key, which has 256
        bits. ``registry.reserve`` asks for many names at once, before the first training:

        >>> registry = SeedRegistry(42, scheme="sha256-256")
        >>> registry.reserve("model", [f"lds_{i}" for i in (23202, 29047)])

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
    """A stream was used a second time in a registry with ``on_reuse="forbid"``.

    A generator of a stream begins at the stream's start, whenever it is made. A loop that makes one
    in each epoch draws the same numbers in each, which looks like randomness and is none.

    Example:
        The second epoch would have the noise of the first:

        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42, on_reuse="forbid")
        >>> for epoch in range(2):
        ...     noise = torch.rand(3, generator=registry.generator("noise", "training"))
        Traceback (most recent call last):
            ...
        seedregistry.errors.StreamReuseError: A second cpu generator of stream 'noise/training' ...

        A position is a start for each epoch, and may be visited as often as you like:

        >>> stream = registry.stream("noise", "training")
        >>> first, second = (
        ...     torch.rand(3, generator=stream.at(epoch).generator()) for epoch in range(2)
        ... )
        >>> torch.equal(first, second)
        False

        One generator for all epochs, made before the loop, does it too, as long as nothing is
        resumed in between:

        >>> generator = registry.generator("noise", "all epochs")
        >>> first, second = (torch.rand(3, generator=generator) for epoch in range(2))
        >>> torch.equal(first, second)
        False
    """


class ComponentCreationError(SeedRegistryError, RuntimeError):
    """A factory failed while a component was built; its own exception is the ``__cause__``.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> def load_weights():
        ...     raise OSError("no weights here")
        >>> SeedRegistry(42).model(load_weights)
        Traceback (most recent call last):
            ...
        seedregistry.errors.ComponentCreationError: ...: OSError: no weights here

    Attributes:
        purpose: purpose of the stream that it was built from.
        instance_id: instance id of that stream.
    """

    def __init__(self, message: str = "", *, purpose: str = "", instance_id: Any = None) -> None:
        super().__init__(message)
        self.purpose = purpose
        self.instance_id = instance_id


class FactorySignatureError(ComponentCreationError, TypeError):
    """What a builder was given cannot be called, or has a parameter that the builder itself takes.

    Example:
        >>> from torch import nn
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42).model("Linear", 3, 2)  # the class itself is meant: nn.Linear
        Traceback (most recent call last):
            ...
        seedregistry.errors.FactorySignatureError: The model builder needs a class or a function ...
    """


class UnsupportedSchedulerError(ComponentCreationError, ValueError):
    """Torch has no scheduler of that name.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42).scheduler("StepRL", None, step_size=3)
        Traceback (most recent call last):
            ...
        seedregistry.errors.UnsupportedSchedulerError: Unsupported ... Did you mean 'StepLR'?
    """


class ComponentRegistrationError(SeedRegistryError, ValueError):
    """An object cannot be registered as a component, or its purpose is taken.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.components import ModelComponent
        >>> SeedRegistry(42).register(ModelComponent)  # an instance is meant
        Traceback (most recent call last):
            ...
        seedregistry.errors.ComponentRegistrationError: register takes an instance of ...
    """


class InvalidOptionError(SeedRegistryError, ValueError):
    """A setting of the library is not one of its documented values.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42, on_reuse="never")
        Traceback (most recent call last):
            ...
        seedregistry.errors.InvalidOptionError: on_reuse must be one of 'auto', ...; got 'never'.
    """


class UnknownPurposeError(SeedRegistryError, LookupError):
    """A purpose has no component, or is outside the closed set of the registry.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42, purposes=["model", "dropout"]).seed("dropuot")
        Traceback (most recent call last):
            ...
        seedregistry.errors.UnknownPurposeError: Purpose 'dropuot' is not in the closed set ...
    """


class OutOfRangeError(SeedRegistryError, IndexError):
    """A position or an index lies outside the order that it is looked up in.

    Example:
        >>> from seedregistry.data import IndexedPermutation
        >>> IndexedPermutation(bytes(32), 10).take([3, 10])
        Traceback (most recent call last):
            ...
        seedregistry.errors.OutOfRangeError: Each position must be in ...

    Attributes:
        value: the first offending number, or ``"start:stop"``.
    """

    def __init__(self, message: str = "", *, value: str = "") -> None:
        super().__init__(message)
        self.value = value


class LoaderStateError(SeedRegistryError, ValueError):
    """A loader's state dict does not belong to this loader. Nothing has been changed.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> saved = SeedRegistry(42).dataloader(range(8), batch_size=2).state_dict()
        >>> SeedRegistry(42).dataloader(range(8), batch_size=4).load_state_dict(saved)
        Traceback (most recent call last):
            ...
        seedregistry.errors.LoaderStateError: The state does not belong to this loader: ...
    """


class SampleAddressError(SeedRegistryError, TypeError):
    """A sample was asked for without the epoch and step that its random numbers come from.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> loader = SeedRegistry(42).dataloader(range(8), batch_size=2)
        >>> loader.dataset[5]  # loader.dataset.dataset[5] is the sample as it is
        Traceback (most recent call last):
            ...
        seedregistry.errors.SampleAddressError: The dataset of a seeded loader was asked for 5 ...
    """


class UnrepeatableSamplerError(SeedRegistryError, ValueError):
    """What a sampler draws cannot be made a function of (stream, epoch).

    Example:
        >>> import random
        >>> from seedregistry import SeedRegistry
        >>> class Shuffler:
        ...     def __init__(self):
        ...         self.rng = random.Random(0)
        ...
        ...     def __len__(self):
        ...         return 8
        ...
        ...     def __iter__(self):
        ...         return iter(self.rng.sample(range(8), 8))
        >>> SeedRegistry(42).dataloader(range(8), sampler=Shuffler())
        Traceback (most recent call last):
            ...
        seedregistry.errors.UnrepeatableSamplerError: Shuffler holds random number generators ...
    """


class ShardingError(SeedRegistryError, RuntimeError):
    """Nothing says how several ranks share the data, or they cannot share it in that way.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> SeedRegistry(42).dataloader(range(10), global_batch_size=5, shard=(0, 2))
        Traceback (most recent call last):
            ...
        seedregistry.errors.ShardingError: global_batch_size=5 cannot be divided by 2 ranks.
    """


class LedgerError(SeedRegistryError):
    """A ledger could not be read, written or combined.

    Example:
        >>> from seedregistry import Ledger
        >>> Ledger.load("no_such_ledger.jsonl")
        Traceback (most recent call last):
            ...
        seedregistry.errors.LedgerError: Could not read the ledger 'no_such_ledger.jsonl': ...
    """


class LedgerFormatError(LedgerError, ValueError):
    """A ledger file is not in a format that this version reads.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seedregistry import Ledger
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "ledger.jsonl"
        ...     _ = path.write_text("epoch,loss")
        ...     Ledger.load(path)
        Traceback (most recent call last):
            ...
        seedregistry.errors.LedgerFormatError: '...ledger.jsonl' has no line of a ledger: ...
    """


class LedgerIntegrityError(LedgerError, ValueError):
    """A ledger contradicts itself or another one.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seedregistry import Ledger, SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> registry.note(lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "ledger.jsonl"
        ...     registry.ledger.save(path)
        ...     _ = path.write_text(path.read_text().replace("0.1", "0.2"))
        ...     Ledger.load(path).save(path)  # it loads, so that it can be read and verified
        Traceback (most recent call last):
            ...
        seedregistry.errors.LedgerIntegrityError: This ledger was loaded from a damaged file ...
    """


class AttributionError(SeedRegistryError):
    """A training cannot be attributed or retrained.

    Example:
        >>> from seedregistry import AttributionError
        >>> from seedregistry.attribution import Recipe
        >>> try:
        ...     Recipe(model=None, dataset=[], epochs=0, batch_size=2)
        ... except AttributionError as error:
        ...     print(type(error).__name__)
        RecipeError
    """


class RecipeError(AttributionError, ValueError):
    """A training, its data or its measurement cannot be replayed and differentiated.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from seedregistry.attribution import Recipe
        >>> dataset = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> Recipe(model=torch.nn.Identity, dataset=dataset, epochs=0, batch_size=2)
        Traceback (most recent call last):
            ...
        seedregistry.errors.RecipeError: This is no recipe: epochs ...
    """


class ReplayError(AttributionError, RuntimeError):
    """A training that was run again is not the one before, bit for bit.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, lds, losses_of, magic
        >>> inputs, targets = torch.arange(4.0)[:, None], torch.tensor([0, 0, 1, 1])
        >>> recipe = Recipe(
        ...     model=lambda: torch.nn.Linear(1, 2),
        ...     dataset=TensorDataset(inputs, targets),
        ...     epochs=1,
        ...     batch_size=2,
        ... )
        >>> first, second = (Training(SeedRegistry(seed), recipe) for seed in (1, 2))
        >>> losses = losses_of(inputs, targets)
        >>> lds(second, losses, magic(first, losses))
        Traceback (most recent call last):
            ...
        seedregistry.errors.ReplayError: The scores are of another training: ...
    """


class SeedRegistryWarning(UserWarning):
    """Root of every warning that the library issues.

    Example:
        Tests make errors of all of them:

        >>> import warnings
        >>> from seedregistry import SeedRegistry, SeedRegistryWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", SeedRegistryWarning)
        ...     SeedRegistry(42).seed("modle")
        Traceback (most recent call last):
            ...
        seedregistry.errors.SimilarPurposeWarning: Purpose 'modle' is new and one edit away ...
    """


class StreamReuseWarning(SeedRegistryWarning):
    """A stream was used again where that usually repeats random numbers by accident.

    See :class:`StreamReuseError` for the code that is meant instead.

    Example:
        >>> import warnings
        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     first, second = (registry.generator("noise") for epoch in range(2))
        >>> print(caught[-1].message)
        A second cpu generator of stream 'noise' was handed out at ...
    """


class SimilarPurposeWarning(SeedRegistryWarning):
    """A purpose is one edit away from one that is known, and nobody registered it.

    Example:
        >>> import warnings
        >>> from seedregistry import SeedRegistry
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     seed = SeedRegistry(42).seed("modle")
        >>> print(caught[-1].message)
        Purpose 'modle' is new and one edit away from 'model'. ...
    """


class UndeclaredRandomnessWarning(SeedRegistryWarning):
    """An audit in mode ``"warn"`` saw a draw outside every stream.

    Example:
        >>> import warnings
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     with SeedRegistry(42).audit(mode="warn"):
        ...         noise = torch.rand(3)
        >>> print(caught[-1].message)
        aten::rand drew from the default generator of 'cpu' outside every stream, ...
    """


class ShuffleIgnoredWarning(SeedRegistryWarning):
    """A factory's loader shuffles, and ``create_deterministic_dataloader`` was not asked to.

    Example:
        >>> import warnings
        >>> from torch.utils.data import DataLoader
        >>> from seedregistry import create_deterministic_dataloader
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     loader = create_deterministic_dataloader(
        ...         42, lambda: DataLoader(range(4), shuffle=True)
        ...     )
        >>> [int(sample) for sample in loader]  # shuffle=True for the function itself is missing
        [0, 1, 2, 3]
        >>> print(caught[-1].message)
        The factory's loader shuffles, and create_deterministic_dataloader was not asked to: ...
    """


class EpochRepeatedWarning(SeedRegistryWarning):
    """An iterator was left early, and plain iteration begins the same epoch again.

    Or ``set_epoch`` goes back to a pass that came without one.

    Example:
        >>> import itertools, warnings
        >>> from seedregistry import SeedRegistry
        >>> loader = SeedRegistry(42).dataloader(range(8), batch_size=2)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     first, second = (list(itertools.islice(loader, 2)) for _ in range(2))
        >>> print(caught[-1].message)
        Epoch 0 of stream 'dataloader' was left after 2 batches and is run again ...
    """


class DatasetGeneratorWarning(SeedRegistryWarning):
    """A dataset holds a random number generator, whose copies repeat in every worker and epoch.

    Example:
        >>> import random, warnings
        >>> from seedregistry import SeedRegistry
        >>> class Jitter:
        ...     def __init__(self):
        ...         self.rng = random.Random(0)
        ...
        ...     def __len__(self):
        ...         return 8
        ...
        ...     def __getitem__(self, index):
        ...         return index + self.rng.random()
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     loader = SeedRegistry(42).dataloader(Jitter(), batch_size=2)
        >>> print(caught[-1].message)
        What stream 'dataloader' loads holds generators of its own: dataset.rng (random.Random). ...
    """


class UnsharedInitialParametersWarning(SeedRegistryWarning):
    """Retrainings start from many parameters, which one model's attribution does not predict.

    Example:
        >>> import types, warnings
        >>> from seedregistry import UnsharedInitialParametersWarning
        >>> from seedregistry.attribution import setup_lds_validation
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", UnsharedInitialParametersWarning)
        ...     setup_lds_validation(types.SimpleNamespace(SEED=42), num_models=2)
        Traceback (most recent call last):
            ...
        seedregistry.errors.UnsharedInitialParametersWarning: The models of setup_lds_validation ...
    """
