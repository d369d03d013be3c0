"""The bytes of a tensor, for every digest that covers one."""

from __future__ import annotations

import torch


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order, without a copy where it is dense, contiguous and on the CPU.

    A sparse tensor counts as the dense one, a quantised one as its integers, and a lazy conjugate
    or negative as what it stands for.

    Args:
        tensor: of any dtype, shape and device but ``meta``, which holds no bytes.
    """
    dense = tensor.detach()
    if dense.layout is not torch.strided:
        dense = dense.to_dense()
    if dense.is_quantized:
        dense = dense.int_repr()
    dense = dense.cpu().resolve_conj().resolve_neg().contiguous()
    return memoryview(dense.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # NumPy 2's stubs for Python 3.12 only
