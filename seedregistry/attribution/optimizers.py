"""One step of an optimizer as a pure function of tensors, in torch's own order of operations.

Each rule follows the single-tensor path of torch, which the CPU takes. Results are bit-equal to it,
and every operation can be differentiated twice.

Source: ``torch/optim/sgd.py``, ``adam.py`` and ``adamw.py``, functions ``_single_tensor_*``, read
at 2.2 and 2.13.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from seedregistry.errors import RecipeError

Hyper = Mapping[str, Any]
"""The options of a parameter's group at one step."""

SlotTensors = Tuple[torch.Tensor, ...]
"""What an optimizer keeps for one parameter, in the order of :func:`slot_names`."""


def _sgd(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    slots: SlotTensors,
    hyper: Hyper,
    updates: int,
    eps_root: float,
) -> Tuple[torch.Tensor, SlotTensors]:
    del eps_root  # there is no root here

    if hyper["weight_decay"] != 0:
        gradient = gradient.add(parameter, alpha=hyper["weight_decay"])

    momentum = hyper["momentum"]
    if momentum != 0:
        # The first buffer is the gradient itself, whatever the dampening.
        buffer = (
            gradient
            if updates == 0
            else slots[0].mul(momentum).add(gradient, alpha=1 - hyper["dampening"])
        )
        slots = (buffer,)
        gradient = gradient.add(buffer, alpha=momentum) if hyper["nesterov"] else buffer

    return parameter.add(gradient, alpha=-hyper["lr"]), slots


def _adam(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    slots: SlotTensors,
    hyper: Hyper,
    updates: int,
    eps_root: float,
) -> Tuple[torch.Tensor, SlotTensors]:
    if hyper["weight_decay"] != 0:
        # AdamW shrinks the parameter, and the moments never see the decay. Adam adds the decay to
        # the gradient, so that it enters both moments.
        if hyper["is_decoupled"]:
            parameter = parameter.mul(1 - hyper["lr"] * hyper["weight_decay"])
        else:
            gradient = gradient.add(parameter, alpha=hyper["weight_decay"])

    beta1, beta2 = hyper["betas"]
    first = slots[0].lerp(gradient, 1 - beta1)
    second = slots[1].mul(beta2).addcmul(gradient, gradient, value=1 - beta2)
    count = updates + 1
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count

    # With eps_root the correction goes under the root, beside what keeps it from zero. Without it
    # the root comes first, as in torch: the other order would round otherwise.
    if eps_root:
        denominator = second.div(correction2).add(eps_root).sqrt().add(hyper["eps"])
    else:
        denominator = (second.sqrt() / correction2**0.5).add(hyper["eps"])
    parameter = parameter.addcdiv(first, denominator, value=-(hyper["lr"] / correction1))

    return parameter, (first, second)


_Rule = Callable[
    [torch.Tensor, torch.Tensor, SlotTensors, Hyper, int, float], Tuple[torch.Tensor, SlotTensors]
]

OPTIMIZERS: Dict[Any, _Rule] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}
"""The rule of each optimizer class.

A rule takes (parameter, gradient, slots, options, updates so far, eps_root) and returns the new
parameter and the new slots.
"""

_REFUSED = {
    "maximize": False,
    "amsgrad": False,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}
"""Options that change the arithmetic, and the only value of each that the rules follow."""


def slot_names(optimizer: Any, hyper: Hyper) -> Tuple[str, ...]:
    """Return the names of what an optimizer keeps for each parameter."""
    if optimizer is torch.optim.SGD:
        return ("momentum_buffer",) if hyper["momentum"] != 0 else ()
    return ("exp_avg", "exp_avg_sq")


def check_options(optimizer: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse options whose arithmetic is not written down here.

    Raises:
        RecipeError: an option has a value that no rule follows, or is a tensor; names the options.
    """
    wrong = {
        f"{name}={group[name]!r}"
        for group in groups
        for name, only in _REFUSED.items()
        if group.get(name, only) not in {only, None}
    }
    wrong |= {
        f"{name}=a tensor"
        for group in groups
        for name, value in group.items()
        if isinstance(value, torch.Tensor) and name != "params"
    }
    if wrong:
        named = ", ".join(sorted(wrong))
        message = (
            f"{optimizer.__name__} with {named} cannot be replayed here: leave it out, and "
            "give numbers instead of tensors."
        )
        raise RecipeError(message)


def apply_clip(
    gradients: Sequence[Optional[torch.Tensor]], clip_norm: Optional[float]
) -> List[Optional[torch.Tensor]]:
    """Return the gradients, clipped to a total norm as ``torch.nn.utils.clip_grad_norm_`` does."""
    present = [gradient for gradient in gradients if gradient is not None]
    if clip_norm is None or not present:
        return list(gradients)

    total = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(gradient) for gradient in present])
    )
    # The 1e-6 is torch's, and so is the multiplication by 1 where nothing is clipped: both are
    # part of the bits.
    factor = torch.clamp(clip_norm / (total + 1e-6), max=1.0)
    return [None if gradient is None else gradient * factor for gradient in gradients]
