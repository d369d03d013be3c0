"""Derivation: from (master seed, purpose, instance id, coordinates) to seeds and keys.

The functions are pure, and the module does without torch. Every rule here is frozen: results in
published work depend on it. The vectors in ``tests/data/derivation.json`` and in
``docs/derivation.md`` hold the rules to the byte; a change of any of them is a new scheme with a
new name.

Names are encoded as typed, length-prefixed fields, so that the encoding is injective: ``("ab",
"c")`` is not ``("a", "bc")`` and ``7`` is not ``"7"``. Every hash carries a tag of its own ("domain
separation"), so that a key of one kind is never a key of another. Text is encoded as UTF-8 and not
normalised: composed and decomposed forms of one letter are two names.

Source: FIPS 180-4 (SHA-256), FIPS 202 (SHAKE-128).
"""

from __future__ import annotations

import functools
import hashlib
from typing import Callable, Dict, Iterable, List, Tuple, Union

import attrs
import numpy as np

from seedregistry.errors import InvalidNameError, InvalidOptionError, InvalidSeedError

__all__ = [
    "DEFAULT_SCHEME",
    "MASTER_SEED_BITS",
    "SCHEMES",
    "SEED_BITS",
    "Coordinate",
    "InstanceId",
    "Scheme",
    "child_master_seed",
    "documented_seed",
    "encode_coordinates",
    "encode_field",
    "find_scheme",
    "late_seed",
    "mt19937_words",
    "numpy_seed",
    "numpy_word_bytes",
    "numpy_words",
    "philox_seed",
    "position_key",
    "position_prefix",
    "python_seed",
    "seed_of_key",
    "stream_key",
    "validate_coordinates",
    "validate_instance_id",
    "validate_master_seed",
    "validate_purpose",
]

InstanceId = Union[None, int, str]
"""An instance id as it is stored: None (no id), an int, or a str."""

Coordinate = Union[int, str]
"""One coordinate of a position: an int >= 0, or a str."""

MASTER_SEED_BITS = 128
SEED_BITS = 31

# A tag begins each hash and says of what kind its result is, so that a key is never a seed of some
# library, nor a child's master seed the key of a position. Each text is in published numbers for
# good: the 1 is the version of the encoding below, and not of the library.
_TAG = b"seedregistry/1"
_TAG_POSITION = _TAG + b"/at"
_TAG_CHILD = _TAG + b"/child"
_TAG_PYTHON = _TAG + b"/python"
_TAG_NUMPY = _TAG + b"/numpy"
_TAG_MT19937 = _TAG + b"/mt19937"

_MT19937_WORDS = 624
_SEED_MASK: int = (1 << SEED_BITS) - 1
_HINT_LENGTH = 60


def _show(value: object) -> str:
    """Return a short ``repr`` with the type, which never fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error that is being reported
        text = "<no repr>"
    if len(text) > _HINT_LENGTH:
        text = text[:_HINT_LENGTH] + "..."
    return f"{text} ({type(value).__name__})"


# --- validation -----------------------------------------------------------------------------------


def validate_master_seed(
    value: object, *, bits: int = MASTER_SEED_BITS, name: str = "master seed"
) -> int:
    """Return ``value`` as an ``int``, or refuse it.

    Example:
        >>> from seedregistry.derivation import validate_master_seed
        >>> validate_master_seed(42)
        42
        >>> validate_master_seed(2**32, bits=32)
        Traceback (most recent call last):
            ...
        seedregistry.errors.InvalidSeedError: The master seed must be in 0 <= seed < 2**32; ...

    Args:
        value: an ``int`` or ``numpy.integer``, ``0 <= value < 2**bits``; never a bool.
        bits: width of the accepted range.
        name: what the message calls the value.

    Raises:
        InvalidSeedError: for everything else; nothing has been changed.
    """
    # The exact type first: it is nearly always this one, and a bool, which is an int, is not meant.
    if type(value) is int:
        number = value
    elif isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        hint = ""
        if isinstance(value, str):
            stripped = value.strip()
            if stripped.isdigit() and stripped.isascii():
                hint = f" Did you mean {stripped[:_HINT_LENGTH]}?"
        elif isinstance(value, float) and value.is_integer() and value >= 0:
            hint = f" Did you mean {int(value)}?"
        elif value is None:
            hint = " Pass an integer; SeedRegistry() without an argument draws one."
        message = f"The {name} must be an integer, 0 <= seed < 2**{bits}; got {_show(value)}.{hint}"
        raise InvalidSeedError(message, value=_show(value))
    else:
        number = int(value)
    if 0 <= number < 1 << bits:
        return number
    raise InvalidSeedError(
        f"The {name} must be in 0 <= seed < 2**{bits}; got {_show(value)}.", value=_show(value)
    )


def _require_encodable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = (
            f"The {name} cannot be encoded as UTF-8; got {_show(text)}. Remove the lone surrogate."
        )
        raise InvalidNameError(message, value=_show(text)) from error
    return text


def _decimal(number: int, name: str) -> bytes:
    """Return the signed decimal digits, or refuse a number that has too many of them.

    CPython 3.11 and later refuse very long ones (``sys.set_int_max_str_digits``).
    """
    try:
        return b"%d" % number
    except ValueError as error:
        message = (
            f"The {name} has too many digits to be written down ({number.bit_length()} "
            "bits). Use a shorter one."
        )
        raise InvalidNameError(message, value=f"int of {number.bit_length()} bits") from error


def validate_purpose(value: object, *, allow_empty: bool = False) -> str:
    """Return ``value`` as a plain ``str``, or refuse it.

    Args:
        value: a non-empty ``str`` that UTF-8 can encode.
        allow_empty: accept ``""`` too, as the documented function does.

    Raises:
        InvalidNameError: for everything else.
    """
    if type(value) is str and value and value.isascii():  # nearly all of them
        return value

    if not isinstance(value, str):
        message = f"A purpose must be a str, such as 'model' or 'dropout'; got {_show(value)}."
        raise InvalidNameError(message, value=_show(value))

    text = str.__str__(value)  # the characters of a subclass, whose own __str__ may say anything
    if not text and not allow_empty:
        raise InvalidNameError(
            "A purpose must not be empty; say what the randomness is for.", value="''"
        )
    return _require_encodable(text, "purpose")


def validate_instance_id(value: object) -> InstanceId:
    """Return ``value`` as None, a plain ``int`` or a plain ``str``, or refuse it.

    Args:
        value: None, an ``int`` or ``numpy.integer`` (stored as ``int``; never a bool) or an
            encodable ``str``.

    Raises:
        InvalidNameError: for everything else.
    """
    if value is None or (type(value) is str and value.isascii()):  # nearly all of them
        return value

    if isinstance(value, str):
        return _require_encodable(str.__str__(value), "instance id")
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        number = int(value)
        _decimal(number, "instance id")  # refused here, and not in the middle of a derivation
        return number

    hint = (
        " Use str(...) of it, or an int."
        if isinstance(value, (float, tuple, bool, np.bool_))
        else ""
    )
    message = f"An instance id must be None, an int or a str; got {_show(value)}.{hint}"
    raise InvalidNameError(message, value=_show(value))


def validate_coordinates(coordinates: Iterable[object]) -> Tuple[Coordinate, ...]:
    """Return the coordinates as plain ints and strs, or refuse them.

    Args:
        coordinates: each an ``int`` or ``numpy.integer`` >= 0 (never a bool), or an encodable
            ``str``.

    Raises:
        InvalidNameError: for everything else.
    """
    plain: List[Coordinate] = []
    for value in coordinates:
        if isinstance(value, str):
            plain.append(_require_encodable(str.__str__(value), "coordinate"))
            continue
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0:
            number = int(value)
            _decimal(number, "coordinate")
            plain.append(number)
            continue
        message = (
            f"A coordinate must be an int >= 0 or a str, such as (epoch, step); got {_show(value)}."
        )
        raise InvalidNameError(message, value=_show(value))
    return tuple(plain)


# --- encoding -------------------------------------------------------------------------------------


def encode_field(value: InstanceId) -> bytes:
    """Return the injective encoding of one validated name.

    The encoding is a type byte (``n`` none, ``i`` int, ``s`` str), the length of the payload as 4
    bytes big-endian, and the payload (int: signed decimal ASCII digits; str: UTF-8).

    Example:
        >>> from seedregistry.derivation import encode_field
        >>> encode_field("ab").hex()
        '73000000026162'
        >>> encode_field(7) == encode_field("7")
        False
    """
    if value is None:
        return b"n\0\0\0\0"
    if isinstance(value, str):
        payload = value.encode()
        return b"s" + len(payload).to_bytes(4, "big") + payload
    payload = _decimal(value, "number")
    return b"i" + len(payload).to_bytes(4, "big") + payload


def encode_coordinates(coordinates: Tuple[object, ...]) -> bytes:
    """Return the fields of the coordinates, one after the other.

    Plain small ints, which every training step and every sample passes, take a short cut; all else
    is validated first.

    Example:
        >>> from seedregistry.derivation import encode_coordinates, encode_field
        >>> encode_coordinates((3, "rank", 1)) == b"".join(map(encode_field, (3, "rank", 1)))
        True

    Raises:
        InvalidNameError: a coordinate is not an int >= 0 or a str.
    """
    encoded = b""
    for value in coordinates:
        if type(value) is int and 0 <= value < 1 << 64:
            # At most 20 digits, so that the length is in the last of its four bytes: the bytes of
            # encode_field, without its calls.
            digits = b"%d" % value
            encoded += b"i\0\0\0%c%b" % (len(digits), digits)
        else:
            encoded += encode_field(validate_coordinates((value,))[0])
    return encoded


# --- keys and seeds -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)  # an experiment has few purposes and many instances
def _stream_prefix(master_seed: int, purpose: str) -> bytes:
    return _TAG + encode_field(master_seed) + encode_field(purpose)


def stream_key(master_seed: int, purpose: str, instance_id: InstanceId = None) -> bytes:
    """Return the key of a stream: 32 bytes.

    It is the SHA-256 over the tag and the fields of the three names, which the caller validates.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.derivation import stream_key
        >>> key = stream_key(42, "model", "training")
        >>> key == SeedRegistry(42).stream("model", "training").key
        True
        >>> stream_key(42, "model", 7) == stream_key(42, "model", "7")
        False

    Args:
        master_seed: int, ``0 <= master_seed < 2**128``.
        purpose: what the randomness is for.
        instance_id: which one of several: None, int or str.
    """
    # The fields need no separator: each says its length. The tag is followed by three fields here
    # and by a slash in the module's other hashes, so that none of those begins as this one.
    return hashlib.sha256(_stream_prefix(master_seed, purpose) + encode_field(instance_id)).digest()


def position_key(key: bytes, encoded_coordinates: bytes) -> bytes:
    """Return the key of a position: 32 bytes.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.derivation import encode_coordinates, position_key, stream_key
        >>> key = position_key(stream_key(42, "noise"), encode_coordinates((3, 7)))
        >>> key == SeedRegistry(42).stream("noise").at(3, 7).key
        True

    Args:
        key: of the position's stream, 32 bytes.
        encoded_coordinates: what :func:`encode_coordinates` returned.
    """
    return hashlib.sha256(_TAG_POSITION + key + encoded_coordinates).digest()


def position_prefix(key: bytes, encoded_coordinates: bytes) -> hashlib._Hash:
    """Return the hash in which every position begins that has these first coordinates.

    A copy of it, updated with the encoding of the further coordinates, has the key of the position
    as its digest. The hash itself must stay as it is.
    """
    return hashlib.sha256(_TAG_POSITION + key + encoded_coordinates)


def child_master_seed(key: bytes) -> int:
    """Return the master seed of the child at the stream with that key: an int below 2**128.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.derivation import child_master_seed, stream_key
        >>> child = SeedRegistry(42).child("fold", 3)
        >>> child_master_seed(stream_key(42, "fold", 3)) == child.master_seed
        True
    """
    return int.from_bytes(hashlib.sha256(_TAG_CHILD + key).digest()[: MASTER_SEED_BITS // 8], "big")


def seed_of_key(key: bytes) -> int:
    """Return the first 32 bits of a key, big-endian, modulo 2**31.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.derivation import seed_of_key, stream_key
        >>> registry = SeedRegistry(42, scheme="sha256-256")
        >>> seed_of_key(stream_key(42, "model", "training")) == registry.seed("model", "training")
        True
    """
    return int.from_bytes(key[:4], "big") & _SEED_MASK


def late_seed(master_seed: int, kind: str) -> int:
    """Return the 64-bit seed of an accelerator that started inside a scope, unforeseen.

    It is taken from the key of the position ("late", kind) in the stream ("global", None).

    Args:
        master_seed: int, ``0 <= master_seed < 2**128``.
        kind: of the accelerator, such as ``"cuda"``.
    """
    key = stream_key(master_seed, "global")
    return philox_seed(position_key(key, encode_coordinates(("late", kind))))


def documented_seed(master_seed: int, purpose: str, instance_id: InstanceId = None) -> int:
    """Return the component seed by the documented formula: an int, ``0 <= seed < 2**31``.

    It is the first 32 bits, big-endian, of SHA-256 over ``"{master_seed}_{purpose}"`` or
    ``"{master_seed}_{purpose}_{instance_id}"``, modulo 2**31. The formula is not injective, and
    its arguments are validated by the caller.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.derivation import documented_seed
        >>> documented_seed(42, "model", "training")
        1958051794
        >>> documented_seed(42, "model", "training") == SeedRegistry(42).seed("model", "training")
        True
        >>> documented_seed(42, "model", 7) == documented_seed(42, "model", "7")
        True
    """
    text = (
        f"{master_seed}_{purpose}"
        if instance_id is None
        else f"{master_seed}_{purpose}_{instance_id}"
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & _SEED_MASK


def _seed_from_stream_key(master_seed: int, purpose: str, instance_id: InstanceId = None) -> int:
    return seed_of_key(stream_key(master_seed, purpose, instance_id))


# --- what each library is seeded with: bits of its own --------------------------------------------


def python_seed(key: bytes) -> int:
    """Return the 256-bit int that seeds ``random.Random`` at a key."""
    return int.from_bytes(hashlib.sha256(_TAG_PYTHON + key).digest(), "big")


def numpy_seed(key: bytes) -> int:
    """Return the 32-bit int that seeds NumPy's legacy generator at a key, under ``sha256-31``."""
    return int.from_bytes(hashlib.sha256(_TAG_NUMPY + key).digest()[:4], "big")


def numpy_words(key: bytes) -> Tuple[int, ...]:
    """Return eight 32-bit words that seed NumPy's legacy generator, under ``sha256-256``."""
    digest = numpy_word_bytes(key)
    return tuple(int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4))


def numpy_word_bytes(key: bytes) -> bytes:
    """Return the bytes of the eight words of :func:`numpy_words`, each big-endian."""
    return hashlib.sha256(_TAG_NUMPY + key).digest()


def mt19937_words(key: bytes) -> bytes:
    """Return the 624 state words of torch's CPU generator at a key, under ``sha256-256``.

    Returns:
        Bytes, 2,496 of them; each four are a word, little-endian.
    """
    return hashlib.shake_128(_TAG_MT19937 + key).digest(4 * _MT19937_WORDS)


def philox_seed(key: bytes) -> int:
    """Return the 64-bit seed of an accelerator's generator at a key, under ``sha256-256``."""
    return int.from_bytes(key[:8], "big")


# --- schemes --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Scheme:
    """A named rule from names to seeds.

    Immutable; the two instances are in :data:`SCHEMES`.

    Example:
        >>> from seedregistry.derivation import find_scheme
        >>> scheme = find_scheme("sha256-31")
        >>> scheme.derive(42, "model", "training")
        1958051794
        >>> scheme.full_width, scheme.refuses_shared_seeds
        (False, True)

    Attributes:
        name: the name that ledgers carry.
        derive: ``(master_seed, purpose, instance_id) -> seed``, ``0 <= seed < 2**31``; takes
            validated names.
        full_width: generators take as much of the key as they can, instead of the 31-bit seed.
        refuses_shared_seeds: two streams with one seed would be one stream, so the registry refuses
            the second.
    """

    name: str
    derive: Callable[[int, str, InstanceId], int]
    full_width: bool
    refuses_shared_seeds: bool


SCHEMES: Dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="sha256-31", derive=documented_seed, full_width=False, refuses_shared_seeds=True
        ),
        Scheme(
            name="sha256-256",
            derive=_seed_from_stream_key,
            full_width=True,
            refuses_shared_seeds=False,
        ),
    )
}
"""The schemes by name."""

DEFAULT_SCHEME = "sha256-31"


def find_scheme(name: object) -> Scheme:
    """Return the scheme of that name.

    Example:
        >>> from seedregistry.derivation import SCHEMES, find_scheme
        >>> list(SCHEMES)
        ['sha256-31', 'sha256-256']
        >>> find_scheme("sha256-512")
        Traceback (most recent call last):
            ...
        seedregistry.errors.InvalidOptionError: There is no scheme 'sha256-512' ...

    Raises:
        InvalidOptionError: there is none.
    """
    scheme = SCHEMES.get(name) if isinstance(name, str) else None
    if scheme is None:
        names = ", ".join(map(repr, SCHEMES))
        raise InvalidOptionError(f"There is no scheme {_show(name)}. Schemes: {names}.")
    return scheme
