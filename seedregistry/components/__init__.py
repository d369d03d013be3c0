"""Components: classes that know how to build one kind of thing from a stream."""

from seedregistry.components.base import Component
from seedregistry.components.dataloader import DataLoaderComponent
from seedregistry.components.model import ModelComponent, model_digest
from seedregistry.components.optimizer import OptimizerComponent
from seedregistry.components.scheduler import SchedulerComponent

__all__ = [
    "Component",
    "DataLoaderComponent",
    "ModelComponent",
    "OptimizerComponent",
    "SchedulerComponent",
    "model_digest",
]
