"""The ledger: records of what was derived and built, in memory and on disk, without torch."""

from typing import TYPE_CHECKING

from seedregistry.common.lazy import lazy_door

if TYPE_CHECKING:
    from seedregistry.ledger.chain import FORMAT
    from seedregistry.ledger.diff import LedgerDiff, PurposeDiff, StreamDiff
    from seedregistry.ledger.ledger import Ledger
    from seedregistry.ledger.reader import verify_file
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
        Unknown,
        Warned,
    )
    from seedregistry.ledger.verification import Fault, Verification

__getattr__, __dir__ = lazy_door(
    __name__,
    {
        "seedregistry.ledger.chain": ("FORMAT",),
        "seedregistry.ledger.diff": ("LedgerDiff", "PurposeDiff", "StreamDiff"),
        "seedregistry.ledger.ledger": ("Ledger",),
        "seedregistry.ledger.reader": ("verify_file",),
        "seedregistry.ledger.records": (
            "Audited",
            "Built",
            "Derivation",
            "Determinism",
            "EnvironmentSeen",
            "EpochStarted",
            "HandedOut",
            "LateSeeded",
            "Note",
            "Record",
            "Run",
            "Scoped",
            "Split",
            "StateLoaded",
            "StateSaved",
            "Unknown",
            "Warned",
        ),
        "seedregistry.ledger.verification": ("Fault", "Verification"),
    },
)

__all__ = [
    "FORMAT",
    "Audited",
    "Built",
    "Derivation",
    "Determinism",
    "EnvironmentSeen",
    "EpochStarted",
    "Fault",
    "HandedOut",
    "LateSeeded",
    "Ledger",
    "LedgerDiff",
    "Note",
    "PurposeDiff",
    "Record",
    "Run",
    "Scoped",
    "Split",
    "StateLoaded",
    "StateSaved",
    "StreamDiff",
    "Unknown",
    "Verification",
    "Warned",
    "verify_file",
]
