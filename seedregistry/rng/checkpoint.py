"""Generator states as plain data: saved, checked, and loaded all or not at all.

Part of format ``seedregistry.registry/1``: an entry for each generator, a dict of ints, strings and
one-dimensional uint8 tensors with a SHA-256 over its content, so that
``torch.load(weights_only=True)`` reads it and a damaged entry is named. Left out: generators that
nobody holds any more, and accelerators that have not started.
"""

from __future__ import annotations

import hashlib
import random
import weakref
from typing import Any, Callable, Dict, List, Mapping, Tuple, Union

import numpy as np
import torch

from seedregistry.errors import RngStateError
from seedregistry.rng import accelerators

Entry = Dict[str, Any]
AnyGenerator = Union[torch.Generator, np.random.Generator, random.Random]

_MT_WORDS = 624
_PYTHON_VERSION = 3  # of random.getstate(), since Python 3.2


class Handouts:
    """The generators that a registry has handed out, by name, held weakly.

    A name is (purpose, tagged instance id, kind, how many of these came before). Lives as long as
    its registry; not pickled.

    Example:
        >>> from seedregistry import rng
        >>> handouts, generator = rng.Handouts(), rng.make_plain_generator("cpu", 7)
        >>> handouts.add("noise", "null", "cpu", generator)
        >>> list(handouts.alive())
        ['handed:noise|null|cpu|0']
    """

    def __init__(self) -> None:
        self._counts: Dict[Tuple[str, str, str], int] = {}
        self._alive: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    def add(self, purpose: str, tagged_id: str, kind: str, generator: AnyGenerator) -> None:
        """Remember a generator under its name."""
        name = (purpose, tagged_id, kind)
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        self._alive[f"handed:{purpose}|{tagged_id}|{kind}|{count}"] = generator

    def alive(self) -> Dict[str, AnyGenerator]:
        """Return the generators that somebody still holds."""
        return dict(self._alive)


# --- bytes ----------------------------------------------------------------------------------------


def _tensor(words: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(words, dtype="<u4").view(np.uint8).copy())


def _words(entry: Entry, name: str, field: str = "words") -> np.ndarray[Any, Any]:
    tensor = entry[field]
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.dtype != torch.uint8
        or tensor.shape != (4 * _MT_WORDS,)
    ):
        raise _entry_error(name, f"'{field}' must be a uint8 tensor of {4 * _MT_WORDS} bytes")
    words: np.ndarray[Any, Any] = tensor.cpu().numpy().copy().view("<u4")
    return words


def _entry_error(name: str, what: str) -> RngStateError:
    return RngStateError(
        f"Entry '{name}' of the RNG state is corrupt: {what}. Nothing was changed.", entries=(name,)
    )


def _digest(entry: Mapping[str, Any]) -> str:
    sha = hashlib.sha256()
    for field in sorted(entry):
        if field == "sha256":
            continue
        value = entry[field]
        payload = (
            value.cpu().numpy().tobytes()
            if isinstance(value, torch.Tensor)
            else repr(value).encode()
        )
        sha.update(f"{field}:{len(payload)}:".encode() + payload)
    return sha.hexdigest()


# --- an encoder and a decoder for each kind -------------------------------------------------------

# A decoder checks everything that can be wrong with an entry and changes nothing. It returns the
# call that applies the entry, so that load_state has all of these calls before it makes the first.


def _encode_python(generator: Any) -> Entry:
    version, words, gauss = generator.getstate()
    return {
        "kind": "python",
        "version": version,
        "words": _tensor(words[:-1]),
        "position": int(words[-1]),
        "gauss": "" if gauss is None else float(gauss).hex(),
    }


def _decode_python(entry: Entry, name: str, generator: Any) -> Callable[[], object]:
    if entry["version"] != _PYTHON_VERSION:
        version = entry["version"]
        what = f"version {version!r} of python's state is unknown; expected {_PYTHON_VERSION}"
        raise _entry_error(name, what)

    words = tuple(int(word) for word in _words(entry, name))
    position = entry["position"]
    if not 0 <= position <= _MT_WORDS:
        raise _entry_error(name, f"position {position!r} is outside 0..{_MT_WORDS}")
    gauss = float.fromhex(entry["gauss"]) if entry["gauss"] else None
    return lambda: generator.setstate((_PYTHON_VERSION, (*words, position), gauss))


def _encode_numpy_legacy() -> Entry:
    state: Any = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        message = (
            f"NumPy's global generator is a {state['bit_generator']}, set with "
            "np.random.set_bit_generator; only MT19937 can be saved. Put the original back, or "
            "use a generator of your own."
        )
        raise RngStateError(message, entries=("numpy",))
    return {
        "kind": "numpy-legacy",
        "words": _tensor(state["state"]["key"]),
        "position": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]).hex(),
    }


def _decode_numpy_legacy(entry: Entry, name: str) -> Callable[[], object]:
    words = _words(entry, name)
    position = entry["position"]
    if not 0 <= position <= _MT_WORDS:
        raise _entry_error(name, f"position {position!r} is outside 0..{_MT_WORDS}")
    state = ("MT19937", words, position, entry["has_gauss"], float.fromhex(entry["gauss"]))
    return lambda: np.random.set_state(state)


def _encode_numpy(generator: np.random.Generator) -> Entry:
    state: Any = generator.bit_generator.state
    return {
        "kind": "numpy",
        "bit_generator": str(state["bit_generator"]),
        "state": str(state["state"]["state"]),
        "inc": str(state["state"]["inc"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def _decode_numpy(entry: Entry, name: str, generator: np.random.Generator) -> Callable[[], object]:
    if entry["bit_generator"] != "PCG64":
        raise _entry_error(name, f"bit generator {entry['bit_generator']!r}; expected 'PCG64'")
    state = {
        "bit_generator": "PCG64",
        "state": {"state": int(entry["state"]), "inc": int(entry["inc"])},
        "has_uint32": entry["has_uint32"],
        "uinteger": entry["uinteger"],
    }

    def apply() -> None:
        generator.bit_generator.state = state

    return apply


def _encode_torch(generator: torch.Generator) -> Entry:
    return {"kind": "torch", "device": generator.device.type, "state": generator.get_state()}


def _decode_torch(entry: Entry, name: str, generator: torch.Generator) -> Callable[[], object]:
    if entry["device"] != generator.device.type:
        here = generator.device.type
        raise _entry_error(
            name, f"it was saved on '{entry['device']}' and the generator is on '{here}'"
        )

    state = entry["state"]
    expected = generator.get_state().shape
    if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8 or state.shape != expected:
        raise _entry_error(name, f"'state' must be a uint8 tensor of {expected.numel()} bytes")

    private = state.cpu().clone()
    # A state that torch refuses is refused now, by a generator that nobody uses: a refusal while
    # the states are applied would come too late.
    torch.Generator(device=generator.device).set_state(private)
    return lambda: generator.set_state(private)


# --- all of them ----------------------------------------------------------------------------------


def _torch_defaults() -> Dict[str, torch.Generator]:
    defaults = {"torch:cpu": torch.default_generator}
    for accelerator in accelerators.ACCELERATORS:
        if accelerator.is_initialized():
            for index, generator in enumerate(accelerator.default_generators()):
                defaults[f"torch:{accelerator.kind}:{index}"] = generator
    return defaults


def _encode_handed(generator: AnyGenerator) -> Entry:
    if isinstance(generator, torch.Generator):
        return _encode_torch(generator)
    if isinstance(generator, np.random.Generator):
        return _encode_numpy(generator)
    return _encode_python(generator)


def save_state(handouts: Handouts) -> Dict[str, Entry]:
    """Return an entry for every default generator and every handed-out one that is held.

    Example:
        >>> from seedregistry import rng
        >>> entries = rng.save_state(rng.Handouts())
        >>> entries["torch:cpu"]["kind"]
        'torch'

    Args:
        handouts: the generators handed out in this process.

    Raises:
        RngStateError: NumPy's global bit generator is not an MT19937.
    """
    entries = {"python": _encode_python(random), "numpy": _encode_numpy_legacy()}
    entries.update(
        (name, _encode_torch(generator)) for name, generator in _torch_defaults().items()
    )
    entries.update(
        (name, _encode_handed(generator)) for name, generator in handouts.alive().items()
    )
    for entry in entries.values():
        entry["sha256"] = _digest(entry)
    return entries


_FIELDS = {
    "python": {"kind", "version", "words", "position", "gauss", "sha256"},
    "numpy-legacy": {"kind", "words", "position", "has_gauss", "gauss", "sha256"},
    "numpy": {"kind", "bit_generator", "state", "inc", "has_uint32", "uinteger", "sha256"},
    "torch": {"kind", "device", "state", "sha256"},
}


def _check_entry(name: str, entry: object, kind: str) -> Entry:
    if not isinstance(entry, dict):
        raise _entry_error(name, f"it is a {type(entry).__name__}, not a dict")
    if entry.get("kind") != kind:
        raise _entry_error(name, f"it is of kind {entry.get('kind')!r}; expected {kind!r}")
    if set(entry) != _FIELDS[kind]:
        raise _entry_error(
            name, f"its fields are {sorted(map(str, entry))}; expected {sorted(_FIELDS[kind])}"
        )
    if _digest(entry) != entry["sha256"]:
        raise _entry_error(name, "its SHA-256 does not match its content")
    return entry


def _start_accelerators(names: List[str]) -> None:
    """Start the accelerators that the state has entries for, where they are available."""
    for accelerator in accelerators.ACCELERATORS:
        wanted = any(name.startswith(f"torch:{accelerator.kind}:") for name in names)
        if wanted and accelerator.device_count() > 0 and not accelerator.is_initialized():
            accelerator.initialize()


def _plan(name: str, entry: object, generator: Any) -> Callable[[], object]:
    try:
        if name == "numpy":
            return _decode_numpy_legacy(_check_entry(name, entry, "numpy-legacy"), name)
        if isinstance(generator, torch.Generator):
            return _decode_torch(_check_entry(name, entry, "torch"), name, generator)
        if isinstance(generator, np.random.Generator):
            return _decode_numpy(_check_entry(name, entry, "numpy"), name, generator)
        return _decode_python(_check_entry(name, entry, "python"), name, generator)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, RngStateError):
            raise
        raise _entry_error(name, str(error)) from error


def load_state(entries: object, handouts: Handouts) -> None:
    """Set every generator from its entry: all of them, or none.

    Example:
        >>> import random
        >>> from seedregistry import rng
        >>> handouts = rng.Handouts()
        >>> before = rng.save_state(handouts)
        >>> first = random.random()
        >>> rng.load_state(before, handouts)
        >>> random.random() == first
        True
        >>> rng.load_state(before, handouts)

    Args:
        entries: what :func:`save_state` returned, here or in another process.
        handouts: the generators handed out in this process; each one held needs an entry, and each
            entry needs one.

    Raises:
        RngStateError: names the entries that are missing, that belong to no generator here, or that
            are corrupt. Nothing has been changed then, except that an accelerator with an entry may
            have been started.
    """
    if not isinstance(entries, dict):
        raise RngStateError(
            f"'generators' must be a dict of entries; got {type(entries).__name__}. Nothing was "
            "changed."
        )

    # An accelerator that has not started has no generators to compare the entries with.
    _start_accelerators([str(name) for name in entries])
    targets: Dict[str, Any] = {"python": random, "numpy": np.random}
    targets.update(_torch_defaults())
    targets.update(handouts.alive())

    missing = sorted(set(targets) - set(entries))
    foreign = sorted(str(name) for name in set(entries) - set(targets))
    if missing or foreign:
        reasons = []
        if missing:
            reasons.append(f"it has no entry for {', '.join(missing)}")
        if foreign:
            reasons.append(f"nothing here goes by {', '.join(foreign)}")
        message = (
            f"The RNG state does not fit this process: {'; '.join(reasons)}. Hand out the same "
            "generators, on the same devices, before loading. Nothing was changed."
        )
        raise RngStateError(message, entries=tuple(missing + foreign))

    # All entries are checked before the first is applied, and what is there is saved: a call that
    # fails all the same, or an interrupt, leaves every generator as it was.
    plan = [_plan(name, entries[name], targets[name]) for name in sorted(targets)]
    undo = save_state(handouts)
    try:
        for apply in plan:
            apply()
    except BaseException:
        for name in sorted(targets):
            _plan(name, undo[name], targets[name])()
        raise
