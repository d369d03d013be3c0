"""What is tried before a training, and what is said of a step that failed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import torch
from torch import nn

from seedregistry import determinism
from seedregistry.attribution.recipe import cross_entropy
from seedregistry.attribution.states import FAILURES
from seedregistry.common.tensors import tensor_bytes
from seedregistry.errors import RecipeError

if TYPE_CHECKING:
    from seedregistry.attribution.states import Batch, State
    from seedregistry.attribution.training import Training
    from seedregistry.stream import Stream

_log = logging.getLogger(__name__)

COMPUTES = (
    "machine",
    "numpy",
    "torch",
    "torch.cuda",
    "torch.num_threads",
    "torch.float32_matmul_precision",
    "cuda.matmul.allow_tf32",
    "cudnn.allow_tf32",
    "mkldnn.enabled",
    *("torch.hip", "torch.cudnn", "torch.fp32_precision"),
    *("cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision"),
)
"""Facts of the environment that may change the bits of a training."""

_SHOWN = 5
"""Examples that a message names at most."""


def check_gradients(
    training: Training, names: Sequence[str], dropout: Stream, steps: Sequence[Tuple[State, Batch]]
) -> None:
    """Compare the gradients of steps with those of a plain loop over a copy of the model.

    In the plain loop the parameters are the model's own, and ``loss.backward()`` is called. In
    the first step a model that computes a part of itself from its own parameters, and not from
    those of the state, cannot be told from others: these are the same there.

    Args:
        training: the training.
        names: of the parameters that are trained, in the order of a state's.
        dropout: the stream of what the model draws in a step.
        steps: each as the state before it and its batch.

    Raises:
        RecipeError: a gradient is another one.
    """
    model = training.copy_model(training.initial_state()).train()
    parameters = dict(model.named_parameters())
    for state, batch in steps:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in zip(names, state.parameters):
                parameters[name].copy_(parameter)
        with torch.enable_grad(), dropout.scope(*training.position(state.step), rank=None):
            losses = training.recipe.loss(model(batch.inputs), batch.targets)
            (losses.sum() / len(batch.indices)).backward()  # type: ignore[no-untyped-call]

        gradients = training.gradients(state, training.ones(len(batch.indices)), batch)
        for name, gradient in zip(names, gradients):
            if not _is_same(gradient, parameters[name].grad):
                message = (
                    f"In step {state.step} the gradient of {name} is not that of a plain "
                    "training loop over the model. The model, or a layer of it, computes "
                    "something from other parameters than those of the step: a copy that it "
                    "keeps, or a recomputation that is not torch.utils.checkpoint's."
                )
                raise RecipeError(message)


def check_data(training: Training, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Refuse tensors with examples that would end the training.

    Raises:
        RecipeError: an input is not finite, or a target is a class that the model has not.
    """
    if inputs.is_floating_point():
        wrong = (~torch.isfinite(inputs).reshape(len(inputs), -1).all(1)).nonzero().flatten()
        if len(wrong):
            raise RecipeError(
                f"The inputs of {len(wrong)} examples are not finite; the first is example "
                f"{int(wrong[0])}."
            )

    if training.recipe.loss is cross_entropy and not targets.is_floating_point():
        try:
            with torch.no_grad():
                classes = training.outputs(training.initial_state(), inputs[:1]).shape[1]
        except FAILURES:
            return  # the first step says what is wrong with the model

        wrong = ((targets < 0) | (targets >= classes)).flatten().nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            message = (
                f"The targets of {len(wrong)} examples are no classes: the model has "
                f"{classes} outputs, and the target of example {first} is "
                f"{int(targets.flatten()[first])}."
            )
            raise RecipeError(message)


def _is_same(gradient: Optional[torch.Tensor], expected: Optional[torch.Tensor]) -> bool:
    """Return whether two gradients are equal: bit for bit on the CPU, else but for rounding."""
    if gradient is None or expected is None:
        return gradient is expected
    if gradient.device.type == "cpu":
        return torch.equal(gradient, expected)
    tolerance = torch.finfo(gradient.dtype).eps ** 0.5
    return torch.allclose(
        gradient, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


def bytes_of(values: Sequence[Any]) -> List[bytes]:
    """Return the bytes of those values of a batch that are tensors."""
    return [tensor_bytes(value).tobytes() for value in values if isinstance(value, torch.Tensor)]


def advise_determinism(device: torch.device) -> str:
    """Return what else to do where a step differs, ``""`` for nothing."""
    if device.type == "cpu" or determinism.current_mode() == "strict":
        return ""
    return (
        f" On {device.type} sums have no fixed order: call registry.set_global_state("
        "deterministic='strict') first."
    )


def explain_loss(step: int, loss: float, batch: Batch, losses: torch.Tensor) -> str:
    """Return which examples a loss that is not finite comes from, and what to do."""
    wrong = batch.indices[(~torch.isfinite(losses.detach())).cpu()].tolist()
    shown = ", ".join(map(str, wrong[:_SHOWN])) + (" and more" if len(wrong) > _SHOWN else "")
    return (
        f"The loss of step {step} is {loss}{f', from examples {shown}' if wrong else ''}. Where "
        "they are many the training diverged: lower the learning rate. Where they are few look "
        "at their inputs and targets."
    )


def describe_batch(batch: Batch) -> str:
    """Return what a model was called with, for a message."""
    return f"inputs {_describe(batch.inputs)}, targets {_describe(batch.targets)}"


def _describe(value: Any) -> str:
    return (
        f"of shape {tuple(value.shape)}"
        if isinstance(value, torch.Tensor)
        else f"of type {type(value).__name__}"
    )


def refuse_running_statistics(model: nn.Module) -> None:
    """Refuse layers that carry statistics from batch to batch, and warn of those within a batch.

    Statistics that are carried are no part of a state. An example of weight zero enters them, so
    its removal could not be predicted either. A layer that the model keeps in evaluation mode
    changes nothing and normalises by what it has.

    Args:
        model: in training mode.
    """
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
    ]
    names = [
        f"{name} ({type(module).__name__})" for name, module in layers if module.track_running_stats
    ]
    unsaid = [
        name for name, module in layers if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    if unsaid and not names:
        _log.warning(
            "The model normalises over the batch (%s): an example of weight 0 still enters its "
            "statistics, so a weight of 0 is not quite a removal. Use GroupNorm or LayerNorm.",
            ", ".join(unsaid),
        )
    if names:
        message = (
            f"The model carries batch statistics from step to step: {', '.join(names)}. An "
            "example of weight 0 still enters them. Use GroupNorm or LayerNorm."
        )
        raise RecipeError(message)
