"""Streams and positions: named sources of randomness, and coordinates inside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol, Tuple, Type, Union

import numpy as np

from seedregistry import derivation, rng
from seedregistry.common import ranks
from seedregistry.common.options import NOT_GIVEN, NotGiven
from seedregistry.errors import InvalidNameError, InvalidOptionError, ScopeError

if TYPE_CHECKING:
    import random

    import torch

    from seedregistry.derivation import Coordinate, InstanceId
    from seedregistry.errors import SeedRegistryWarning

    class StreamHost(Protocol):
        """What a stream tells its registry."""

        def note_generator(self, stream: Stream, kind: str, device: str, generator: Any) -> None:
            """Record a generator at the stream's start, before it is handed out."""

        def note_scope(self, stream: Stream) -> None:
            """Record a scope at the stream's start."""

        def late_seed(self, kind: str) -> int:
            """Return (and record) the seed of an accelerator that started inside a scope."""

        def note_epoch(
            self, stream: Stream, epoch: int, digest: Callable[[int], Optional[str]]
        ) -> None:
            """Record the indices of an epoch that begins."""

        def warn(self, stream: Stream, category: Type[SeedRegistryWarning], message: str) -> None:
            """Issue a warning about a stream, and record it."""


__all__ = ["KeyedSource", "Position", "PositionPrefix", "Stream", "plain_scope"]

_PLAIN = frozenset({int, str})


class _PlainSeed:
    """A seed alone, as the documented functions pass it.

    It has no key, so only torch can be set from it.
    """

    __slots__ = ("seed",)

    full_width = False

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @property
    def key(self) -> bytes:
        message = "A plain seed has no key; use a stream."
        raise ScopeError(message)

    def late_seed(self, kind: str) -> int:
        """Return the seed of an accelerator that started inside a scope.

        It is a tagged hash of the plain seed: with that itself, two kinds of accelerator would draw
        from one seed.
        """
        return derivation.late_seed(self.seed, kind)


def plain_scope(seed: int, label: str) -> rng.Scope:
    """Return a scope in which torch's default generators are seeded with an integer.

    Python's and NumPy's default generators stay as they are.

    Args:
        seed: int, as ``torch.manual_seed`` takes it.
        label: how messages name the scope.
    """
    source = _PlainSeed(seed)
    return rng.Scope(source, label, torch_only=True, late_seed=source.late_seed)


def _check_timeout(timeout_s: float) -> float:
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not timeout_s >= 0:
        message = f"timeout_s must be a number of seconds >= 0; got {timeout_s!r}."
        raise InvalidOptionError(message)
    return timeout_s


class Stream:
    """One named source of randomness: a (purpose, instance id) of a master seed. Not a CUDA stream.

    An immutable value: it holds no generator and no state, and every generator that it gives is new
    and at the stream's start. Lives as long as anybody holds it. Thread-safe. Two streams with the
    same names are equal. A pickled stream keeps its names and loses its registry, so that what is
    drawn from it in another process is the same and is not recorded; a copy is the stream itself.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> stream = SeedRegistry(42).stream("noise", "training")
        >>> stream
        Stream('noise', 'training', seed=1881595798, scheme='sha256-31')
        >>> noise = torch.rand(3, generator=stream.generator())
        >>> torch.equal(noise, torch.rand(3, generator=stream.generator()))  # from the start again
        True

    Attributes:
        master_seed: int, ``0 <= master_seed < 2**128``.
        scheme: name of the scheme.
        purpose: what the randomness is for.
        instance_id: which one of several: None, int or str.
        seed: int, ``0 <= seed < 2**31``.
    """

    __slots__ = (
        "__weakref__",
        "_hash",
        "_host",
        "_key",
        "full_width",
        "instance_id",
        "master_seed",
        "purpose",
        "scheme",
        "seed",
    )

    def __init__(
        self,
        master_seed: int,
        scheme: str,
        purpose: str,
        instance_id: InstanceId = None,
        *,
        seed: Optional[int] = None,
        host: Optional[StreamHost] = None,
    ) -> None:
        rule = derivation.find_scheme(scheme)
        self.master_seed = master_seed
        self.scheme = rule.name
        self.full_width = rule.full_width
        self.purpose = purpose
        self.instance_id = instance_id
        self.seed = rule.derive(master_seed, purpose, instance_id) if seed is None else seed
        self._host = host
        self._key: Optional[bytes] = None
        self._hash: Optional[int] = None

    @property
    def key(self) -> bytes:
        """The stream's full-width seed material: 32 bytes, the same under every scheme."""
        if self._key is None:
            self._key = derivation.stream_key(self.master_seed, self.purpose, self.instance_id)
        return self._key

    @property
    def label(self) -> str:
        """How messages name the stream: ``purpose`` or ``purpose/instance_id``."""
        return self.purpose if self.instance_id is None else f"{self.purpose}/{self.instance_id}"

    @property
    def host(self) -> Optional[StreamHost]:
        """The registry's side that takes notice of uses.

        None for a stream that was unpickled or made by hand.
        """
        return self._host

    def prefix(self, *coordinates: Coordinate) -> PositionPrefix:
        """Return what makes many positions that begin with these coordinates, at one hash each.

        Args:
            *coordinates: ints >= 0 (never bools) or strs.

        Raises:
            InvalidNameError: one is of another type or negative.
        """
        return PositionPrefix(self, coordinates)

    def at(self, *coordinates: Coordinate) -> Position:
        """Return a position: ``stream.at(epoch, step)``.

        Taking a position is no use of the stream: it may be visited as often as one likes.

        Example:
            >>> import torch
            >>> from seedregistry import SeedRegistry
            >>> noise = SeedRegistry(42).stream("noise", "training")
            >>> epoch, step = 3, 7
            >>> draw = torch.rand(2, generator=noise.at(epoch, step).generator())
            >>> torch.equal(draw, torch.rand(2, generator=noise.at(epoch, step).generator()))
            True
            >>> torch.equal(draw, torch.rand(2, generator=noise.at(epoch, step + 1).generator()))
            False

        Args:
            *coordinates: ints >= 0 (never bools) or strs, at least one.

        Raises:
            InvalidNameError: there is none, or one is of another type or negative.
        """
        return Position(self, coordinates)

    def generator(self, device: Union[str, torch.device] = "cpu") -> torch.Generator:
        """Return a new ``torch.Generator`` on a device, at the stream's start.

        Counts as a use of the stream.

        Under ``sha256-31`` it is seeded with ``manual_seed(seed)``; under ``sha256-256`` the CPU's
        MT19937 state is filled from the key, and a Philox generator takes 64 bits of it.

        Raises:
            DeviceError: the device is unknown, unavailable or has no generators.
            StreamReuseError: the stream was used before and the registry forbids that.
        """
        generator = rng.make_generator(device, self)
        if self._host is not None:
            where = generator.device
            self._host.note_generator(self, f"torch:{where.type}", str(where), generator)
        return generator

    def numpy(self) -> np.random.Generator:
        """Return a new ``numpy.random.Generator`` at the stream's start: PCG64 over the key.

        Counts as a use of the stream.

        Raises:
            StreamReuseError: the stream was used before and the registry forbids that.
        """
        generator = rng.make_numpy(self)
        if self._host is not None:
            self._host.note_generator(self, "numpy", "", generator)
        return generator

    def python(self) -> random.Random:
        """Return a new ``random.Random`` at the stream's start.

        Counts as a use of the stream.

        Raises:
            StreamReuseError: the stream was used before and the registry forbids that.
        """
        generator = rng.make_python(self)
        if self._host is not None:
            self._host.note_generator(self, "python", "", generator)
        return generator

    def scope(
        self,
        *coordinates: Coordinate,
        rank: Union[int, NotGiven, None] = NOT_GIVEN,
        torch_only: bool = False,
        timeout_s: float = rng.DEFAULT_TIMEOUT_S,
    ) -> rng.Scope:
        """Return a scope at a position of the stream, or at its start.

        Inside, the default generators of python, NumPy and torch (CPU and every accelerator) are
        set, each from bits of its own. After it they are as before, to the byte, also when the body
        raises. Without coordinates the scope is at the stream's start and counts as a use; under
        ``sha256-31`` torch is then set as ``manual_seed(seed)`` does.

        A scope does not reach into modules that are recomputed (``torch.utils.checkpoint``): there,
        draw from ``stream.at(...).generator(device)``.

        Example:
            >>> import torch
            >>> from seedregistry import SeedRegistry
            >>> dropout = SeedRegistry(42).stream("dropout", "training")
            >>> layer, inputs = torch.nn.Dropout(0.5), torch.ones(8)
            >>> epoch, step = 3, 7
            >>> with dropout.scope(epoch, step):
            ...     outputs = layer(inputs)
            >>> with dropout.scope(epoch, step):  # visited again, in this process or in another
            ...     torch.equal(outputs, layer(inputs))
            True

        Args:
            *coordinates: ints >= 0 or strs, such as (epoch, step).
            rank: where there is more than one rank, ``rank=r`` makes the draws of each rank
                different (the position is ``(*coordinates, "rank", r)``), and ``rank=None`` makes
                them equal.
            torch_only: leave python's and NumPy's generators alone.
            timeout_s: how long to wait for another thread's scope, in seconds.

        Raises:
            ScopeError: more than one rank and no ``rank``; on entering, another thread holds a
                scope for too long.
            InvalidNameError: a coordinate or the rank is not of an accepted type or range.
            InvalidOptionError: ``timeout_s`` is no number of seconds >= 0.
            StreamReuseError: there are no coordinates, the stream was used before and the registry
                forbids that.
        """
        if isinstance(rank, NotGiven):
            if ranks.world_size() > 1:
                message = (
                    f"There are {ranks.world_size()} ranks and scope() of '{self.label}' was not "
                    "told what they share. Pass rank=r for draws of this rank's own (dropout), "
                    "or rank=None for the same draws on every rank (initialisation)."
                )
                raise ScopeError(message)
        elif rank is not None:
            # The name keeps (epoch, step) of rank r apart from the position (epoch, step, r).
            coordinates = (*coordinates, "rank", self._check_rank(rank))

        host = self._host
        late_seed = self.late_seed if host is None else host.late_seed

        source: Union[Stream, Position] = self
        if coordinates:
            source = Position(self, coordinates)
        elif host is not None:
            host.note_scope(self)

        # A training opens a scope in every step, nearly always with the timeout of everybody.
        if timeout_s is not rng.DEFAULT_TIMEOUT_S:
            timeout_s = _check_timeout(timeout_s)
        return rng.Scope(
            source, self.label, torch_only=torch_only, timeout_s=timeout_s, late_seed=late_seed
        )

    def late_seed(self, kind: str) -> int:
        """Return the 64-bit seed of an accelerator that starts inside a scope, unforeseen."""
        return derivation.late_seed(self.master_seed, kind)

    @staticmethod
    def _check_rank(rank: Any) -> int:
        is_int = isinstance(rank, (int, np.integer)) and not isinstance(rank, bool)
        if not is_int or rank < 0:
            message = (
                "A rank is an int >= 0, for draws of its own, or None, for shared ones; got "
                f"{rank!r}."
            )
            raise InvalidNameError(message, value=repr(rank))
        return int(rank)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Stream):
            return NotImplemented
        return self.names() == other.names()

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self.names())
        return self._hash

    def names(self) -> Tuple[object, ...]:
        """Return what makes the stream what it is, as a dict key that holds nothing else alive."""
        return (
            self.master_seed,
            self.scheme,
            self.purpose,
            type(self.instance_id),  # in case an id equals one of another type, as True equals 1
            self.instance_id,
        )

    def __repr__(self) -> str:
        return (
            f"Stream({self.purpose!r}, {self.instance_id!r}, seed={self.seed}, "
            f"scheme={self.scheme!r})"
        )

    def __reduce__(self) -> Tuple[Any, ...]:
        return Stream, (self.master_seed, self.scheme, self.purpose, self.instance_id)

    def __copy__(self) -> Stream:
        return self

    def __deepcopy__(self, memo: object) -> Stream:
        return self


class Position:
    """Coordinates inside a stream, such as (epoch, step).

    An immutable value; thread-safe; pickles together with its stream. Positions are not recorded in
    the ledger and count as no use of the stream: they are what may be visited again.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> position = SeedRegistry(42).stream("noise", "training").at(3, 7)
        >>> position.coordinates
        (3, 7)
        >>> position == SeedRegistry(42).stream("noise", "training").at(3, 7)
        True
        >>> position.numpy().random() == position.numpy().random()
        True

    Attributes:
        stream: the stream.
        coordinates: as given.
        key: 32 bytes.
    """

    __slots__ = ("coordinates", "key", "stream")

    def __init__(self, stream: Stream, coordinates: Tuple[Coordinate, ...]) -> None:
        if not coordinates:
            message = "A position needs at least one coordinate, such as stream.at(epoch, step)."
            raise InvalidNameError(message, value="()")
        self.stream = stream
        # By their exact types: a bool is an int, and a subclass of str may hash as it likes.
        if not all(type(coordinate) in _PLAIN for coordinate in coordinates):
            coordinates = derivation.validate_coordinates(coordinates)
        self.coordinates = coordinates
        self.key = derivation.position_key(stream.key, derivation.encode_coordinates(coordinates))

    @property
    def seed(self) -> int:
        """Int, ``0 <= seed < 2**31``.

        The first 32 bits of the key modulo 2**31, under every scheme.
        """
        return derivation.seed_of_key(self.key)

    @property
    def full_width(self) -> bool:
        """Whether generators take more of the key than the seed (scheme ``sha256-256``)."""
        return self.stream.full_width

    def generator(self, device: Union[str, torch.device] = "cpu") -> torch.Generator:
        """Return a new ``torch.Generator`` on a device, at this position.

        Raises:
            DeviceError: the device is unknown, unavailable or has no generators.
        """
        return rng.make_generator(device, self)

    def numpy(self) -> np.random.Generator:
        """Return a new ``numpy.random.Generator`` at this position: PCG64 over the key."""
        return rng.make_numpy(self)

    def python(self) -> random.Random:
        """Return a new ``random.Random`` at this position."""
        return rng.make_python(self)

    def scope(
        self, *, torch_only: bool = False, timeout_s: float = rng.DEFAULT_TIMEOUT_S
    ) -> rng.Scope:
        """Return a scope at this position, in which the default generators are set from its key.

        :meth:`Stream.scope` says what a scope does. This one does not look at the rank: a position
        has the coordinates that it was given, on every rank. Put the rank among them, or use
        ``stream.scope(..., rank=r)``.

        Args:
            torch_only: leave python's and NumPy's generators alone.
            timeout_s: how long to wait for another thread's scope, in seconds.

        Raises:
            InvalidOptionError: ``timeout_s`` is no number of seconds >= 0.
            ScopeError: on entering, another thread holds a scope for too long.
        """
        host = self.stream._host
        late_seed = self.stream.late_seed if host is None else host.late_seed
        return rng.Scope(
            self,
            self.stream.label,
            torch_only=torch_only,
            timeout_s=_check_timeout(timeout_s),
            late_seed=late_seed,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Position):
            return NotImplemented
        return self.stream == other.stream and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{self.stream!r}.at({', '.join(map(repr, self.coordinates))})"

    def __reduce__(self) -> Tuple[Any, ...]:
        return Position, (self.stream, self.coordinates)


class PositionPrefix:
    """The positions of a stream that begin with the same coordinates.

    An immutable value; thread-safe; not pickled. Hashing the key and the first coordinates is done
    once, which is what a loader needs that visits a position for every sample of an epoch.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> stream = SeedRegistry(42).stream("augmentation", "training")
        >>> epoch, index = 3, 7
        >>> prefix = stream.prefix("sample", epoch)
        >>> prefix.source(index).key == stream.at("sample", epoch, index).key
        True
    """

    __slots__ = ("_full_width", "_hash")

    def __init__(self, stream: Stream, coordinates: Tuple[Coordinate, ...]) -> None:
        self._hash = derivation.position_prefix(
            stream.key, derivation.encode_coordinates(coordinates)
        )
        self._full_width = stream.full_width

    def source(self, *coordinates: Coordinate) -> KeyedSource:
        """Return what generators are set from at the position with these further coordinates."""
        position = self._hash.copy()  # updating the hash itself would spoil it for the next one
        position.update(derivation.encode_coordinates(coordinates))
        return KeyedSource(position.digest(), self._full_width)


class KeyedSource:
    """A key, and what generators take of it: a position that does not say where it is.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> stream = SeedRegistry(42).stream("augmentation", "training")
        >>> source = stream.prefix("sample", 3).source(7)
        >>> source.seed == stream.at("sample", 3, 7).seed
        True

    Attributes:
        key: 32 bytes.
        full_width: whether generators take more of the key than the seed.
    """

    __slots__ = ("full_width", "key")

    def __init__(self, key: bytes, full_width: bool) -> None:  # noqa: FBT001 - made for every sample: keywords cost
        self.key = key
        self.full_width = full_width

    @property
    def seed(self) -> int:
        """Int, ``0 <= seed < 2**31``: the first 32 bits of the key modulo 2**31."""
        return derivation.seed_of_key(self.key)
