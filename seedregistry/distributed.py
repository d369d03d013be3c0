"""What ``torch.distributed`` says about this process. Read only."""

from __future__ import annotations

import torch

__all__ = ["world_size"]


def world_size() -> int:
    """Return the number of ranks of the default process group, 1 where there is none."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())
