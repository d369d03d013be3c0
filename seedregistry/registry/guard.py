"""The guard of a registry: no seed and no stream twice, and no purpose, by accident."""

from __future__ import annotations

import warnings
from typing import (
    TYPE_CHECKING,
    Any,
    Collection,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Optional,
    Set,
    Tuple,
    Type,
)

from seedregistry.common.callsite import stack_level
from seedregistry.common.options import check_choice
from seedregistry.errors import (
    SeedCollisionError,
    SeedRegistryWarning,
    SimilarPurposeWarning,
    StreamReuseError,
    StreamReuseWarning,
)
from seedregistry.ledger import records
from seedregistry.ledger.claims import Owners
from seedregistry.registry.purposes import LIBRARY_PURPOSES, close_set, require_member, similar

if TYPE_CHECKING:
    from seedregistry.derivation import InstanceId
    from seedregistry.ledger import Ledger
    from seedregistry.stream import Stream

    Name = Tuple[int, str, InstanceId]
    Names = Tuple[object, ...]

_REUSE_RULES = ("auto", "allow", "warn", "forbid")


class Guard:
    """What a registry and its children have derived and used, and what they refuse or warn about.

    Pickles. Its registry's lock makes it thread-safe.

    Args:
        ledger: where warnings are recorded.
        on_reuse: ``"auto"``, ``"allow"``, ``"warn"`` or ``"forbid"``.
        purposes: the closed set of purposes, or None.

    Raises:
        InvalidOptionError: another ``on_reuse``, or ``purposes`` is not a collection of names.
    """

    def __init__(self, ledger: Ledger, *, on_reuse: str, purposes: Optional[Iterable[str]]) -> None:
        check_choice(on_reuse, "on_reuse", _REUSE_RULES)
        self.ledger = ledger
        self._on_reuse = on_reuse
        self._closed: Optional[FrozenSet[str]] = None if purposes is None else close_set(purposes)
        self._seen: Set[str] = set(LIBRARY_PURPOSES)
        self._owners = Owners()
        self._first_use: Dict[Names, str] = {}
        self._generator_sites: Set[Tuple[Names, str, str]] = set()
        self._scoped: Set[Names] = set()

    def __getstate__(self) -> Dict[str, Any]:
        # Copied in one step each: another thread may be deriving while these are pickled or copied.
        return {
            name: value.copy() if isinstance(value, (dict, set)) else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)

    def warn(
        self,
        category: Type[SeedRegistryWarning],
        message: str,
        purpose: str,
        instance_id: InstanceId = None,
    ) -> None:
        """Issue a warning at the user's line, and record it."""
        self.ledger.append(
            records.Warned(
                category=category.__name__,
                purpose=purpose,
                instance_id=instance_id,
                message=message,
            )
        )
        warnings.warn(message, category, stacklevel=stack_level())

    # --- purposes ---------------------------------------------------------------------------------

    def require_purpose(self, purpose: str) -> None:
        """Refuse a purpose outside the closed set, where there is one.

        Raises:
            UnknownPurposeError: names the set and the nearest member.
        """
        if self._closed is not None:
            require_member(purpose, self._closed)

    def check_purpose(self, purpose: str, registered: Collection[str]) -> None:
        """Refuse a purpose outside the closed set; warn, once, about a likely slip of the finger.

        Args:
            purpose: the purpose, of which a stream is about to be derived.
            registered: the purposes that have a component.

        Raises:
            UnknownPurposeError: names the set and the nearest member.
        """
        if purpose in self._seen:
            return
        self.require_purpose(purpose)
        self._seen.add(purpose)
        if self._closed is not None or purpose in registered:
            return
        near = similar(purpose, {*registered, *LIBRARY_PURPOSES})
        if near is not None:
            message = (
                f"Purpose {purpose!r} is new and one edit away from {near!r}. If it is meant, "
                "register a component for it or name it in SeedRegistry(..., purposes=...)."
            )
            self.warn(SimilarPurposeWarning, message, purpose)

    # --- seeds ------------------------------------------------------------------------------------

    def claim(self, seed: int, stream: Name) -> None:
        """Take a seed for a stream (master seed, purpose, instance id).

        A stream may take its seed again.

        Raises:
            SeedCollisionError: another stream has it.
        """
        other = self._owners.claim(seed, stream)
        if other is not None:
            self._refuse(seed, other, stream)

    def claim_all(self, claims: Iterable[Tuple[int, Name]]) -> None:
        """Take many seeds, or none of them.

        Raises:
            SeedCollisionError: two of the streams, or one and an earlier one, have one seed.
        """
        taken: List[int] = []
        try:
            for seed, stream in claims:
                if seed not in self._owners:
                    taken.append(seed)
                self.claim(seed, stream)
        except BaseException:  # an interrupt too: the seeds of no stream must not stay taken
            for seed in taken:
                self._owners.pop(seed, None)
            raise

    def _refuse(self, seed: int, owner: Name, stream: Name) -> None:
        first, second = owner[1:], stream[1:]
        relation = ""
        if owner[0] != stream[0]:
            relation = f" (the first in the related registry of master seed {owner[0]})"
        elif first[0] == second[0] and str(first[1]) == str(second[1]):
            relation = " (they differ in the type of the instance id only)"
        message = (
            f"Streams {first!r} and {second!r}{relation} have one seed, {seed}, under scheme "
            "'sha256-31': they would draw the same numbers. Rename one, or use SeedRegistry(..., "
            "scheme='sha256-256'), which has no such collisions. registry.reserve(purpose, ids) "
            "finds them before the first training."
        )
        raise SeedCollisionError(message, seed=seed, first=first, second=second)

    # --- uses -------------------------------------------------------------------------------------

    def check_use(self, stream: Stream, site: str, kind: str = "") -> None:
        """Warn about, or refuse, a use that repeats an earlier one, as ``on_reuse`` says.

        Args:
            stream: the stream that is about to be used.
            site: the user's line.
            kind: device or library of the generator, where one is handed out.

        Raises:
            StreamReuseError: ``on_reuse="forbid"`` and the stream was used before.
        """
        rule = self._on_reuse
        if rule == "allow":
            return
        names = stream.names()
        first = self._first_use.get(names)
        if first is None:
            return
        starts_over = bool(kind) and (names, kind, site) in self._generator_sites
        if rule == "auto" and stream.instance_id is not None and not starts_over:
            return
        if starts_over:
            what = (
                f"A second {kind} generator of stream '{stream.label}' was handed out at {site}: "
                "it starts over, and a loop that does this repeats its numbers."
            )
        else:
            what = (
                f"Stream '{stream.label}' is used at {site} and was first used at {first}: "
                "both draw the same numbers."
            )
        message = (
            f"{what} Give each use an instance id, take positions of it (stream.at(epoch)), or "
            "share it on purpose with an instance id or on_reuse='allow'."
        )
        if rule == "forbid":
            raise StreamReuseError(message)
        self.warn(StreamReuseWarning, message, stream.purpose, stream.instance_id)

    def mark_use(self, stream: Stream, site: str, kind: str = "") -> None:
        """Remember a use, with the kind of the generator where one is handed out."""
        names = stream.names()
        self._first_use.setdefault(names, site)
        if kind:
            self._generator_sites.add((names, kind, site))

    def mark_scope(self, stream: Stream, site: str) -> bool:
        """Remember a scope at the stream's start; return whether it is the first."""
        names = stream.names()
        self._first_use.setdefault(names, site)
        is_first = names not in self._scoped
        self._scoped.add(names)
        return is_first
