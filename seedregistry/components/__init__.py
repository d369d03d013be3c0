"""Components: classes that know how to build one kind of thing from a stream."""

from typing import TYPE_CHECKING

from seedregistry.common.lazy import lazy_door

if TYPE_CHECKING:
    from seedregistry.components.base import Component
    from seedregistry.components.dataloader import DataLoaderComponent
    from seedregistry.components.model import ModelComponent, model_digest
    from seedregistry.components.optimizer import OptimizerComponent
    from seedregistry.components.scheduler import SchedulerComponent

__getattr__, __dir__ = lazy_door(
    __name__,
    {
        "seedregistry.components.base": ("Component",),
        "seedregistry.components.dataloader": ("DataLoaderComponent",),
        "seedregistry.components.model": ("ModelComponent", "model_digest"),
        "seedregistry.components.optimizer": ("OptimizerComponent",),
        "seedregistry.components.scheduler": ("SchedulerComponent",),
    },
)

__all__ = [
    "Component",
    "DataLoaderComponent",
    "ModelComponent",
    "OptimizerComponent",
    "SchedulerComponent",
    "model_digest",
]
