"""What the digest is of: the content of all entries, each counted as often as it holds.

An *event* (something built or handed out) counts as often as it happened; a *fact* (a derivation, a
split, a setting) is no more true for being stated by two processes. So within one session of one
origin everything counts as often as it stands there. Of several sessions of an origin the most that
one of them saw counts, since a session that resumes another repeats it. Over origins, which are
processes of their own, events are added and facts are not.

Source: the union (the maximum) and the sum of multisets are those of D. E. Knuth, The Art of
Computer Programming, volume 2, section 4.6.3, exercise 19.
"""

from __future__ import annotations

from collections import Counter
from typing import Dict, List, Tuple

from seedregistry.common import digest
from seedregistry.ledger import codec
from seedregistry.ledger.chain import FORMAT

_FACTS = ""
"""The one group of all facts; events are counted by origin, and no origin has an empty name."""


class _Group:
    """Contents that are counted together: of each, the most that one place saw."""

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()
        self._places: Dict[Tuple[str, int], Counter[bytes]] = {}

    def at(self, place: Tuple[str, int]) -> Counter[bytes]:
        """Return the counter of one place; while there is one only, it is that of the group."""
        if place not in self._places:
            # Most ledgers have one place, and would hold each content twice. When a second comes,
            # the first gets a counter to itself.
            if len(self._places) == 1:
                self._places = {
                    earlier: Counter(counter) for earlier, counter in self._places.items()
                }
            self._places[place] = Counter() if self._places else self.counts
        return self._places[place]


class Contents:
    """The contents of entries, as they are counted. Not thread-safe."""

    def __init__(self) -> None:
        self._groups: Dict[str, _Group] = {_FACTS: _Group()}
        # What counts, in order up to the last digest. A file may hold thousands of seals, each with
        # a digest of everything before it: sorting is then nearly done, and no content is built
        # into a digest twice where a seal follows nothing new.
        self._pieces: List[bytes] = []
        self._digest = ""
        self.begin("0", 0)

    def begin(self, origin: str, session: int) -> None:
        """Say where the entries that are added next come from."""
        self._place = (origin, session)

    def add(self, kind: str, content: bytes) -> bool:
        """Add the content of an entry, as ``codec.encode_line`` gives it.

        Returns:
            Whether the digest counts it beside those before; False for a repetition.
        """
        group = self._groups.setdefault(_FACTS if kind in codec.FACTS else self._place[0], _Group())
        counter = group.at(self._place)
        count = counter.get(content, 0) + 1
        counter[content] = count
        counts = counter is group.counts or count > group.counts.get(content, 0)
        if counts:
            group.counts[content] = count
            self._pieces.append(content)
            self._digest = ""
        return counts

    def digest(self) -> str:
        """Return the digest of all contents so far: 64 hexadecimal digits."""
        if not self._digest:
            # The contents are the pieces, each as often as it counts. Sorting them takes out the
            # order in which threads, workers and processes recorded.
            self._pieces.sort()
            self._digest = digest.digest_sorted(f"{FORMAT}/content", self._pieces)
        return self._digest
