"""The model component: a factory called in the stream's scope, and a digest of what it made."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, final

import torch
from torch.nn.parameter import is_lazy

from seedregistry.common.digest import PiecesDigest
from seedregistry.common.tensors import tensor_bytes
from seedregistry.components.base import Component

if TYPE_CHECKING:
    from seedregistry.stream import Stream


def model_digest(model: torch.nn.Module) -> Optional[str]:
    """Return SHA-256 over the parameters and buffers of a model: names, dtypes, shapes and bytes.

    The order in which they were registered does not count, and neither does the device.

    Args:
        model: the model; nothing of it changes.

    Returns:
        64 hexadecimal digits. None where there are no bytes, that is on device ``meta`` or before
        lazy modules are materialised; and where a tensor is one of a class that stands for other
        tensors, such as a ``DTensor``, of which this process has a share alone.

    Example:
        >>> from torch import nn
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.components import model_digest
        >>> first = SeedRegistry(42).model(nn.Linear, 2, 1, instance_id="training")
        >>> again = SeedRegistry(42).model(nn.Linear, 2, 1, instance_id="training")
        >>> model_digest(first) == model_digest(again)
        True
    """
    digest = PiecesDigest("seedregistry.model/1")
    for kind, named in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in sorted(named):
            if is_lazy(tensor) or tensor.is_meta or _stands_for_others(tensor):
                return None
            digest.add(f"{kind}:{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.add(tensor_bytes(tensor))
    return digest.hexdigest()


def _stands_for_others(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is of a class with operators of its own, such as a ``DTensor``.

    Its bytes are not asked for: to put a sharded tensor together all ranks would have to meet.
    """
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


@final
class ModelComponent(Component):
    """Builds a model, ``factory(*args, **kwargs)``, in the scope of ("model", instance_id).

    What ``registry.model`` builds with.

    Example:
        >>> from torch import nn
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.components import ModelComponent
        >>> model = SeedRegistry(42).model(nn.Linear, 2, 1, instance_id="training")
        >>> ModelComponent().describe(model)["parameters"]
        3
    """

    purpose = "model"

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Call the factory; its initialisation draws from the scope."""
        return factory(*args, **kwargs)

    def describe(self, product: Any) -> Mapping[str, Any]:
        """Return the class, the number of parameters and the digest; of no module the class.

        Where there is no digest because of the tensors' class, ``without_digest`` names it.
        """
        description: Dict[str, Any] = {"class": _name_of(product)}
        if not isinstance(product, torch.nn.Module):
            return description

        # A lazy parameter has no size before the first batch.
        sizes = (
            0 if is_lazy(parameter) else parameter.numel() for parameter in product.parameters()
        )
        description.update(parameters=sum(sizes), digest=model_digest(product))
        tensors = chain(product.parameters(), product.buffers())
        strange = {_name_of(tensor) for tensor in tensors if _stands_for_others(tensor)}
        if strange:
            description["without_digest"] = ", ".join(sorted(strange))
        return description


def _name_of(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
