"""A walk through a dataset that finds the random number generators it holds."""

from __future__ import annotations

import contextlib
import functools
import random
import types
from collections import deque
from itertools import chain
from typing import Any, Deque, Iterator, List, Set, Tuple

import numpy as np
import torch

from seedregistry import rng

_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_LEAVES = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    types.ModuleType,
    torch.Tensor,
    np.ndarray,
    range,
)
_MOST_OBJECTS = 20_000
_MOST_ELEMENTS = 100


def _elements(value: Any) -> Iterator[Tuple[str, Any]]:
    """Yield what a container or a callable holds, each with the piece of path that leads to it."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", value[key]) for key in list(value)[:_MOST_ELEMENTS])
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from (
            (f"[{number}]", element) for number, element in zip(range(_MOST_ELEMENTS), value)
        )
    elif isinstance(value, functools.partial):
        yield from ((f".keywords[{name!r}]", bound) for name, bound in value.keywords.items())
        yield from ((f".args[{number}]", bound) for number, bound in enumerate(value.args))
        yield ".func", value.func
    elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            with contextlib.suppress(ValueError):  # an empty cell
                yield f".<{name}>", cell.cell_contents


def _attributes(value: Any) -> Iterator[Tuple[str, Any]]:
    """Yield an object's attributes, those in ``__slots__`` too, without running its properties."""
    yield from ((f".{name}", held) for name, held in list(getattr(value, "__dict__", {}).items()))
    for cls in type(value).__mro__:
        for name, slot in cls.__dict__.items():
            # Not a function's __globals__, which would lead through its whole module.
            if isinstance(slot, types.MemberDescriptorType) and not name.startswith("__"):
                with contextlib.suppress(AttributeError):  # not set
                    yield f".{name}", slot.__get__(value, cls)


def find_generators(root: Any, name: str) -> List[Tuple[str, str]]:
    """Return the random number generators that an object holds, each with the path to it.

    Looks through attributes, containers and closures: up to 20,000 objects, and 100 elements of
    each container. The default generators of python, NumPy and torch do not count. No code of the
    object runs but the iteration of its containers.

    Args:
        root: a dataset, a transform, a sampler.
        name: how paths begin, such as ``"dataset"``.

    Returns:
        Pairs (path, class), the shortest path first.

    Example:
        >>> import random
        >>> from seedregistry.data import find_generators
        >>> class Noisy:
        ...     def __init__(self):
        ...         self.draws = {"noise": random.Random(0)}
        >>> find_generators(Noisy(), "dataset")
        [("dataset.draws['noise']", 'random.Random')]
    """
    shared = {id(generator) for generator in rng.shared_generators()}
    seen: Set[int] = set()
    alive: List[Any] = []  # an id says which object it is only as long as the object lives
    generators: List[Tuple[str, str]] = []
    queue: Deque[Tuple[str, Any]] = deque([(name, root)])
    while queue and len(seen) < _MOST_OBJECTS:
        path, value = queue.popleft()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        alive.append(value)
        if isinstance(value, _KINDS):
            if id(value) not in shared:
                generators.append((path, f"{type(value).__module__}.{type(value).__qualname__}"))
            continue
        queue.extend(
            (path + step, inner) for step, inner in chain(_elements(value), _attributes(value))
        )
    return generators
