"""The environment of the process, by name, from an allow-list.

It is recorded so that a reader can see under what conditions numbers were made. It is circumstance,
and outside every digest. The host name, the user, a path or the command line is never in it, unless
asked for. Reading it starts no accelerator, imports nothing of torch, sets no switch and moves no
generator.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from typing import Any, Callable, ClassVar, Dict, List, Optional, Tuple, Union

import attrs
import numpy as np
import torch

Value = Union[None, bool, int, str]

NOT_INITIALISED = "not initialised"
WITHHELD = "<withheld>"

# Environment variables, each with what its value may look like. Anything else (a path, a host, the
# UUID of a GPU) is not repeated: it could tell whose machine this was.
_PLAIN = re.compile(r"[A-Za-z0-9_:;,^+. -]{0,80}")
_NUMBERS = re.compile(r"[0-9, -]{0,80}")
_VARIABLES: Tuple[Tuple[str, re.Pattern[str]], ...] = (
    ("CUBLAS_WORKSPACE_CONFIG", _PLAIN),
    ("CUDA_LAUNCH_BLOCKING", _NUMBERS),
    ("CUDA_VISIBLE_DEVICES", _NUMBERS),
    ("MKL_NUM_THREADS", _NUMBERS),
    ("NCCL_ALGO", _PLAIN),
    ("NCCL_PROTO", _PLAIN),
    ("NVIDIA_TF32_OVERRIDE", _NUMBERS),
    ("OMP_NUM_THREADS", _NUMBERS),
    ("PYTHONHASHSEED", re.compile(r"[0-9]{0,10}|random")),
    ("TORCHINDUCTOR_DETERMINISTIC", _NUMBERS),
)


@attrs.frozen(kw_only=True)
class Environment:
    """Named facts about the process: str, int, bool, or None where there is none.

    An environment is circumstance and never content: two runs that are equal number for number may
    have been made in different environments.

    Attributes:
        IS_CONTENT: False, for the ledger's digest.
        values: pairs (name, value), in a fixed order, the same names in every process.
        unreadable: pairs (name, reason) for the facts that are None because this build lacks them
            or refused to tell.
    """

    IS_CONTENT: ClassVar[bool] = False

    values: Tuple[Tuple[str, Value], ...]
    unreadable: Tuple[Tuple[str, str], ...] = ()

    def to_dict(self) -> Dict[str, Value]:
        """Return the facts by name; why one could not be read is under ``<name>.unreadable``."""
        facts = dict(self.values)
        facts.update((f"{name}.unreadable", reason) for name, reason in self.unreadable)
        return facts


# --- facts that take more than one look-up --------------------------------------------------------


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _inductor(name: str) -> Optional[bool]:
    config = sys.modules.get("torch._inductor.config")  # never imported for this: it takes a second
    return None if config is None else bool(getattr(config, name))


def _cudnn_version() -> Optional[int]:
    """Return cuDNN's version, also before CUDA runs.

    ``torch.backends.cudnn.version`` is not asked: in torch 2.13.0 it asks every GPU for its
    capability, which starts CUDA (``_init`` in torch/backends/cudnn/__init__.py).
    """
    module = getattr(torch._C, "_cudnn", None)
    return None if module is None else int(module.getVersionInt())


def _sdp_cudnn() -> bool:
    return bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call] # looked up late: not in torch 2.2


def _gpu_count() -> Union[int, str]:
    return torch.cuda.device_count() if _cuda_runs() else NOT_INITIALISED


def _gpus() -> str:
    """Return the models of the GPUs in order, as in ``2 x NVIDIA H200 (sm_90)``.

    Asking for them would start CUDA.
    """
    if not _cuda_runs():
        return NOT_INITIALISED
    groups: List[Tuple[str, int]] = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
        if groups and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    return ", ".join(f"{count} x {name}" for name, count in groups)


# --- the allow-list -------------------------------------------------------------------------------

# Each through a function: what is looked up may be absent from a build, or refuse.
_FACTS: Tuple[Tuple[str, Callable[[], Any]], ...] = (
    ("python", platform.python_version),
    ("python.implementation", platform.python_implementation),
    ("python.hash_randomization", lambda: bool(sys.flags.hash_randomization)),
    ("system", platform.system),
    ("machine", platform.machine),
    ("cpu_count", os.cpu_count),
    ("numpy", lambda: np.__version__),
    ("torch", lambda: str(torch.__version__)),
    ("torch.cuda", lambda: torch.version.cuda),
    ("torch.hip", lambda: torch.version.hip),
    ("torch.cudnn", _cudnn_version),
    ("torch.gpu_count", _gpu_count),
    ("torch.gpus", _gpus),
    ("torch.num_threads", torch.get_num_threads),
    ("torch.num_interop_threads", torch.get_num_interop_threads),
    ("torch.default_dtype", lambda: str(torch.get_default_dtype())),
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
    (
        "cuda.matmul.allow_fp16_accumulation",
        lambda: torch.backends.cuda.matmul.allow_fp16_accumulation,
    ),
    ("cudnn.enabled", lambda: torch.backends.cudnn.enabled),
    ("cudnn.benchmark", lambda: torch.backends.cudnn.benchmark),
    ("cudnn.benchmark_limit", lambda: torch.backends.cudnn.benchmark_limit),
    ("cudnn.deterministic", lambda: torch.backends.cudnn.deterministic),
    ("cudnn.allow_tf32", lambda: torch.backends.cudnn.allow_tf32),
    ("cudnn.conv.fp32_precision", lambda: torch.backends.cudnn.conv.fp32_precision),  # type: ignore[attr-defined]
    ("sdp.flash", torch.backends.cuda.flash_sdp_enabled),
    ("sdp.mem_efficient", torch.backends.cuda.mem_efficient_sdp_enabled),
    ("sdp.math", torch.backends.cuda.math_sdp_enabled),
    ("sdp.cudnn", _sdp_cudnn),
    ("mkldnn.enabled", lambda: torch.backends.mkldnn.enabled),  # type: ignore[attr-defined]
    ("mkldnn.deterministic", lambda: torch.backends.mkldnn.deterministic),  # type: ignore[attr-defined]
    ("deterministic_algorithms", torch.are_deterministic_algorithms_enabled),
    ("deterministic_algorithms.warn_only", torch.is_deterministic_algorithms_warn_only_enabled),
    ("fill_uninitialized_memory", lambda: torch.utils.deterministic.fill_uninitialized_memory),  # type: ignore[attr-defined]
    ("inductor.deterministic", lambda: _inductor("deterministic")),
    ("inductor.fallback_random", lambda: _inductor("fallback_random")),
)


# Only when asked for.
_COMMAND_LINE: Tuple[Tuple[str, Callable[[], Any]], ...] = (
    ("command_line", lambda: " ".join(map(shlex.quote, sys.argv))),
)
_PATHS: Tuple[Tuple[str, Callable[[], Any]], ...] = (
    ("path.working_directory", os.getcwd),
    ("path.script", lambda: os.path.abspath(sys.argv[0])),
    ("path.python", lambda: sys.executable),
)


def _read(get: Callable[[], Any]) -> Tuple[Value, Optional[str]]:
    """Return a fact and None, or None and why it cannot be had.

    Torch's own words are left out of the reason: they may quote paths.
    """
    try:
        value = get()
    except AttributeError:
        return None, "not in this version"
    except Exception as error:  # noqa: BLE001 - a fact that refuses to be read must not end an experiment
        # For one, TF32 settings made through the new interface and read through the old:
        # RuntimeError in torch 2.13.
        return None, f"refused: {type(error).__name__}"
    if value is None or isinstance(value, (bool, int, str)):
        return value, None
    return None, f"refused: a {type(value).__name__}"


def _variable(name: str, allowed: re.Pattern[str]) -> Optional[str]:
    value = os.environ.get(name)
    return value if value is None or allowed.fullmatch(value) else WITHHELD


def snapshot(*, command_line: bool = False, paths: bool = False) -> Environment:
    """Return the environment of this process, now. Never raises for a fact that cannot be read.

    Args:
        command_line: also the command line, which may hold whatever was typed, secrets among it.
        paths: also the working directory and the paths of the script and of Python, which may name
            the user.
    """
    values: List[Tuple[str, Value]] = []
    unreadable: List[Tuple[str, str]] = []
    for name, get in (
        *_FACTS,
        *(_COMMAND_LINE if command_line else ()),
        *(_PATHS if paths else ()),
    ):
        value, reason = _read(get)
        values.append((name, value))
        if reason is not None:
            unreadable.append((name, reason))
    values += [(f"env.{name}", _variable(name, allowed)) for name, allowed in _VARIABLES]
    return Environment(values=tuple(values), unreadable=tuple(unreadable))
