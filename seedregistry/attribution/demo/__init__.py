"""The demonstration: MAGIC and retrainings on real data, with ledger, scores and report."""

from typing import TYPE_CHECKING

from seedregistry.common.lazy import lazy_door

if TYPE_CHECKING:
    from seedregistry.attribution.demo.plans import Plan, cifar10_plan, digits_plan
    from seedregistry.attribution.demo.results import Demo
    from seedregistry.attribution.demo.run import run_demo

__getattr__, __dir__ = lazy_door(
    __name__,
    {
        "seedregistry.attribution.demo.plans": ("Plan", "cifar10_plan", "digits_plan"),
        "seedregistry.attribution.demo.results": ("Demo",),
        "seedregistry.attribution.demo.run": ("run_demo",),
    },
)

__all__ = [
    "Demo",
    "Plan",
    "cifar10_plan",
    "digits_plan",
    "run_demo",
]
