"""The state of a registry's generators, saved and loaded: format ``seedregistry.registry/1``."""

from __future__ import annotations

import collections.abc
from typing import TYPE_CHECKING, Any, Dict, Mapping

from seedregistry import rng
from seedregistry.common.identities import mismatches, show_mismatches
from seedregistry.errors import RngStateError
from seedregistry.ledger import records
from seedregistry.registry.global_state import refuse_in_scope

if TYPE_CHECKING:
    from seedregistry.registry.shared import Shared

_STATE_FORMAT = "seedregistry.registry/1"


def _describe_owner(master_seed: int, scheme: str) -> Dict[str, Any]:
    """Return what a state says of the registry that it belongs to."""
    # A str: a master seed may have 128 bits, more than the integers of many formats.
    return {"format": _STATE_FORMAT, "master_seed": str(master_seed), "scheme": scheme}


def save_state(shared: Shared, master_seed: int, scheme: str) -> Dict[str, Any]:
    """Return the state of the default generators and of those handed out.

    See ``SeedRegistry.state_dict``.
    """
    refuse_in_scope("state_dict was called")
    generators = rng.save_state(shared.handouts)
    shared.ledger.append(records.StateSaved(entries=tuple(sorted(generators))))
    return {**_describe_owner(master_seed, scheme), "generators": generators}


def load_state(shared: Shared, master_seed: int, scheme: str, state: Mapping[str, Any]) -> None:
    """Set the generators from a state, all of them or none.

    See ``SeedRegistry.load_state_dict``.
    """
    refuse_in_scope("load_state_dict was called")
    if not isinstance(state, collections.abc.Mapping):
        raise RngStateError(f"A state is a dict; got {type(state).__name__}. Nothing was changed.")

    expected = _describe_owner(master_seed, scheme)
    wrong = mismatches(state, expected)
    if wrong:
        values = show_mismatches(wrong, state, expected, here="was expected")
        message = f"The state does not belong to this registry: {values}. Nothing was changed."
        raise RngStateError(message, entries=tuple(wrong))

    odd = tuple(sorted({*map(str, state)} ^ {*expected, "generators"}))
    if odd:
        message = (
            f"The state must have the entries {', '.join([*expected, 'generators'])}; "
            f"missing or foreign: {', '.join(odd)}. Nothing was changed."
        )
        raise RngStateError(message, entries=odd)

    rng.load_state(state["generators"], shared.handouts)
    shared.ledger.append(records.StateLoaded(entries=tuple(sorted(state["generators"]))))
