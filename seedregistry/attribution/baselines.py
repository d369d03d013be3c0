"""Simpler scores, for the table beside MAGIC.

They are the gradient dot product, TracIn, the influence function and random scores. All have the
shape and the sign of MAGIC's scores: the effect of an example's weight on each measurement, shape
(targets, size). Training examples are looked at some at a time, so that memory does not grow with
their number.

Source: G. Pruthi and others, Estimating Training Data Influence by Tracing Gradient Descent, 2020
(TracIn); P. W. Koh and P. Liang, Understanding Black-box Predictions via Influence Functions, 2017;
J. Martens, New Insights and Perspectives on the Natural Gradient Method, 2020 (Gauss-Newton).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Iterator, Sequence, Tuple

import torch
from torch.func import grad, jvp, vjp, vmap

from seedregistry.attribution.measurements import measure
from seedregistry.determinism import torch_threads
from seedregistry.errors import RecipeError

if TYPE_CHECKING:
    from seedregistry.attribution.measurements import Measurement
    from seedregistry.attribution.states import State
    from seedregistry.attribution.training import Training

_TOLERANCE = 1e-6
_MOST_NUMBERS = 2**26
"""Numbers in the gradients that are held together: examples times parameters."""
_MOST_INPUTS = 2**22
"""Numbers in the inputs that are held together, counted once for each vector."""


def gradient_dot_product(
    training: Training, measurement: Measurement, state: State
) -> torch.Tensor:
    """Return minus the dot product of the measurement's gradient and each example's.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, baselines, losses_of
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> make = lambda: torch.nn.Linear(8, 2)
        >>> recipe = Recipe(model=make, dataset=data, epochs=1, batch_size=4)
        >>> training, measurement = Training(SeedRegistry(42), recipe), losses_of(*data)
        >>> baselines.gradient_dot_product(training, measurement, training.train()).shape
        torch.Size([8, 8])

    Args:
        training: what is attributed.
        measurement: what is measured.
        state: where both gradients are taken, such as the final one.

    Returns:
        Shape (targets, size), on the CPU.
    """
    with torch_threads(training.recipe.threads):
        rows = _flatten(_differentiate(training, measurement, state))
        return -_dot_products(training, state, rows).cpu()


def tracin(training: Training, measurement: Measurement, states: Sequence[State]) -> torch.Tensor:
    """Return the gradient dot products summed over states along the way, each by its learning rate.

    Args:
        training: what is attributed.
        measurement: what is measured.
        states: such as those after each epoch; the learning rate is that of the last step before
            each.

    Returns:
        Shape (targets, size), on the CPU.
    """
    with torch_threads(training.recipe.threads):
        total = torch.zeros((), device="cpu")
        for state in states:
            rate = training.learning_rate(max(state.step - 1, 0))
            total = total + rate * gradient_dot_product(training, measurement, state)
    return total


def influence_function(
    training: Training,
    measurement: Measurement,
    state: State,
    *,
    damping: float = 0.1,
    iterations: int = 100,
) -> torch.Tensor:
    """Return minus (measurement's gradient) x (inverse Gauss-Newton) x (example's gradient).

    The Gauss-Newton matrix is damped. The system is solved by conjugate gradients, for all targets
    at once, and the products with the matrix are exact.

    Args:
        training: what is attributed.
        measurement: what is measured.
        state: the final state.
        damping: added to the diagonal, > 0.
        iterations: of the conjugate gradients, at most.

    Returns:
        Shape (targets, size), on the CPU.

    Raises:
        RecipeError: the damping is not positive.
    """
    if not damping > 0:
        raise RecipeError(f"damping must be > 0; got {damping!r}.")
    with torch_threads(training.recipe.threads):
        product = _gauss_newton(training, state, damping)
        rows = _flatten(_differentiate(training, measurement, state))
        solved = _conjugate_gradients(product, rows, iterations)
        return (-_dot_products(training, state, solved) / training.size).cpu()


def random_scores(training: Training, targets: int) -> torch.Tensor:
    """Return scores that say nothing, from the stream ("random_scores", instance id).

    They show which score chance alone would get.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, baselines
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> make = lambda: torch.nn.Linear(8, 2)
        >>> recipe = Recipe(model=make, dataset=data, epochs=1, batch_size=4)
        >>> baselines.random_scores(Training(SeedRegistry(42), recipe), 3).shape
        torch.Size([3, 8])

    Args:
        training: whose examples get scores.
        targets: how many rows.

    Returns:
        Shape (targets, size), on the CPU, in the recipe's dtype.
    """
    generator = (
        training.registry.stream("random_scores", training.recipe.instance_id).at(0).generator()
    )
    return torch.randn(
        targets, training.size, generator=generator, dtype=training.recipe.dtype, device="cpu"
    )


def _flatten(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)


def _differentiate(
    training: Training, measurement: Measurement, state: State
) -> Tuple[torch.Tensor, ...]:
    """Return the gradients of each target, by parameter: shape (targets, *parameter.shape)."""
    parameters = tuple(parameter.detach().requires_grad_() for parameter in state.parameters)
    values = measure(
        training,
        measurement,
        state.with_tensors([*parameters, *state.tensors()[len(parameters) :]]),
    )
    rows = [
        torch.autograd.grad(
            value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for value in values
    ]
    return tuple(torch.stack(column) for column in zip(*rows))


def _pieces(training: Training, count: int) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Yield the inputs and targets of all training examples, some at a time."""
    inputs, targets = training.examples()
    size = max(1, count)
    yield from zip(torch.split(inputs, size), torch.split(targets, size))  # type: ignore[no-untyped-call]


def _dot_products(training: Training, state: State, rows: torch.Tensor) -> torch.Tensor:
    """Return flat rows times each example's gradient in evaluation mode: (rows, size)."""

    def loss(
        parameters: Tuple[torch.Tensor, ...], example: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        return training.recipe.loss(training.call(parameters, example[None]), target[None])[0]

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    with training.evaluating():
        products = [
            rows @ _flatten(gradients(state.parameters, inputs, targets)).T
            for inputs, targets in _pieces(training, _MOST_NUMBERS // rows.shape[1])
        ]
    return torch.cat(products, dim=1)


def _gauss_newton(
    training: Training, state: State, damping: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product of flat rows with the mean Gauss-Newton matrix plus damping."""
    shapes = [parameter.shape for parameter in state.parameters]
    sizes = [parameter.numel() for parameter in state.parameters]

    def products(
        vectors: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        def outputs(*parameters: torch.Tensor) -> torch.Tensor:
            return training.call(parameters, inputs)

        def total_loss(values: torch.Tensor) -> torch.Tensor:
            return training.recipe.loss(values, targets).sum()

        def multiply(vector: torch.Tensor) -> torch.Tensor:
            # J' H J v, with the Jacobian J of the outputs and the Hessian H of the loss in them:
            # forward along v, along that through the gradient of the loss, and back.
            tangents = tuple(
                tangent.reshape(shape) for tangent, shape in zip(torch.split(vector, sizes), shapes)
            )  # type: ignore[no-untyped-call]
            values, along = jvp(outputs, state.parameters, tangents)  # type: ignore[misc]
            _, curved = jvp(grad(total_loss), (values,), (along,))  # type: ignore[misc]
            _, pull = vjp(outputs, *state.parameters)  # type: ignore[misc]
            return torch.cat([gradient.flatten() for gradient in pull(curved)])

        result: torch.Tensor = vmap(multiply)(vectors)
        return result

    def product(vectors: torch.Tensor) -> torch.Tensor:
        total = damping * vectors
        # For all vectors at once, so that what a piece holds grows with their number too.
        count = _MOST_INPUTS // (len(vectors) * max(1, training.examples()[0][0].numel()))
        with training.evaluating():
            for inputs, targets in _pieces(training, count):
                total = total + products(vectors, inputs, targets) / training.size
        return total

    return product


def _conjugate_gradients(
    product: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Solve ``product(x) = right`` for each row, until all rows are solved or out of iterations."""
    # Each row has its step and direction; rows that are solved go on with the others, at no cost,
    # and the clamps keep them from 0 / 0.
    smallest = torch.finfo(right.dtype).tiny
    solution = torch.zeros_like(right)
    residual = right.clone()
    direction = residual.clone()
    size = residual.square().sum(1, keepdim=True)
    least = size * _TOLERANCE**2

    for _ in range(iterations):
        if bool((size <= least).all()):
            break
        curved = product(direction)
        step = size / (direction * curved).sum(1, keepdim=True).clamp(min=smallest)
        solution = solution + step * direction
        residual = residual - step * curved
        after = residual.square().sum(1, keepdim=True)
        direction = residual + (after / size.clamp(min=smallest)) * direction
        size = after
    return solution
