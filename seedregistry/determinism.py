"""Determinism switches: the only module that touches them.

The switches of torch (deterministic algorithms, cuDNN, filling of fresh memory), Inductor's, and
the environment variable that cuBLAS reads are process-wide state. They are applied together or not
at all, read back, reported where they could not take effect, and given back to the caller's values.
A value that the launcher set in the environment is checked and never overwritten. No random number
is drawn here.

Source: ``torch.use_deterministic_algorithms`` and
https://docs.pytorch.org/docs/stable/notes/randomness.html, read at torch 2.2.2 and 2.13.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple, Type, Union

import attrs
import torch

from seedregistry.common.options import check_choice
from seedregistry.errors import DeterministicStateError, InvalidOptionError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = [
    "MODES",
    "DeterminismReport",
    "Ineffective",
    "SwitchReport",
    "Switches",
    "apply",
    "current_mode",
    "torch_threads",
]

MODES = ("off", "fast", "warn", "strict")

Value = Union[None, bool, str]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_WANTED = ":4096:8"
_CUBLAS_ACCEPTED = (":4096:8", ":16:8")
# pytorch#161749 removed the check: the variable's name is in libtorch 2.9.1 and no longer in
# 2.10.0.
_LAST_TORCH_THAT_ASKS = (2, 9)

_ALGORITHMS = "torch.deterministic_algorithms"
_INDUCTOR = "torch._inductor.config.deterministic"
_FILL = "torch.utils.deterministic.fill_uninitialized_memory"
_CUDNN_DETERMINISTIC = "torch.backends.cudnn.deterministic"
_CUDNN_BENCHMARK = "torch.backends.cudnn.benchmark"
# With it torch.compile gives a checkpointed graph generators of its own, cloned from the default
# ones at the first call: what it draws depends on no later seed, and on no scope. CUDA only. It
# came after torch 2.2 (pytorch#146878).
_GRAPH_GENERATORS = "torch._functorch.config.graphsafe_rng_functionalization"

# Source: ContextVar in torch/utils/_config_module.py, torch 2.13.0; 2.10.0 still had one value for
# the process.
_OF_A_THREAD = (_INDUCTOR, _GRAPH_GENERATORS)

# Source: at::native, transformers/cuda/attention_backward.cu (pytorch#91979, pytorch#101847).
_WARN_NOTE = (
    "mode 'warn' does not make everything deterministic: operators without a deterministic form "
    "run and warn, and the backward passes of flash and memory-efficient attention stay "
    "nondeterministic"
)
_INDUCTOR_NOTE = (
    f"{_INDUCTOR} is kept for each thread by newer versions of torch: read and set "
    "for the calling thread only"
)


# --- reports --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SwitchReport:
    """One switch: what it was, what was wanted of it, and what was read back.

    Example:
        >>> from seedregistry import determinism
        >>> with determinism.apply("strict") as switches:
        ...     reports = {switch.name: switch for switch in switches.report.switches}
        >>> switch = reports["torch.backends.cudnn.deterministic"]
        >>> switch.before, switch.wanted, switch.after
        (False, True, True)

    Attributes:
        name: of the switch, as torch or the environment has it.
        before: its value before the call.
        wanted: the value that the mode asks for; None where it leaves the switch alone.
        after: its value after the call.
    """

    name: str
    before: Value
    wanted: Value
    after: Value


@attrs.frozen(kw_only=True)
class Ineffective:
    """Something that could not take effect, and why.

    Example:
        >>> from unittest import mock
        >>> from seedregistry import determinism
        >>> with mock.patch.dict("os.environ", NCCL_ALGO="NVLS"):  # a launcher's setting
        ...     with determinism.apply("strict") as switches:
        ...         problems = {problem.name: problem for problem in switches.report.ineffective}
        >>> print(problems["NCCL_ALGO"])
        NCCL_ALGO: wanted unset, or without NVLS, found NVLS: the launcher set it, ...

    Attributes:
        name: of the switch or of the environment's variable.
        wanted: what would take effect.
        actual: what is there.
        reason: why it has no effect.
    """

    name: str
    wanted: str
    actual: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: wanted {self.wanted}, found {self.actual}: {self.reason}"


@attrs.frozen(kw_only=True)
class DeterminismReport:
    """What was asked of the switches, what was read back after, and what could not take effect.

    It says how the switches stand. Whether a program is deterministic is not in it: operators
    outside torch are not covered.

    Example:
        >>> from seedregistry import determinism
        >>> with determinism.apply("strict") as switches:
        ...     report = switches.report
        >>> "torch.deterministic_algorithms" in report.applied
        True
        >>> print(report)
        determinism mode strict
        ...

    Attributes:
        mode: ``"off"``, ``"warn"`` or ``"strict"``, as asked for.
        switches: every switch.
        ineffective: what could not take effect.
        notes: limits of the mode, in words.
    """

    mode: str
    switches: Tuple[SwitchReport, ...]
    ineffective: Tuple[Ineffective, ...] = ()
    notes: Tuple[str, ...] = ()

    @property
    def applied(self) -> Tuple[str, ...]:
        """Names of the switches that were set and read back as wanted."""
        return tuple(s.name for s in self.switches if s.wanted is not None and s.after == s.wanted)

    def __str__(self) -> str:
        lines = [f"determinism mode {self.mode}"]
        lines += [f"  {switch.name} = {switch.after}" for switch in self.switches]
        lines += [f"  not in effect: {entry}" for entry in self.ineffective]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


# --- the switches ---------------------------------------------------------------------------------


@attrs.frozen
class _Switch:
    """One process-wide setting: how it is read and how it is set."""

    name: str
    get: Callable[[], Value]
    set: Callable[[Any], object]


def _get_algorithms() -> str:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if not torch.are_deterministic_algorithms_enabled():
        # Torch remembers warn_only while the mode is off: to give back "off" alone would lose it.
        return "off, warn_only" if warn_only else "off"
    return "warn" if warn_only else "strict"


def _set_algorithms(mode: str) -> None:
    torch.use_deterministic_algorithms(mode in ("warn", "strict"), warn_only="warn" in mode)


def _get_inductor() -> bool:
    """Return Inductor's switch (torch 2.10) without importing Inductor.

    Before Inductor is imported, the environment decides.
    """
    config = sys.modules.get("torch._inductor.config")
    if config is None:
        return os.environ.get("TORCHINDUCTOR_DETERMINISTIC") == "1"
    return bool(getattr(config, "deterministic", False))


def _set_inductor(value: bool) -> None:
    config: Any = sys.modules.get("torch._inductor.config")
    if hasattr(config, "deterministic"):
        config.deterministic = value


def _functorch_config() -> Any:
    try:
        return importlib.import_module("torch._functorch.config")
    except ImportError:
        return None


def _get_graph_generators() -> Optional[bool]:
    value = getattr(_functorch_config(), _GRAPH_GENERATORS.rpartition(".")[2], None)
    return None if value is None else bool(value)


def _set_graph_generators(value: Optional[bool]) -> None:
    if value is not None:
        setattr(_functorch_config(), _GRAPH_GENERATORS.rpartition(".")[2], value)


def _set_cublas(value: Optional[str]) -> None:
    if value is None:
        os.environ.pop(_CUBLAS, None)
    else:
        os.environ[_CUBLAS] = value


def _flag(name: str) -> _Switch:
    """Return a switch that is an attribute of a module of torch."""
    module_name, _, attribute = name.rpartition(".")
    module = sys.modules[module_name]
    return _Switch(
        name,
        lambda: bool(getattr(module, attribute)),
        lambda value: setattr(module, attribute, value),
    )


# In the order of setting, which is the order of putting back too. The environment comes first:
# cuBLAS may read it as soon as anything computes. use_deterministic_algorithms also sets Inductor's
# switch, so that one comes after it.
_SWITCHES: Tuple[_Switch, ...] = (
    _Switch(_CUBLAS, lambda: os.environ.get(_CUBLAS), _set_cublas),
    _Switch(_ALGORITHMS, _get_algorithms, _set_algorithms),
    _Switch(_INDUCTOR, _get_inductor, _set_inductor),
    _flag(_FILL),
    _flag(_CUDNN_DETERMINISTIC),
    _flag(_CUDNN_BENCHMARK),
    _Switch(_GRAPH_GENERATORS, _get_graph_generators, _set_graph_generators),
)


def _read(switch: _Switch) -> Value:
    try:
        return switch.get()
    except Exception as error:
        raise DeterministicStateError(
            f"The switch {switch.name} could not be read ({error})."
        ) from error


def _set(switch: _Switch, value: Value) -> None:
    try:
        switch.set(value)
    except Exception as error:
        message = (
            f"The switch {switch.name} could not be set to {value!r} ({error}). Every "
            "switch is as it was."
        )
        raise DeterministicStateError(message) from error


def _put_back(saved: Dict[str, Value]) -> None:
    """Set switches to saved values, and take those that succeeded out of ``saved``.

    A switch that has its value already is not set: where torch refuses
    (``torch.backends.disable_global_flags``), one that was never changed is no failure.

    Raises:
        DeterministicStateError: names the switches that could not be set; the others were.
    """
    failures: List[Tuple[str, Exception]] = []
    for switch in _SWITCHES:
        if switch.name not in saved:
            continue
        try:
            if switch.get() != saved[switch.name]:
                switch.set(saved[switch.name])
        except Exception as error:  # noqa: BLE001 - the others must still be set back
            failures.append((switch.name, error))
        else:
            del saved[switch.name]
    if failures:
        names = ", ".join(f"{name} ({error})" for name, error in failures)
        raise DeterministicStateError(
            f"These switches could not be set back: {names}."
        ) from failures[0][1]


# --- what cannot take effect ----------------------------------------------------------------------


def _torch_version() -> Tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _cublas_problem(cublas: SwitchReport, *, cuda_had_started: bool) -> Optional[Ineffective]:
    asks = _torch_version() <= _LAST_TORCH_THAT_ASKS
    if cublas.wanted is None and cublas.after not in _CUBLAS_ACCEPTED:
        tail = (
            "this torch refuses deterministic cuBLAS with it"
            if asks
            else "this torch does not check it"
        )
        reason = (
            "the launcher set it, so it was not overwritten; not a value documented as "
            f"deterministic, and {tail}"
        )
        return Ineffective(
            name=_CUBLAS,
            wanted=" or ".join(_CUBLAS_ACCEPTED),
            actual=str(cublas.after),
            reason=reason,
        )
    if cublas.wanted is not None and cuda_had_started and asks:
        # Source: aten/src/ATen/Context.cpp checks it once, in a static, at the first call of
        # cuBLAS.
        reason = (
            "this torch and cuBLAS read it once, perhaps before now; set it in the "
            "environment before python starts"
        )
        return Ineffective(
            name=_CUBLAS, wanted=_CUBLAS_WANTED, actual="set after CUDA started", reason=reason
        )
    return None


def _allows_nvls(algorithms: str) -> bool:
    """Return whether a value of ``NCCL_ALGO`` lets NCCL choose NVLS.

    Source: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-algo:
    ``ring,tree``, ``^nvls``, and for each collective ``allreduce:tree;broadcast:ring``.
    """
    for clause in algorithms.upper().split(";"):
        names = clause.rpartition(":")[2].strip()
        listed = [name.strip() for name in names.lstrip("^").split(",")]
        if (
            "NVLS" not in listed
            if names.startswith("^")
            else any(name.startswith("NVLS") for name in listed)
        ):
            return True
    return False


def _nccl_problem() -> Optional[Ineffective]:
    value = os.environ.get("NCCL_ALGO", "")
    if not value or not _allows_nvls(value):
        return None

    # Source: ProcessGroupNCCL.cpp (pytorch#156381): NVLS "can lead to non-deterministic reduction";
    # torch excludes it by itself in deterministic mode, unless the variable is set.
    reason = (
        "the launcher set it, so it was not overwritten; it allows NVLS, whose reductions "
        "may not repeat bit for bit"
    )
    return Ineffective(
        name="NCCL_ALGO", wanted="unset, or without NVLS", actual=value, reason=reason
    )


def _started_with_hash_seed(seed: int) -> Optional[bool]:
    """Return whether this interpreter's string hashes come from ``seed``; None if unknowable.

    The environment does not say: it may have been changed after the start, or ignored (``python
    -I``).

    Source: ``lcg_urandom`` and ``_Py_HashSecret`` in CPython's Python/bootstrap_hash.c, the same
    from 3.8 to 3.13.
    """
    try:
        secret = bytes((ctypes.c_ubyte * 24).in_dll(ctypes.pythonapi, "_Py_HashSecret"))
    except (AttributeError, ValueError):
        return None
    expected, state = [], seed
    for _ in secret:
        state = (state * 214013 + 2531011) & 0xFFFFFFFF
        expected.append(state >> 16 & 0xFF)
    return bytes(expected) == secret


def _hash_problem() -> Optional[Ineffective]:
    if not sys.flags.hash_randomization:
        return None
    value = os.environ.get("PYTHONHASHSEED", "unset")
    fixed = _started_with_hash_seed(int(value)) if value.isdecimal() else False
    if fixed:  # the flag is on for every seed but 0
        return None
    reason = (
        "it is read when python starts only; in this process hashes of str are random, and "
        "so is the order of sets"
    )
    if fixed is None:
        reason = (
            "it is read when python starts only, and this interpreter does not tell "
            "whether it was set by then"
        )
    return Ineffective(
        name="PYTHONHASHSEED", wanted="a number, before python starts", actual=value, reason=reason
    )


def _report(
    mode: str, before: Dict[str, Value], wanted: Dict[str, Value], *, cuda_had_started: bool
) -> DeterminismReport:
    after = {switch.name: _read(switch) for switch in _SWITCHES}
    switches = tuple(
        SwitchReport(name=name, before=before[name], wanted=wanted.get(name), after=after[name])
        for name in after
    )
    if mode == "off":
        return DeterminismReport(mode=mode, switches=switches)

    unsettled = [
        Ineffective(
            name=s.name,
            wanted=str(s.wanted),
            actual=str(s.after),
            reason="it was set and did not stay so",
        )
        for s in switches
        if s.wanted is not None and s.after != s.wanted
    ]
    cublas = next(switch for switch in switches if switch.name == _CUBLAS)
    problems = (
        _cublas_problem(cublas, cuda_had_started=cuda_had_started),
        _nccl_problem(),
        _hash_problem(),
    )

    notes = (_WARN_NOTE,) if mode == "warn" else ()
    return DeterminismReport(
        mode=mode,
        switches=switches,
        ineffective=(*unsettled, *(problem for problem in problems if problem is not None)),
        notes=(*notes, _INDUCTOR_NOTE) if after[_INDUCTOR] else notes,
    )


# --- applying and reverting -----------------------------------------------------------------------

_lock = threading.RLock()
# Weak: a handle that nobody holds can never be reverted, so it must not keep an older one from
# giving everything back.
_active: List[weakref.ref[Switches]] = []


class Switches:
    """The switches as one call of :func:`apply` set them, and the way back.

    As a context manager it reverts at the end of the block, also when the block raises.

    Lifetime: from :func:`apply` to the first complete :meth:`revert`. The switches belong to the
    process, so handles of all threads form one history. They may be reverted in any order: a switch
    that a newer handle set too stays as the newer one wants it, and goes back to the caller's value
    with that one. A newer handle that nobody holds any more counts as a change by hand and is
    undone. Inductor's switch belongs to the thread in newer versions of torch: revert where you
    applied.

    What torch did because of the switches is not undone, such as ``NCCL_ALGO=^NVLS`` in its own
    environment at the first NCCL process group.

    Example:
        >>> import torch
        >>> from seedregistry import determinism
        >>> outer = determinism.apply("warn")
        >>> inner = determinism.apply("strict")
        >>> outer.revert()  # the inner one still holds
        >>> determinism.current_mode()
        'strict'
        >>> inner.revert()
        >>> determinism.current_mode()
        'off'

    Attributes:
        report: what was asked for and what was read back.
    """

    def __init__(self, saved: Dict[str, Value], report: DeterminismReport) -> None:
        self._saved = saved
        self._thread = threading.get_ident()
        self.report = report

    def revert(self) -> None:
        """Give the caller's values back, also where a switch was changed by hand since.

        A second call does nothing.

        Raises:
            DeterministicStateError: names the switches that could not be set back; the others were.
                A second call tries these again.
        """
        with _lock:
            handles = _handles()
            newer = handles[handles.index(self) + 1 :] if self in handles else []

            # The next newer handle that set a switch saved what this one had made of it. It gets
            # the value from before this one to give back, and its setting stays for now.
            for handle in newer:
                for name in self._saved.keys() & handle._saved.keys():
                    # Another thread has a value of its own of these.
                    if name not in _OF_A_THREAD or handle._thread == self._thread:
                        handle._saved[name] = self._saved.pop(name)

            _put_back(self._saved)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]] = None,
        error: Optional[BaseException] = None,
        trace: Optional[TracebackType] = None,
    ) -> None:
        self.revert()


def _handles() -> List[Switches]:
    """Return the handles with something to give back, oldest first; forget the others."""
    alive = [
        handle
        for handle in (reference() for reference in _active)
        if handle is not None and handle._saved
    ]
    _active[:] = [weakref.ref(handle) for handle in alive]
    return alive


def _plan(mode: str, before: Dict[str, Value], *, fill: bool) -> Dict[str, Value]:
    """Return the value that each switch is to have; a switch that is not in it is left alone."""
    if mode == "off":
        return {}
    if mode == "fast":
        return {_ALGORITHMS: "off", _CUDNN_DETERMINISTIC: False, _CUDNN_BENCHMARK: True}
    wanted: Dict[str, Value] = {
        _ALGORITHMS: mode,
        _FILL: fill,
        _CUDNN_DETERMINISTIC: True,
        _CUDNN_BENCHMARK: False,
    }
    if before[_GRAPH_GENERATORS] is not None:
        wanted[_GRAPH_GENERATORS] = False
    # Two values are left alone: the launcher's, and any that somebody set by hand since. What an
    # earlier call set here, and has still to give back, is neither.
    is_ours = before[_CUBLAS] == _CUBLAS_WANTED and any(
        _CUBLAS in handle._saved for handle in _handles()
    )
    if before[_CUBLAS] is None or is_ours:
        wanted[_CUBLAS] = _CUBLAS_WANTED
    return wanted


def _validate(mode: object, fill: object) -> None:
    check_choice(mode, "The determinism mode", MODES)
    if not isinstance(fill, bool):
        raise InvalidOptionError(f"fill_uninitialized_memory is True or False; got {fill!r}.")


def current_mode() -> str:
    """Return the mode that torch's deterministic algorithms are in.

    Returns:
        ``"off"``, ``"warn"`` or ``"strict"``.
    """
    return _get_algorithms().partition(",")[0]


def apply(mode: str, *, fill_uninitialized_memory: bool = False) -> Switches:
    """Set the switches: all of them, or none.

    In torch 2.10 and later the first call imports Inductor's configuration, as
    ``torch.use_deterministic_algorithms`` does: about a second.

    Example:
        >>> import torch
        >>> from seedregistry import determinism
        >>> with determinism.apply("strict"):
        ...     print(torch.are_deterministic_algorithms_enabled())
        True
        >>> torch.are_deterministic_algorithms_enabled()
        False

    Args:
        mode: ``"off"`` leaves every switch alone and reads it; ``"fast"`` allows nondeterministic
            algorithms and lets cuDNN look for the fastest; ``"warn"`` asks for deterministic
            algorithms and warns where there is none; ``"strict"`` raises there.
        fill_uninitialized_memory: fill fresh memory with NaN or the largest value. Torch's own
            default under deterministic algorithms, and most of their cost; off here unless asked
            for. Ignored by mode ``"off"``.

    Returns:
        A handle with ``.report`` and ``.revert()``; as a context manager it reverts at the end of
        the block, also when the block raises. Without either the switches stay.

    Raises:
        InvalidOptionError: not one of these values; nothing was changed.
        DeterministicStateError: a switch could not be read or set; all were put back, or the
            message names those that were not.
    """
    _validate(mode, fill_uninitialized_memory)

    with _lock:
        before = {switch.name: _read(switch) for switch in _SWITCHES}
        wanted = _plan(mode, before, fill=fill_uninitialized_memory)
        saved = {name: before[name] for name in wanted}
        if saved:
            saved[_INDUCTOR] = before[_INDUCTOR]  # use_deterministic_algorithms sets it too
        cuda_had_started = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]

        try:
            for switch in _SWITCHES:
                if switch.name in wanted:
                    _set(switch, wanted[switch.name])
            handle = Switches(
                saved, _report(mode, before, wanted, cuda_had_started=cuda_had_started)
            )
            _active.append(weakref.ref(handle))
        except BaseException:  # an interrupt too: half of the switches would be nobody's mode
            _put_back(dict(saved))
            raise
    return handle


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run a block with a number of torch's threads, and give the caller's number back.

    Example:
        >>> import torch
        >>> from seedregistry import determinism
        >>> with determinism.torch_threads(1):
        ...     print(torch.get_num_threads())
        1

    Args:
        threads: int >= 1; sums on the CPU depend on it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
