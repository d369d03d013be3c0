"""The dataloader component: a loader built from a dataset, or rebuilt from a factory's loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, FrozenSet, Mapping, final

from seedregistry.components.base import RESERVED, Component
from seedregistry.data.build import build_loader, is_dataset

if TYPE_CHECKING:
    from seedregistry.data.loader import SeededDataLoader
    from seedregistry.stream import Stream


@final
class DataLoaderComponent(Component):
    """Builds a loader whose order is that of ("dataloader", instance_id)."""

    purpose = "dataloader"
    reserved: FrozenSet[str] = RESERVED | {"order", "shard", "global_batch_size", "epochs"}

    def resolve(self, factory: Any) -> Any:
        """Return the source: a dataset as it is, a factory after the checks of every component.

        Raises:
            FactorySignatureError: a built loader, or as for every component.
        """
        return factory if is_dataset(factory) else super().resolve(factory)

    def draws(self, factory: Any) -> bool:
        """Return whether a user's factory will be called.

        ``DataLoader``'s own constructor draws nothing.
        """
        return not is_dataset(factory)

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> SeededDataLoader:
        """Build from a dataset, or call the factory and rebuild its loader with every argument kept."""
        return build_loader(stream, factory, *args, **kwargs)

    def describe(self, product: SeededDataLoader) -> Mapping[str, Any]:
        """Return length, batch size and the order's definition.

        Worker counts are circumstance and left out.
        """
        return product.describe()
