"""The ledger: records of every derivation and of what was built from it. Without torch."""

from seedregistry.ledger.ledger import FORMAT, Ledger
from seedregistry.ledger.records import (
    Audited,
    Built,
    Derivation,
    Determinism,
    EnvironmentSeen,
    EpochStarted,
    HandedOut,
    LateSeeded,
    Note,
    Record,
    Run,
    Scoped,
    Split,
    StateLoaded,
    StateSaved,
    Warned,
)

__all__ = [
    "FORMAT",
    "Audited",
    "Built",
    "Derivation",
    "Determinism",
    "EnvironmentSeen",
    "EpochStarted",
    "HandedOut",
    "LateSeeded",
    "Ledger",
    "Note",
    "Record",
    "Run",
    "Scoped",
    "Split",
    "StateLoaded",
    "StateSaved",
    "Warned",
]
