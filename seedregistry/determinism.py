"""Determinism switches: the only module that touches them.

The switches of torch (deterministic algorithms, cuDNN, filling of fresh memory), Inductor's, and the environment variable
that cuBLAS reads are process-wide state. They are applied together or not at all, read back, reported where they could not
take effect, and given back to the caller's values. A value that the launcher set in the environment is checked and never
overwritten. No random number is drawn here.

Source: ``torch.use_deterministic_algorithms`` and https://docs.pytorch.org/docs/stable/notes/randomness.html, read at
torch 2.2.2 and 2.13.0.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Type, Union

import attrs
import torch

from seedregistry.errors import DeterministicStateError, InvalidOptionError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["MODES", "DeterminismReport", "Ineffective", "SwitchReport", "Switches", "apply"]

MODES = ("off", "warn", "strict")

Value = Union[None, bool, str]

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_WANTED = ":4096:8"
_CUBLAS_DETERMINISTIC = (":4096:8", ":16:8")
# Until pytorch#161749 (autumn 2025) deterministic mode refused cuBLAS without the variable; since then workspaces are
# allocated per handle and stream, which cuBLAS documents as sufficient.
_LAST_TORCH_THAT_ASKS = (2, 9)

_WARN_NOTE = (
    "mode 'warn' does not make everything deterministic: operators without a deterministic form run and warn, and the backward "
    "passes of flash and memory-efficient attention stay nondeterministic"
)


# --- reports ----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SwitchReport:
    """One switch: what it was, what was wanted (None: left alone), and what was read back."""

    name: str
    before: Value
    wanted: Value
    found: Value


@attrs.frozen(kw_only=True)
class Ineffective:
    """Something that could not take effect."""

    name: str
    wanted: str
    found: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: wanted {self.wanted}, found {self.found}: {self.reason}"


@attrs.frozen(kw_only=True)
class DeterminismReport:
    """What was asked of the switches, what was read back after, and what could not take effect.

    It says how the switches stand. Whether a program is deterministic is not in it: operators outside torch are not covered.

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

    def __str__(self) -> str:
        lines = [f"determinism mode {self.mode}"]
        lines += [f"  {switch.name} = {switch.found}" for switch in self.switches]
        lines += [f"  not in effect: {entry}" for entry in self.ineffective]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


# --- the switches -----------------------------------------------------------------------------------------------------


@attrs.frozen
class _Switch:
    """One process-wide setting: how it is read and how it is set."""

    name: str
    get: Callable[[], Value]
    set: Callable[[Any], object]


def _get_algorithms() -> str:
    if not torch.are_deterministic_algorithms_enabled():
        return "off"
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else "strict"


def _set_algorithms(mode: str) -> None:
    torch.use_deterministic_algorithms(mode != "off", warn_only=mode == "warn")


def _get_inductor() -> Optional[bool]:
    """Return Inductor's switch without importing Inductor; before its import the environment decides."""
    config = sys.modules.get("torch._inductor.config")
    if config is None:
        return os.environ.get("TORCHINDUCTOR_DETERMINISTIC") == "1"
    return getattr(config, "deterministic", None)


def _set_inductor(value: Optional[bool]) -> None:
    config: Any = sys.modules.get("torch._inductor.config")
    if config is not None and value is not None:
        config.deterministic = value


def _set_cudnn_deterministic(value: bool) -> None:
    torch.backends.cudnn.deterministic = value


def _set_cudnn_benchmark(value: bool) -> None:
    torch.backends.cudnn.benchmark = value


def _get_fill() -> bool:
    return bool(torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]


def _set_fill(value: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = value  # type: ignore[attr-defined]


def _set_cublas(value: Optional[str]) -> None:
    if value is None:
        os.environ.pop(CUBLAS, None)
    else:
        os.environ[CUBLAS] = value


# In the order of setting: use_deterministic_algorithms also sets Inductor's switch (torch 2.13), so that one comes after it.
_SWITCHES: Tuple[_Switch, ...] = (
    _Switch(CUBLAS, lambda: os.environ.get(CUBLAS), _set_cublas),
    _Switch("torch.deterministic_algorithms", _get_algorithms, _set_algorithms),
    _Switch("torch._inductor.config.deterministic", _get_inductor, _set_inductor),
    _Switch("torch.utils.deterministic.fill_uninitialized_memory", _get_fill, _set_fill),
    _Switch("torch.backends.cudnn.deterministic", lambda: torch.backends.cudnn.deterministic, _set_cudnn_deterministic),
    _Switch("torch.backends.cudnn.benchmark", lambda: torch.backends.cudnn.benchmark, _set_cudnn_benchmark),
)

_INDUCTOR = "torch._inductor.config.deterministic"


def _wanted(mode: str, *, fill: bool) -> Dict[str, Value]:
    """Return the value that each switch is to have; a switch that is not in it is left alone."""
    if mode == "off":
        return {}
    wanted: Dict[str, Value] = {
        "torch.deterministic_algorithms": mode,
        "torch.utils.deterministic.fill_uninitialized_memory": fill,
        "torch.backends.cudnn.deterministic": True,
        "torch.backends.cudnn.benchmark": False,
    }
    if CUBLAS not in os.environ:
        wanted[CUBLAS] = _CUBLAS_WANTED
    return wanted


# --- what cannot take effect --------------------------------------------------------------------------------------------


def _torch_version() -> Tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _ineffective(switches: Tuple[SwitchReport, ...], *, cuda_had_started: bool) -> Tuple[Ineffective, ...]:
    found: List[Ineffective] = [
        Ineffective(
            name=switch.name,
            wanted=str(switch.wanted),
            found=str(switch.found),
            reason="the value did not stay after it was set",
        )
        for switch in switches
        if switch.wanted is not None and switch.found != switch.wanted
    ]
    cublas = next(switch for switch in switches if switch.name == CUBLAS)
    if cublas.wanted is None and cublas.found not in _CUBLAS_DETERMINISTIC:
        found.append(
            Ineffective(
                name=CUBLAS,
                wanted=" or ".join(_CUBLAS_DETERMINISTIC),
                found=str(cublas.found),
                reason="the launcher set it, so it was not overwritten; cuBLAS is not deterministic with it",
            )
        )
    if cublas.wanted is not None and cuda_had_started and _torch_version() <= _LAST_TORCH_THAT_ASKS:
        found.append(
            Ineffective(
                name=CUBLAS,
                wanted=_CUBLAS_WANTED,
                found="set after CUDA started",
                reason="cuBLAS reads it when it starts, and this torch asks for it; set it in the environment",
            )
        )
    nccl = os.environ.get("NCCL_ALGO", "")
    if "NVLS" in nccl and not nccl.startswith("^"):
        found.append(
            Ineffective(
                name="NCCL_ALGO",
                wanted="unset, or without NVLS",
                found=nccl,
                reason="the launcher set it, so it was not overwritten; NVLS reductions do not repeat bit for bit",
            )
        )
    if sys.flags.hash_randomization:
        found.append(
            Ineffective(
                name="PYTHONHASHSEED",
                wanted="0 before python starts",
                found=os.environ.get("PYTHONHASHSEED", "unset"),
                reason="hashes of str are random in this process, and so is the order of sets; it is read at start only",
            )
        )
    return tuple(found)


# --- applying and reverting ---------------------------------------------------------------------------------------------

_lock = threading.RLock()
_active: List[Switches] = []


class Switches:
    """The switches as one call of :func:`apply` set them, and the way back. As a context manager it reverts at the end.

    Handles may be reverted in any order: a switch that a newer handle set too stays as the newer one wants it, and goes
    back to the caller's value with that one.

    Attributes:
        report: what was asked for and what was read back.
    """

    def __init__(self, saved: Dict[str, Value], report: DeterminismReport) -> None:
        self._saved = saved
        self.report = report

    def revert(self) -> None:
        """Give the caller's values back. A second call does nothing.

        Raises:
            DeterministicStateError: a switch could not be set back; the others were.
        """
        with _lock:
            if self not in _active:
                return
            newer = _active[_active.index(self) + 1 :]
            _active.remove(self)
            mine = dict(self._saved)
            for handle in newer:
                for name in [name for name in mine if name in handle._saved]:
                    handle._saved[name] = mine.pop(name)
            _restore(mine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]] = None,
        error: Optional[BaseException] = None,
        trace: Optional[TracebackType] = None,
    ) -> None:
        self.revert()


def _restore(saved: Dict[str, Value]) -> None:
    failures = []
    for switch in _SWITCHES:
        if switch.name in saved:
            try:
                switch.set(saved[switch.name])
            except Exception as error:  # noqa: BLE001 - the others must still be set back
                failures.append((switch.name, error))
    if failures:
        names = ", ".join(name for name, _ in failures)
        raise DeterministicStateError(f"These switches could not be set back: {names}.") from failures[0][1]


def _set_all(wanted: Dict[str, Value], saved: Dict[str, Value]) -> None:
    """Set switches, or on a failure put all of them back."""
    name = ""
    try:
        for switch in _SWITCHES:
            if switch.name in wanted:
                name = switch.name
                switch.set(wanted[name])
    except BaseException as error:
        _restore(saved)
        if not isinstance(error, Exception):
            raise
        message = f"The switch {name} could not be set to {wanted[name]!r}. Nothing was changed."
        raise DeterministicStateError(message) from error


def apply(mode: str, *, fill_uninitialized_memory: bool = False) -> Switches:
    """Set the switches: all of them, or none.

    Args:
        mode: ``"off"`` leaves every switch alone and reads it; ``"warn"`` asks for deterministic algorithms and warns where
            there is none; ``"strict"`` raises there.
        fill_uninitialized_memory: fill fresh memory with NaN or the largest value. Torch's own default under deterministic
            algorithms, and most of their cost; off here unless asked for. Ignored by mode ``"off"``.

    Returns:
        A handle with ``.report`` and ``.revert()``.

    Raises:
        InvalidOptionError: not one of these values; nothing was changed.
        DeterministicStateError: a switch could not be set; the others were set back.
    """
    if mode not in MODES:
        message = f"The determinism mode is one of {', '.join(map(repr, MODES))}; got {mode!r}."
        raise InvalidOptionError(message)
    fill: object = fill_uninitialized_memory
    if not isinstance(fill, bool):
        message = f"fill_uninitialized_memory is True or False; got {fill!r}."
        raise InvalidOptionError(message)
    with _lock:
        before = {switch.name: switch.get() for switch in _SWITCHES}
        wanted = _wanted(mode, fill=fill)
        cuda_had_started = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        saved = {name: before[name] for name in wanted}
        if saved:
            saved[_INDUCTOR] = before[_INDUCTOR]  # use_deterministic_algorithms sets it too
        _set_all(wanted, saved)
        switches = tuple(
            SwitchReport(name=s.name, before=before[s.name], wanted=wanted.get(s.name), found=s.get()) for s in _SWITCHES
        )
        report = DeterminismReport(
            mode=mode,
            switches=switches,
            ineffective=() if mode == "off" else _ineffective(switches, cuda_had_started=cuda_had_started),
            notes=(_WARN_NOTE,) if mode == "warn" else (),
        )
        handle = Switches(saved, report)
        _active.append(handle)
    return handle
