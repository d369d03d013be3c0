"""The scheduler component: a class of ``torch.optim.lr_scheduler``, or its name, called with the optimizer."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any, List, Mapping, final

import torch

from seedregistry.components.base import Component
from seedregistry.errors import UnsupportedSchedulerError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

__all__ = ["SchedulerComponent", "find_scheduler"]

_NOT_SETTINGS = frozenset({"optimizer", "last_epoch", "verbose"})


def _known() -> List[str]:
    module = torch.optim.lr_scheduler
    return sorted(
        name
        for name, member in vars(module).items()
        if inspect.isclass(member)
        and not name.startswith("_")
        and (issubclass(member, module.LRScheduler) or name == "ReduceLROnPlateau")
        and name != "LRScheduler"
    )


def find_scheduler(name: str) -> Any:
    """Return the class of ``torch.optim.lr_scheduler`` with that name.

    Raises:
        UnsupportedSchedulerError: there is none.
    """
    known = _known()
    if name in known:
        return getattr(torch.optim.lr_scheduler, name)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    message = f"Unsupported scheduler type {name!r}. torch.optim.lr_scheduler has: {', '.join(known)}.{hint}"
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

    def describe(self, product: Any) -> Mapping[str, Any]:
        """Return the class and its public settings."""
        settings = {
            name: value for name, value in vars(product).items() if not name.startswith("_") and name not in _NOT_SETTINGS
        }
        return {"class": f"{type(product).__module__}.{type(product).__qualname__}", "settings": settings}
