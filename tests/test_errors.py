"""Errors and warnings: one tree, the documented builtins, pickling."""

from __future__ import annotations

import inspect
import pickle

import pytest

from seedregistry import errors

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, (errors.SeedRegistryError, Warning))
]

TREE = {
    "SeedRegistryError": (Exception,),
    "DeterministicStateError": ("SeedRegistryError", RuntimeError),
    "ScopeError": ("DeterministicStateError",),
    "RngStateError": ("DeterministicStateError",),
    "DeviceError": ("DeterministicStateError",),
    "UndeclaredRandomnessError": ("DeterministicStateError",),
    "SeedDerivationError": ("SeedRegistryError",),
    "InvalidSeedError": ("SeedDerivationError", ValueError),
    "InvalidNameError": ("SeedDerivationError", ValueError),
    "SeedCollisionError": ("SeedDerivationError", RuntimeError),
    "StreamReuseError": ("SeedRegistryError", RuntimeError),
    "ComponentCreationError": ("SeedRegistryError", RuntimeError),
    "FactorySignatureError": ("ComponentCreationError", TypeError),
    "UnsupportedSchedulerError": ("ComponentCreationError", ValueError),
    "ComponentRegistrationError": ("SeedRegistryError", ValueError),
    "InvalidOptionError": ("SeedRegistryError", ValueError),
    "UnknownPurposeError": ("SeedRegistryError", LookupError),
    "OutOfRangeError": ("SeedRegistryError", IndexError),
    "LoaderStateError": ("SeedRegistryError", ValueError),
    "SampleAddressError": ("SeedRegistryError", TypeError),
    "UnrepeatableSamplerError": ("SeedRegistryError", ValueError),
    "ShardingError": ("SeedRegistryError", RuntimeError),
    "LedgerError": ("SeedRegistryError",),
    "LedgerFormatError": ("LedgerError", ValueError),
    "LedgerIntegrityError": ("LedgerError", ValueError),
    "AttributionError": ("SeedRegistryError",),
    "RecipeError": ("AttributionError", ValueError),
    "ReplayError": ("AttributionError", RuntimeError),
    "SeedRegistryWarning": (UserWarning,),
    "StreamReuseWarning": ("SeedRegistryWarning",),
    "SimilarPurposeWarning": ("SeedRegistryWarning",),
    "UndeclaredRandomnessWarning": ("SeedRegistryWarning",),
    "ShuffleIgnoredWarning": ("SeedRegistryWarning",),
    "EpochRepeatedWarning": ("SeedRegistryWarning",),
    "DatasetGeneratorWarning": ("SeedRegistryWarning",),
    "UnsharedInitialParametersWarning": ("SeedRegistryWarning",),
}


def test_the_tree():
    """Every class stands where the tree says, under the builtin that callers expect; KeyError is
    never one of them."""
    found = {
        cls.__name__: tuple(
            b.__name__ if b.__module__ == errors.__name__ else b for b in cls.__bases__
        )
        for cls in CLASSES
    }
    assert found == TREE
    assert not any(issubclass(cls, KeyError) for cls in CLASSES)


def test_the_docstring_draws_the_tree():
    """The module's docstring names every class."""
    for name in TREE:
        assert name in errors.__doc__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_pickling(cls):
    """Every class survives pickling with its message and its attributes."""
    keywords = {
        name: {"str": "text", "tuple": ("model", 7), "NoneType": 3}[
            type(parameter.default).__name__
        ]
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    error = cls("what happened", **keywords)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(error, protocol))
        assert type(twin) is cls
        assert str(twin) == "what happened"
        assert twin.__dict__ == error.__dict__ == keywords


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_defaults(cls):
    """Every class can be made from a message alone."""
    assert cls("message").args == ("message",)
