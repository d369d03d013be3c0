"""What a step of a training starts from, and the examples that it takes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Iterable, Sequence, Tuple

import attrs

from seedregistry.common.tensors import tensor_bytes

if TYPE_CHECKING:
    import torch


@attrs.frozen(kw_only=True, eq=False)
class State:
    """What a step starts from: all that training carries from step to step.

    Attributes:
        parameters: of the model, those that are trained, in the order of ``named_parameters``.
        slots: of the optimizer, for each parameter.
        updates: how often each parameter was updated: in every step in which it had a gradient.
        step: int >= 0, the step that comes next.
    """

    parameters: Tuple[torch.Tensor, ...]
    slots: Tuple[Tuple[torch.Tensor, ...], ...]
    updates: Tuple[int, ...]
    step: int

    def tensors(self) -> Tuple[torch.Tensor, ...]:
        """Return all tensors in one order: parameters, then slots."""
        return (*self.parameters, *(tensor for slots in self.slots for tensor in slots))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> State:
        """Return a state of the same step with other tensors, in the order of :meth:`tensors`."""
        rest = list(tensors[len(self.parameters) :])
        slots = []
        for buffers in self.slots:
            slots.append(tuple(rest[: len(buffers)]))
            del rest[: len(buffers)]
        return attrs.evolve(
            self, parameters=tuple(tensors[: len(self.parameters)]), slots=tuple(slots)
        )

    def fingerprint(self) -> str:
        """Return SHA-256 over step, dtypes, shapes and bytes: 64 hexadecimal digits."""
        sha = hashlib.sha256(f"{self.step} {self.updates}".encode())
        add_tensors(sha, self.tensors())
        return sha.hexdigest()


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """The examples of one step.

    Attributes:
        inputs: of the model.
        targets: of the loss.
        indices: of the examples in the dataset, int64, shape (batch,).
    """

    inputs: Any
    targets: Any
    indices: torch.Tensor


def add_tensors(sha: Any, tensors: Iterable[torch.Tensor]) -> None:
    """Add dtype, shape and bytes of each tensor to a hash."""
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor_bytes(tensor))
