"""What a step of a training starts from, and the examples that it takes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Iterable, Sequence, Tuple

import attrs

from seedregistry.common.tensors import tensor_bytes

if TYPE_CHECKING:
    import torch


FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model, a loss or a measurement of the user's may fail with."""


@attrs.frozen(kw_only=True, eq=False)
class State:
    """What a step starts from: all that training carries from step to step.

    Immutable; pickles. States are told apart by :meth:`fingerprint`, not by ``==``.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), dataset=data, epochs=1,
        ...                 batch_size=4, optimizer_options={"lr": 0.1})
        >>> training = Training(SeedRegistry(42), recipe)
        >>> state = training.advance(training.initial_state(), 1)
        >>> state.step, [tuple(tensor.shape) for tensor in state.parameters]
        (1, [(2, 8), (2,)])

    Attributes:
        parameters: of the model, those that are trained, in the order of ``named_parameters``.
        slots: what the optimizer keeps for each parameter: one tensor for SGD with momentum, two
            for Adam and AdamW, none for plain SGD.
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
        """Return a state of this step with other tensors, in the order of :meth:`tensors`."""
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
        # Ledgers and files hold this digest: the text that is hashed cannot change.
        sha = hashlib.sha256(f"{self.step} {self.updates}".encode())
        add_tensors(sha, self.tensors())
        return sha.hexdigest()


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """The examples of one step.

    Immutable; made by ``Training.batch``.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), dataset=data, epochs=1,
        ...                 batch_size=4, optimizer_options={"lr": 0.1})
        >>> batch = Training(SeedRegistry(42), recipe).batch(1)
        >>> batch.indices.shape, torch.equal(batch.inputs, data[0][batch.indices])
        (torch.Size([4]), True)

    Attributes:
        inputs: what the model is called with: a tensor of shape (batch, ...), or what the dataset's
            inputs are collated to.
        targets: what the loss is called with beside the model's outputs.
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
