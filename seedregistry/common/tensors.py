"""The bytes of a tensor, for every digest that covers one."""

from __future__ import annotations

import torch


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order.

    A sparse tensor counts as the dense one, a quantised one as its integers, and a lazy conjugate
    or negative as what it stands for. Nothing is copied where the tensor is dense, contiguous and
    on the CPU: what is returned then changes with the tensor.

    Args:
        tensor: of any dtype, shape and device but ``meta``, which holds no bytes.

    Returns:
        The bytes, one-dimensional, each from 0 to 255.
    """
    dense = tensor.detach()
    if dense.layout is not torch.strided:
        dense = dense.to_dense()
    if dense.is_quantized:
        dense = dense.int_repr()
    dense = dense.cpu().resolve_conj().resolve_neg().contiguous()

    # As bytes first, since NumPy has no bfloat16. Its stubs know of the buffer from Python 3.12 on.
    return memoryview(dense.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
