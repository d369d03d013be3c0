"""The dataloader component: a loader built from a dataset, or rebuilt from a factory's loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, FrozenSet, Mapping, final

from seedregistry.components.base import RESERVED, Component
from seedregistry.data.options import OPTION_NAMES, LoaderOptions

if TYPE_CHECKING:
    from seedregistry.data.loader import SeededDataLoader
    from seedregistry.stream import Stream


@final
class DataLoaderComponent(Component):
    """Builds a loader whose order, samples and batches come from ("dataloader", instance_id).

    What ``registry.dataloader`` builds with.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.components import DataLoaderComponent
        >>> loader = SeedRegistry(42).dataloader(range(10), instance_id="training", batch_size=4)
        >>> DataLoaderComponent().describe(loader)["batch_size"]
        4
    """

    purpose = "dataloader"
    reserved: FrozenSet[str] = RESERVED | OPTION_NAMES

    def resolve(self, factory: Any) -> Any:
        """Return the source: a dataset as it is, a factory after the checks of every component.

        Raises:
            FactorySignatureError: neither a dataset nor callable, or a factory with a parameter
                that the builder keeps for itself.
        """
        from seedregistry.data.build import is_dataset

        return factory if is_dataset(factory) else super().resolve(factory)

    def draws(self, factory: Any) -> bool:
        """Return whether a user's factory will be called: ``DataLoader`` itself draws nothing."""
        from seedregistry.data.build import is_dataset

        return not is_dataset(factory)

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> SeededDataLoader:
        """Build a loader from a dataset, or rebuild a factory's with every argument kept.

        Args:
            stream: the stream.
            factory: what :meth:`resolve` returned.
            *args: for the factory.
            **kwargs: the options of ``registry.dataloader``, and what is left for ``DataLoader`` or
                the factory.

        Raises:
            InvalidOptionError: an option is not one of its values, or some exclude each other.
            FactorySignatureError: the factory returned no loader.
            UnrepeatableSamplerError: a sampler's draws cannot be made a function of (stream,
                epoch).
        """
        from seedregistry.data.build import build_loader

        given = OPTION_NAMES & kwargs.keys()
        options = LoaderOptions(**{name: kwargs.pop(name) for name in given})
        return build_loader(stream, factory, args, kwargs, options)

    def describe(self, product: SeededDataLoader) -> Mapping[str, Any]:
        """Return the dataset's class, the length, the batch size and what defines the order.

        The number of workers is circumstance and left out.
        """
        return product.describe()
