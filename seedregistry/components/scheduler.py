"""The scheduler component.

A class of ``torch.optim.lr_scheduler``, or its name, called with the optimizer.
"""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any, Mapping, Tuple, final

import torch

from seedregistry.components.base import Component
from seedregistry.errors import UnsupportedSchedulerError

if TYPE_CHECKING:
    from seedregistry.stream import Stream


def _is_scheduler(member: Any) -> bool:
    module = torch.optim.lr_scheduler
    if (
        not inspect.isclass(member)
        or member is module.LRScheduler
        or member.__name__.startswith("_")
    ):
        return False
    return (
        issubclass(member, module.LRScheduler) or member is module.ReduceLROnPlateau
    )  # not a subclass in torch 2.2


def find_scheduler(name: str) -> Any:
    """Return the class of ``torch.optim.lr_scheduler`` with that name.

    Raises:
        UnsupportedSchedulerError: there is none; the message has them all and the nearest.
    """
    found = getattr(torch.optim.lr_scheduler, name, None)
    if _is_scheduler(found):
        return found
    known = sorted(
        known for known, member in vars(torch.optim.lr_scheduler).items() if _is_scheduler(member)
    )
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    message = (
        f"Unsupported scheduler type {name!r}. torch.optim.lr_scheduler has: "
        f"{', '.join(known)}.{hint}"
    )
    raise UnsupportedSchedulerError(message)


@final
class SchedulerComponent(Component):
    """Builds a scheduler: ``cls(optimizer, *args, **kwargs)`` inside the scope of ("scheduler", instance_id)."""

    purpose = "scheduler"

    def resolve(self, factory: Any) -> Any:
        """Return the class, looked up in ``torch.optim.lr_scheduler`` where a name was given.

        Raises:
            UnsupportedSchedulerError: no scheduler goes by that name.
            FactorySignatureError: as for every component.
        """
        return super().resolve(find_scheduler(factory) if isinstance(factory, str) else factory)

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Call the class."""
        return factory(*args, **kwargs)

    def describe_call(self, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the settings as they were given, the optimizer apart.

        Schedulers keep them under names that change.
        """
        return {"args": args[1:], "kwargs": kwargs}

    def describe(self, product: Any) -> Mapping[str, Any]:
        """Return the class and the learning rates that it starts from."""
        return {
            "class": f"{type(product).__module__}.{type(product).__qualname__}",
            "base_lrs": getattr(product, "base_lrs", None),
        }
