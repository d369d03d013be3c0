"""What ``torch.distributed`` says about this process. Read only."""

from __future__ import annotations

import torch

__all__ = ["rank", "world_size"]


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    """Return the number of ranks of the default process group, 1 where there is none."""
    return int(torch.distributed.get_world_size()) if _is_initialized() else 1


def rank() -> int:
    """Return the rank of this process in the default process group, 0 where there is none."""
    return int(torch.distributed.get_rank()) if _is_initialized() else 0
