"""What the steps of a training fetched and computed: by it one training is told from another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import torch

from seedregistry.common.tensors import tensor_bytes
from seedregistry.errors import ReplayError

if TYPE_CHECKING:
    from seedregistry.attribution.states import Batch, State


_OF_NUMPY = (torch.float32, torch.float64)


class History:
    """Digests of what each step of a training fetched and computed, with every weight 1.

    A recipe says what a training should do. Labels that differ in the tenth epoch, a dropout of
    another probability or an edited line of the model show in what it did: in the indices and the
    samples of a batch, in the loss of each example, in the state that it ends in.

    Args:
        steps: of the training.
        device: of the training. On a CPU a step that is done again has the same losses bit for bit.
        by_index: the indices say what was fetched, as of tensors, whose digest somebody else keeps.
    """

    def __init__(self, steps: int, device: torch.device, *, by_index: bool) -> None:
        self._steps = steps
        self._is_exact = device.type == "cpu"
        self._by_index = by_index
        self._digests: Dict[int, Tuple[str, str]] = {}
        self._end: Optional[str] = None

    @property
    def is_whole(self) -> bool:
        """Whether every step was done."""
        return self._end is not None and len(self._digests) == self._steps

    def add(self, step: int, batch: Batch, losses: torch.Tensor) -> None:
        """Add a step, or compare one that is done again.

        Args:
            step: its number.
            batch: what was fetched.
            losses: of its examples, shape (batch,).

        Raises:
            ReplayError: it fetched or computed something else than the first time.
        """
        plain = losses.numpy() if losses.dtype in _OF_NUMPY and losses.is_cpu else None
        sha = hashlib.sha256(batch.indices.numpy())  # type: ignore[arg-type]  # NumPy's stubs
        sha.update(tensor_bytes(losses) if plain is None else plain)  # type: ignore[arg-type]
        digests = "" if self._by_index else digest_batch(batch), sha.hexdigest()
        before = self._digests.setdefault(step, digests)
        if before[0] != digests[0] or (self._is_exact and before[1] != digests[1]):
            what = "fetched other examples" if before[0] != digests[0] else "had other losses"
            message = (
                f"Step {step} {what} when it was done again: the training is not the one that it "
                "was. Data, model, loss or code have changed since, or draw something that no "
                "stream sets."
            )
            raise ReplayError(message)

    def end(self, state: State) -> None:
        """Take notice of the state after the last step."""
        self._end = state.fingerprint()

    def check_batch(self, step: int, batch: Batch) -> None:
        """Compare what a step fetches with what it fetched, without computing it.

        Raises:
            ReplayError: it is something else.
        """
        if not self._by_index and digest_batch(batch) != self._digests[step][0]:
            raise ReplayError(
                f"Step {step} fetches other examples than it did before the walk was interrupted: "
                "the data have changed since."
            )

    def fingerprint(self) -> str:
        """Return SHA-256 over all steps and the end: 64 hexadecimal digits. Only when whole."""
        rows = [self._digests[step] for step in range(self._steps)]
        return hashlib.sha256(repr((rows, self._end)).encode()).hexdigest()

    def state_dict(self) -> Dict[str, Any]:
        """Return the digests as plain data, for a file."""
        return {
            "steps": sorted((step, *digests) for step, digests in self._digests.items()),
            "end": self._end,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            ReplayError: a step of this history was another one.
        """
        loaded = {step: (fetched, computed) for step, fetched, computed in state["steps"]}
        different = [
            step for step, digests in self._digests.items() if loaded.get(step, digests) != digests
        ]
        if different:
            raise ReplayError(
                f"Step {min(different)} was another one before the walk was interrupted: data, "
                "model, loss or code have changed since."
            )
        self._digests.update(loaded)
        self._end = state["end"]


def digest_batch(batch: Batch) -> str:
    """Return SHA-256 over what a step fetched: indices, inputs and targets."""
    sha = hashlib.sha256()
    for value in _flatten([batch.indices, batch.inputs, batch.targets]):
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(tensor_bytes(value))
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()


def _flatten(value: Any) -> List[Any]:
    """Return the tensors and plain values that collated examples consist of."""
    if isinstance(value, dict):
        return [item for name in sorted(value) for item in (name, *_flatten(value[name]))]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [item for element in value for item in _flatten(element)]
    return [value]
