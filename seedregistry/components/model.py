"""The model component: a factory called in the stream's scope, and a digest of what it made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Optional, final

import torch

from seedregistry.common.digest import PiecesDigest
from seedregistry.components.base import Component

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from seedregistry.stream import Stream


def _tensor_bytes(tensor: torch.Tensor) -> Optional[Buffer]:
    """Return the bytes of a tensor in row-major order, without a copy where it is on the CPU and contiguous."""
    if tensor.is_meta:
        return None
    dense = tensor.detach()
    if dense.layout is not torch.strided:
        dense = dense.to_dense()
    if dense.is_quantized:
        dense = dense.int_repr()
    dense = dense.cpu().resolve_conj().resolve_neg().contiguous()
    array: Any = dense.reshape(-1).view(torch.uint8).numpy()
    buffer: Buffer = array
    return buffer


def model_digest(model: torch.nn.Module) -> Optional[str]:
    """Return SHA-256 over the parameters and buffers of a model: names, dtypes, shapes and bytes.

    By name, so that the order of registration does not count; independent of the device.

    Returns:
        64 hexadecimal digits, or None where there are no bytes, that is on device ``meta`` or
        before lazy modules are materialised.
    """
    digest = PiecesDigest("seedregistry.model/1")
    named = sorted(model.named_parameters())
    buffers = sorted(model.named_buffers())
    for kind, tensors in (("parameter", named), ("buffer", buffers)):
        for name, tensor in tensors:
            if isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)):
                return None
            data = _tensor_bytes(tensor)
            if data is None:
                return None
            digest.add(f"{kind}:{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.add(data)
    return digest.hexdigest()


@final
class ModelComponent(Component):
    """Builds a model: ``factory(*args, **kwargs)`` inside the scope of ("model", instance_id)."""

    purpose = "model"

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Call the factory; its initialisation draws from the scope."""
        return factory(*args, **kwargs)

    def describe(self, product: Any) -> Mapping[str, Any]:
        """Return the class, the number of parameters and the digest.

        For anything but a module, the class alone.
        """
        description = {"class": f"{type(product).__module__}.{type(product).__qualname__}"}
        if isinstance(product, torch.nn.Module):
            uninitialized = torch.nn.UninitializedParameter
            sizes = (0 if isinstance(p, uninitialized) else p.numel() for p in product.parameters())
            return {**description, "parameters": sum(sizes), "digest": model_digest(product)}
        return description
