"""The environment of the process, by name, from an allow-list. Circumstance: it is outside every digest.

Recorded so that a reader can see under what conditions numbers were made. Never the host name, the user, a path or the
command line. Reading it starts no accelerator and moves no generator.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any, Callable, Dict, Optional, Tuple, Union

import attrs
import numpy as np
import torch

__all__ = ["Environment", "snapshot"]

Value = Union[None, bool, int, str]

_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "TORCHINDUCTOR_DETERMINISTIC",
)
_LONGEST = 80


@attrs.frozen(kw_only=True)
class Environment:
    """Named facts about the process: str, int, bool, or None where a fact cannot be had here.

    Attributes:
        values: pairs (name, value), in a fixed order.
    """

    values: Tuple[Tuple[str, Value], ...]

    def to_dict(self) -> Dict[str, Value]:
        """Return the facts by name."""
        return dict(self.values)


def _read(get: Callable[[], Any]) -> Value:
    """Return a fact, or None where this build or this combination of settings refuses to tell.

    Reading TF32 settings through both the old and the new interface raises in torch 2.9 and later, for one.
    """
    try:
        value = get()
    except (AttributeError, RuntimeError, AssertionError, ImportError, OSError):
        return None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)[:_LONGEST]


def _inductor(name: str) -> Value:
    config = sys.modules.get("torch._inductor.config")  # never imported for this: it takes a second
    return None if config is None else _read(lambda: getattr(config, name))


def _cudnn_sdp() -> bool:
    enabled: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call] # absent from torch 2.2
    return enabled


def _cudnn_version() -> Optional[int]:
    return torch.backends.cudnn.version() if _cuda_runs() else None  # type: ignore[no-untyped-call]


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _devices() -> str:
    """Return the models of the GPUs, where CUDA runs; asking for them would start it."""
    if not _cuda_runs():
        return "not started"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    return ", ".join(names)


_FACTS: Tuple[Tuple[str, Callable[[], Any]], ...] = (
    ("python", platform.python_version),
    ("python.implementation", platform.python_implementation),
    ("python.hash_randomization", lambda: bool(sys.flags.hash_randomization)),
    ("system", platform.system),
    ("machine", platform.machine),
    ("cpu_count", os.cpu_count),
    ("numpy", lambda: np.__version__),
    ("torch", lambda: torch.__version__),
    ("torch.cuda", lambda: torch.version.cuda),
    ("torch.hip", lambda: getattr(torch.version, "hip", None)),
    ("torch.cudnn", _cudnn_version),
    ("torch.gpus", _devices),
    ("torch.num_threads", torch.get_num_threads),
    ("torch.num_interop_threads", torch.get_num_interop_threads),
    ("torch.default_dtype", torch.get_default_dtype),
    ("torch.float32_matmul_precision", torch.get_float32_matmul_precision),
    ("torch.fp32_precision", lambda: torch.backends.fp32_precision),  # type: ignore[attr-defined]
    ("cuda.matmul.allow_tf32", lambda: torch.backends.cuda.matmul.allow_tf32),
    ("cuda.matmul.fp32_precision", lambda: torch.backends.cuda.matmul.fp32_precision),
    (
        "cuda.matmul.allow_fp16_reduced_precision_reduction",
        lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    ),
    (
        "cuda.matmul.allow_bf16_reduced_precision_reduction",
        lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    ),
    ("cudnn.enabled", lambda: torch.backends.cudnn.enabled),
    ("cudnn.benchmark", lambda: torch.backends.cudnn.benchmark),
    ("cudnn.deterministic", lambda: torch.backends.cudnn.deterministic),
    ("cudnn.allow_tf32", lambda: torch.backends.cudnn.allow_tf32),
    ("cudnn.conv.fp32_precision", lambda: torch.backends.cudnn.conv.fp32_precision),  # type: ignore[attr-defined]
    ("sdp.flash", torch.backends.cuda.flash_sdp_enabled),
    ("sdp.mem_efficient", torch.backends.cuda.mem_efficient_sdp_enabled),
    ("sdp.math", torch.backends.cuda.math_sdp_enabled),
    ("sdp.cudnn", _cudnn_sdp),
    ("mkldnn.enabled", lambda: torch.backends.mkldnn.enabled),  # type: ignore[attr-defined]
    ("mkldnn.deterministic", lambda: torch.backends.mkldnn.deterministic),  # type: ignore[attr-defined]
    ("deterministic_algorithms", torch.are_deterministic_algorithms_enabled),
    ("deterministic_algorithms.warn_only", torch.is_deterministic_algorithms_warn_only_enabled),
    ("fill_uninitialized_memory", lambda: torch.utils.deterministic.fill_uninitialized_memory),  # type: ignore[attr-defined]
    ("inductor.deterministic", lambda: _inductor("deterministic")),
    ("inductor.fallback_random", lambda: _inductor("fallback_random")),
)


def snapshot() -> Environment:
    """Return the environment of this process, now."""
    facts = [(name, _read(get)) for name, get in _FACTS]
    facts += [(f"env.{name}", _read(lambda name=name: os.environ.get(name))) for name in _VARIABLES]  # type: ignore[misc]
    return Environment(values=tuple(facts))
