"""One step of an optimizer as a pure function of tensors, in torch's own order of operations.

Each follows the single-tensor path of torch, which the CPU takes: results are bit-equal to it, and
every operation can be differentiated twice.

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


def _sgd(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    slots: SlotTensors,
    hyper: Hyper,
    updates: int,
    eps_root: float,
) -> Tuple[torch.Tensor, SlotTensors]:
    del eps_root
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
    beta1, beta2 = hyper["betas"]
    if hyper["weight_decay"] != 0:
        if hyper["is_decoupled"]:
            parameter = parameter.mul(1 - hyper["lr"] * hyper["weight_decay"])
        else:
            gradient = gradient.add(parameter, alpha=hyper["weight_decay"])
    first = slots[0].lerp(gradient, 1 - beta1)
    second = slots[1].mul(beta2).addcmul(gradient, gradient, value=1 - beta2)
    count = updates + 1
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count
    if eps_root:
        denominator = second.div(correction2).add(eps_root).sqrt().add(hyper["eps"])
    else:
        denominator = (second.sqrt() / correction2**0.5).add(hyper["eps"])
    return parameter.addcdiv(first, denominator, value=-(hyper["lr"] / correction1)), (
        first,
        second,
    )


_Rule = Callable[
    [torch.Tensor, torch.Tensor, SlotTensors, Hyper, int, float], Tuple[torch.Tensor, SlotTensors]
]

OPTIMIZERS: Dict[Any, _Rule] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}
"""The rules by optimizer class.

(parameter, gradient, slots, options, updates so far, eps_root) -> (parameter, slots).
"""

_REFUSED = {
    "maximize": False,
    "amsgrad": False,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}


def slot_names(optimizer: Any, hyper: Hyper) -> Tuple[str, ...]:
    """Return the names of what an optimizer keeps for each parameter."""
    if optimizer is torch.optim.SGD:
        return ("momentum_buffer",) if hyper["momentum"] != 0 else ()
    return ("exp_avg", "exp_avg_sq")


def check_options(optimizer: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse options whose arithmetic is not written down here.

    Raises:
        RecipeError: names the options.
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
    factor = torch.clamp(clip_norm / (total + 1e-6), max=1.0)
    return [None if gradient is None else gradient * factor for gradient in gradients]
