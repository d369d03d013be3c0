"""What is attributed: functions of a training's final state, tried before anything is trained."""

from __future__ import annotations

import hashlib
from typing import Any, Callable

import attrs
import torch

from seedregistry.attribution.states import FAILURES, State
from seedregistry.attribution.training import Training
from seedregistry.common.tensors import tensor_bytes
from seedregistry.determinism import torch_threads
from seedregistry.errors import RecipeError

Measurement = Callable[[Training, State], torch.Tensor]
"""A function of a training and its final state that returns the measured values.

The values have shape (targets,) and are differentiable in the state's tensors.
"""


@attrs.frozen(kw_only=True, eq=False)
class _ExampleLosses:
    inputs: Any
    targets: torch.Tensor
    is_margin: bool

    def __call__(self, training: Training, state: State) -> torch.Tensor:
        outputs, targets = training.outputs(state, self.inputs), training.place(self.targets)
        if not self.is_margin:
            return training.recipe.loss(outputs, targets)

        right = outputs.gather(1, targets[:, None]).squeeze(1)
        others = outputs.scatter(1, targets[:, None], float("-inf"))
        return right - others.logsumexp(1)


def losses_of(inputs: Any, targets: torch.Tensor) -> Measurement:
    """Return the measurement of the loss of each of some examples, in evaluation mode.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, losses_of
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), dataset=data, epochs=1,
        ...                 batch_size=4, optimizer_options={"lr": 0.1})
        >>> training = Training(SeedRegistry(42), recipe)
        >>> losses_of(*data)(training, training.train()).shape
        torch.Size([8])

    Args:
        inputs: what the model is called with, as in a batch of the training.
        targets: what the recipe's loss is called with, shape (targets, ...).
    """
    return _ExampleLosses(inputs=inputs, targets=targets, is_margin=False)


def margins_of(inputs: Any, targets: torch.Tensor) -> Measurement:
    """Return the measurement of the margin of each of some examples, in evaluation mode.

    The margin is the output of the example's class minus the log-sum-exp of the other outputs.

    Args:
        inputs: what the model is called with, as in a batch of the training.
        targets: classes, int64, shape (targets,).
    """
    return _ExampleLosses(inputs=inputs, targets=targets, is_margin=True)


def measure(
    training: Training, measurement: Measurement, state: State, *, is_differentiated: bool = True
) -> torch.Tensor:
    """Return the measured values of a state: shape (targets,).

    Args:
        training: the training that the state is of.
        measurement: what to measure.
        state: of the training; its parameters require gradients where the values are
            differentiated.
        is_differentiated: keep what is needed to differentiate the values by the state's
            parameters.

    Raises:
        RecipeError: the measurement fails, or is no vector that depends on the state's parameters.
    """
    try:
        with torch.set_grad_enabled(is_differentiated):
            values = measurement(training, state)
    except FAILURES as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"The measurement failed on the state before step {state.step}: {error}"
        ) from error

    is_vector = isinstance(values, torch.Tensor) and values.ndim == 1 and len(values) > 0
    if not is_vector or (is_differentiated and not values.requires_grad):
        shape = (
            f"shape {tuple(values.shape)}"
            if isinstance(values, torch.Tensor)
            else type(values).__name__
        )
        flat = " without a gradient" if is_vector else ""
        message = (
            "A measurement returns a tensor of shape (targets,) that depends on the state's "
            f"parameters; got {shape}{flat}."
        )
        raise RecipeError(message)
    return values


@attrs.frozen(kw_only=True)
class Identity:
    """What tells a measurement from others.

    Attributes:
        digest: SHA-256 over what it measures on two states at the beginning, and over its data
            where :func:`losses_of` or :func:`margins_of` made it: 64 hexadecimal digits.
        targets: int > 0, how many values it has.
    """

    digest: str
    targets: int


def identify(
    training: Training, measurement: Measurement, *, is_differentiated: bool = True
) -> Identity:
    """Return what tells a measurement from others, by trying it before the training.

    It is measured on the initial state and on a state beside it. A measurement that fails, fails
    here and not after the training.

    Args:
        training: the training that will be measured.
        measurement: what to measure.
        is_differentiated: the values will be differentiated by the state's parameters.

    Raises:
        RecipeError: as for :func:`measure`; or no gradient reaches the state.
    """
    initial = training.initial_state()
    state = initial.with_tensors(
        [tensor.detach().requires_grad_(is_differentiated) for tensor in initial.tensors()]
    )

    with torch_threads(training.recipe.threads):
        values = measure(training, measurement, state, is_differentiated=is_differentiated)
        if is_differentiated:
            reached = torch.autograd.grad(values.sum(), state.parameters, allow_unused=True)
            if all(gradient is None for gradient in reached):
                message = (
                    "No gradient reaches the state from the measurement: it measured a copy of "
                    "the model. Compute with training.outputs(state, inputs), or from "
                    "state.parameters."
                )
                raise RecipeError(message)
        # A last layer of zeros has equal outputs on all inputs, so two measurements of different
        # examples could have equal values here. Hence a second state, with every parameter moved.
        moved = initial.with_tensors([_shift(tensor) for tensor in initial.tensors()])
        beside = measure(training, measurement, moved, is_differentiated=False)

    # Stores of retrainings hold this digest: what is hashed, and its order, cannot change.
    name = getattr(measurement, "__qualname__", type(measurement).__qualname__)
    sha = hashlib.sha256(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
    for measured in (values, beside):
        sha.update(tensor_bytes(measured))
    if isinstance(measurement, _ExampleLosses):
        for data in (measurement.inputs, measurement.targets):
            sha.update(
                tensor_bytes(data) if isinstance(data, torch.Tensor) else repr(data).encode()
            )
        sha.update(str(measurement.is_margin).encode())
    return Identity(digest=sha.hexdigest(), targets=len(values))


def _shift(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with each element moved by a different amount, without a draw."""
    steps = torch.arange(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    return tensor.detach() + 0.01 * torch.sin(steps + 1).reshape(tensor.shape)
