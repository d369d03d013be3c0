"""For your own tests: assert that code leaves the generators alone, or that it replays.

With pytest, ``pytest_plugins = ["seedregistry.testing"]`` in the top ``conftest.py`` brings the
fixture ``seed_registry``.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, Callable, Iterator, Tuple

import torch

from seedregistry import rng
from seedregistry.common.tensors import tensor_bytes
from seedregistry.registry import SeedRegistry

if TYPE_CHECKING:
    import pytest

try:
    from pytest import fixture  # noqa: PT013 - imported where it may be missing
except ImportError:  # pytest is not a dependency; without it there is no fixture

    def fixture(function: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[no-redef]
        """Return the function."""
        return function


__all__ = ["assert_replays", "assert_rng_untouched", "seed_registry"]


@contextlib.contextmanager
def assert_rng_untouched() -> Iterator[None]:
    """Fail if the block moves a default generator of python, NumPy or torch.

    Where the block raises, its exception goes through and nothing is compared.

    Example:
        >>> import torch
        >>> from seedregistry.testing import assert_rng_untouched
        >>> with assert_rng_untouched():
        ...     noise = torch.rand(3, generator=torch.Generator())
        >>> with torch.random.fork_rng(devices=[]), assert_rng_untouched():
        ...     noise = torch.rand(3)
        Traceback (most recent call last):
            ...
        AssertionError: The block moved the default generators of: torch:cpu.

    Raises:
        AssertionError: names the generators that moved.
    """
    before = rng.fingerprint()
    yield  # without `finally`: an exception of the block is not to be hidden by ours
    after = rng.fingerprint()

    moved = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if moved:
        message = f"The block moved the default generators of: {', '.join(moved)}."
        raise AssertionError(message)


def assert_replays(
    function: Callable[..., Any], /, *args: Any, times: int = 2, **kwargs: Any
) -> Any:
    """Call a function several times and fail unless every call returns the same, bit for bit.

    The generators are not set in between: the function has to be a function of its arguments.
    Results are compared through tensors, arrays, modules (by their ``state_dict``), mappings and
    sequences; floats by their bits.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.testing import assert_replays
        >>> def build(seed):
        ...     return SeedRegistry(seed).model(torch.nn.Linear, 3, 2, instance_id="training")
        >>> assert_replays(build, 42)
        Linear(in_features=3, out_features=2, bias=True)
        >>> generator = torch.Generator()
        >>> assert_replays(torch.rand, 3, generator=generator)
        Traceback (most recent call last):
            ...
        AssertionError: ... does not replay: call 2 differs from the first at result.

    Args:
        function: what to call.
        *args: for the function.
        times: how many calls, int >= 2.
        **kwargs: for the function.

    Returns:
        The first result.

    Raises:
        AssertionError: two calls differ; the message says where.
        ValueError: ``times`` is below 2.
    """
    if times < 2:  # noqa: PLR2004 - one call cannot differ from itself
        message = f"times must be at least 2; got {times!r}."
        raise ValueError(message)

    first = function(*args, **kwargs)
    expected = dict(_leaves(first, "result"))
    for call in range(2, times + 1):
        actual = dict(_leaves(function(*args, **kwargs), "result"))
        for place in [*expected, *(place for place in actual if place not in expected)]:
            if expected.get(place) != actual.get(place):
                message = (
                    f"{getattr(function, '__qualname__', function)!s} does not replay: call "
                    f"{call} differs from the first at {place}."
                )
                raise AssertionError(message)

    return first


def _leaves(value: Any, place: str) -> Iterator[Tuple[str, object]]:
    """Yield (place, comparable bytes) for every leaf of a result.

    The bytes are copies: results may be changed in place later.
    """
    if isinstance(value, torch.nn.Module):
        yield from _leaves(value.state_dict(), f"{place}.state_dict()")
    elif isinstance(value, torch.Tensor):
        yield place, (str(value.dtype), tuple(value.shape), bytes(tensor_bytes(value)))
    elif hasattr(value, "tobytes") and hasattr(value, "dtype"):
        yield place, (str(value.dtype), getattr(value, "shape", ()), value.tobytes())
    elif isinstance(value, dict):
        yield place, ("dict", len(value))
        for key, item in value.items():
            yield from _leaves(item, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        yield place, (type(value).__name__, len(value))
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]")
    elif isinstance(value, float):
        yield place, ("float", value.hex())
    else:
        yield place, (type(value).__qualname__, value)


@fixture
def seed_registry(request: pytest.FixtureRequest) -> SeedRegistry:
    """A registry whose master seed is derived from the test's node id.

    Each test has another one, and the same one every time that it runs.
    """
    node_id = request.node.nodeid.replace("\\", "/")
    return SeedRegistry(
        int.from_bytes(hashlib.sha256(f"seedregistry/test/{node_id}".encode()).digest()[:16], "big")
    )
