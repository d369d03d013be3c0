"""Models for attribution: the small ones of the digits, and ResNet-9 for CIFAR-10."""

from __future__ import annotations

from typing import Callable, Dict

import torch
from torch import nn

from seedregistry.common.options import check_choice

_ACTIVATIONS: Dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
_POOLS: Dict[str, Callable[[int], nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


class _Mul(nn.Module):
    """Multiplies by a constant: the scaled-down last layer of fast CIFAR-10 training."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.factor


class _Residual(nn.Module):
    """Adds what a block makes of its input to the input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = inputs + self.block(inputs)
        return outputs


class GroupNorm(nn.Module):
    """Group normalisation that can be differentiated for many targets at once.

    The numbers are those of ``nn.GroupNorm`` up to rounding. That layer fails under
    ``is_grads_batched`` in torch 2.13, with an error about shapes.

    Example:
        >>> import torch
        >>> from seedregistry.attribution import GroupNorm
        >>> inputs = torch.arange(24.0).reshape(1, 8, 3)
        >>> torch.allclose(GroupNorm(2, 8)(inputs), torch.nn.GroupNorm(2, 8)(inputs), atol=1e-6)
        True

    Args:
        groups: int > 0, number of groups; divides ``channels``.
        channels: int > 0, size of the second dimension of the inputs.
        eps: added to the variance, float > 0.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs, normalised over each group: shape (batch, channels, ...)."""
        # Elementary operations only: torch's fused kernel is what cannot be batched.
        grouped = inputs.reshape(inputs.shape[0], self.groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(2, keepdim=True) + self.eps)
        shape = (1, -1, *([1] * (inputs.ndim - 2)))
        return scaled.reshape(inputs.shape) * self.weight.view(shape) + self.bias.view(shape)


def construct_digits_mlp(hidden: int = 64, activation: str = "gelu") -> nn.Module:
    """Return a perceptron for the digits: 64 inputs, one hidden layer, 10 outputs.

    The activation is GELU by default, since a function with a kink makes the effect of an example
    harder to predict.

    Args:
        hidden: int > 0, width of the hidden layer.
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        InvalidOptionError: the activation is another.
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), _activation(activation)(), nn.Linear(hidden, 10)
    )


def construct_digits_cnn(width: int = 16, activation: str = "gelu") -> nn.Module:
    """Return a small residual network with group norm for the digits.

    It takes inputs of shape (batch, 64) and has 10 outputs.

    Args:
        width: channels of each layer, a multiple of 4.
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        InvalidOptionError: the activation is another.
    """
    act = _activation(activation)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        GroupNorm(4, width),
        act(),
        _Residual(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), GroupNorm(4, width), act()
            )
        ),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(width * 4, 10),
    )


def construct_rn9(
    num_classes: int = 10,
    *,
    width: int = 64,
    activation: str = "gelu",
    norm: str = "group",
    pool: str = "average",
    scale: float = 0.125,
) -> nn.Module:
    """Return a ResNet-9 for inputs of shape (batch, 3, 32, 32).

    The defaults are the smooth choices that MAGIC needs: GELU, group norm, average pooling, a
    scaled-down last layer. ``norm="batch"`` with ``activation="relu"`` and ``pool="max"`` is the
    usual network, which a recipe refuses for its running statistics.

    Args:
        num_classes: outputs.
        width: channels of the first layer; 64 has 2.4 M parameters.
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.
        norm: ``"group"``, ``"batch"`` or ``"none"``.
        pool: ``"average"`` or ``"max"``.
        scale: factor on the last layer's outputs.

    Raises:
        InvalidOptionError: an option is not one of its values.
    """
    check_choice(pool, "pool", _POOLS)
    act, pooling = _activation(activation), _POOLS[pool]
    norms: Dict[str, Callable[[int], nn.Module]] = {
        "group": lambda channels: GroupNorm(min(8, channels), channels),
        "batch": nn.BatchNorm2d,
        "none": lambda _: nn.Identity(),
    }
    check_choice(norm, "norm", norms)

    def block(inputs: int, outputs: int, *, pooled: bool) -> nn.Module:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norms[norm](outputs), act()]
        return nn.Sequential(*layers, *([pooling(2)] if pooled else []))

    def residual(channels: int) -> nn.Module:
        return _Residual(
            nn.Sequential(
                block(channels, channels, pooled=False), block(channels, channels, pooled=False)
            )
        )

    return nn.Sequential(
        block(3, width, pooled=False),
        block(width, 2 * width, pooled=True),
        residual(2 * width),
        block(2 * width, 4 * width, pooled=True),
        block(4 * width, 4 * width, pooled=True),
        residual(4 * width),
        pooling(4),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes, bias=False),
        _Mul(scale),
    )


def _activation(name: str) -> Callable[[], nn.Module]:
    check_choice(name, "activation", _ACTIVATIONS)
    return _ACTIVATIONS[name]
