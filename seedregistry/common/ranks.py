"""What ``torch.distributed``, or the launcher, says about this process. Read only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Union

import torch


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    """Return the number of ranks of the default process group, 1 where there is none."""
    return int(torch.distributed.get_world_size()) if _is_initialized() else 1


def rank() -> int:
    """Return the rank of this process in the default process group, 0 where there is none."""
    return int(torch.distributed.get_rank()) if _is_initialized() else 0


def path_of_rank(path: Union[str, os.PathLike[str]]) -> Union[str, os.PathLike[str]]:
    """Return the path under which this process writes what every rank writes.

    Rank 0 writes to the path as it is. For every other rank the name tells the rank:
    ``ledger.jsonl`` becomes ``ledger.rank1.jsonl``. Before there is a process group, the rank is
    what the launcher says in ``RANK``, as ``torchrun`` does.
    """
    number = rank()
    told = os.environ.get("RANK", "")
    if not _is_initialized() and told.isascii() and told.isdigit():
        number = int(told)
    if not number:
        return path

    try:
        whole = Path(path)
    except TypeError:  # no path at all: whoever opens it will say so
        return path
    if not whole.name:
        return path
    return whole.with_name(f"{whole.stem}.rank{number}{whole.suffix}")
