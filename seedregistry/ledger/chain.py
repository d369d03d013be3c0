"""The hash chain of a ledger file: each line has a hash over itself and all lines before it.

Pure functions of bytes. A line is ``{"chain":"<64 hexadecimal digits>",`` and the rest of its
*body*, the canonical JSON object without that key. The chain value of a line is SHA-256 over a tag,
the chain value of the line before (32 bytes) and the body; the first line follows :data:`START`.
Seals have a tag of their own, so that no record can pass for a seal.

The chain finds accidents: a flipped byte, a lost, moved or foreign line. Whoever changes a line on
purpose can compute all chain values anew; that is found by deriving the seeds again, and against a
digest printed elsewhere.

Source: the tags follow the domain separation of leaves and nodes in RFC 6962, section 2.1; SHA-256
is that of FIPS 180-4.
"""

from __future__ import annotations

import hashlib
import re
from typing import Tuple

from seedregistry.errors import LedgerFormatError

FORMAT = "seedregistry.ledger/1"
"""The name of the file format."""

LONGEST_LINE = 1 << 24
"""Bytes: a longer line is refused when it is made, and before it is read whole."""

_LINE_TAG = f"{FORMAT}/line".encode()
_SEAL_TAG = f"{FORMAT}/seal".encode()

START = hashlib.sha256(f"{FORMAT}/start".encode()).digest()
"""What the first line of a file follows: 32 bytes."""

_CHAIN_KEY = re.compile(rb'\{"chain":"([0-9a-f]{64})",')
_KEY_LENGTH = len(b'{"chain":"') + 64 + len(b'",')


def link(previous: bytes, body: bytes) -> bytes:
    """Return the chain value (32 bytes) of a line after the one with the value ``previous``."""
    return hashlib.sha256(_LINE_TAG + previous + body).digest()


def link_seal(previous: bytes, body: bytes) -> bytes:
    """Return the chain value (32 bytes) of a seal after the line with the value ``previous``."""
    return hashlib.sha256(_SEAL_TAG + previous + body).digest()


def join(value: bytes, body: bytes) -> bytes:
    """Return a whole line: the body with its chain value, and the line feed."""
    # "chain" is the first name in the order of the format, so the line is canonical as well.
    return b'{"chain":"%b",%b\n' % (value.hex().encode(), body[1:])


def split(line: bytes) -> Tuple[bytes, bytes]:
    """Return the chain value (32 bytes) and the body of a line without its line feed.

    Raises:
        LedgerFormatError: it does not begin with a chain value.
    """
    match = _CHAIN_KEY.match(line)
    if match is None:
        raise LedgerFormatError('it does not begin with {"chain":"<64 hexadecimal digits>",')
    return bytes.fromhex(match.group(1).decode()), b"{" + line[_KEY_LENGTH:]
