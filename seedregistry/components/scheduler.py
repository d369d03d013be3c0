"""The scheduler component: a class of ``torch.optim.lr_scheduler``, or its name, is called."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Mapping, Tuple, final

import torch

from seedregistry.common.options import did_you_mean
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
    # ReduceLROnPlateau is no subclass in torch 2.2.
    return issubclass(member, module.LRScheduler) or member is module.ReduceLROnPlateau


def find_scheduler(name: str) -> Any:
    """Return the class of ``torch.optim.lr_scheduler`` with that name.

    Raises:
        UnsupportedSchedulerError: there is none; the message has them all and the nearest.
    """
    scheduler = getattr(torch.optim.lr_scheduler, name, None)
    if _is_scheduler(scheduler):
        return scheduler

    names = sorted(
        name for name, member in vars(torch.optim.lr_scheduler).items() if _is_scheduler(member)
    )
    message = (
        f"Unsupported scheduler type {name!r}. torch.optim.lr_scheduler has: "
        f"{', '.join(names)}.{did_you_mean(name, names)}"
    )
    raise UnsupportedSchedulerError(message)


@final
class SchedulerComponent(Component):
    """Builds a scheduler, ``cls(optimizer, *args, **kwargs)``, from ("scheduler", instance_id).

    What ``registry.scheduler`` builds with. The class is called in the stream's scope.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> params = [torch.zeros(3, requires_grad=True)]
        >>> sgd = registry.optimizer(torch.optim.SGD, params, instance_id="a", lr=0.1)
        >>> registry.scheduler("StepRL", sgd, instance_id="a", step_size=3)
        Traceback (most recent call last):
            ...
        seedregistry.errors.UnsupportedSchedulerError: Unsupported ... Did you mean 'StepLR'?
        >>> registry.scheduler("StepLR", sgd, instance_id="a", step_size=3).get_last_lr()
        [0.1]
    """

    purpose = "scheduler"

    def resolve(self, factory: Any) -> Any:
        """Return the class, looked up in ``torch.optim.lr_scheduler`` where a name was given.

        Raises:
            UnsupportedSchedulerError: no scheduler goes by that name.
            FactorySignatureError: not callable, or it has a parameter that the builder keeps for
                itself.
        """
        return super().resolve(find_scheduler(factory) if isinstance(factory, str) else factory)

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Call the class."""
        return factory(*args, **kwargs)

    def describe_call(self, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments but the optimizer; schedulers keep them under names that change."""
        return {"args": args[1:], "kwargs": kwargs}

    def describe(self, product: Any) -> Mapping[str, Any]:
        """Return the class and the learning rates that it starts from."""
        return {
            "class": f"{type(product).__module__}.{type(product).__qualname__}",
            "base_lrs": getattr(product, "base_lrs", None),
        }
