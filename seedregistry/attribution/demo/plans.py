"""What the demonstration trains and asks: the digits, and CIFAR-10."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple, Union

import attrs
import torch

from seedregistry.attribution.datasets import ReloadableTensors, load_cifar10, load_digits
from seedregistry.attribution.models import construct_digits_mlp, construct_rn9
from seedregistry.attribution.recipe import Recipe
from seedregistry.determinism import torch_threads
from seedregistry.errors import InvalidOptionError

if TYPE_CHECKING:
    from seedregistry.registry import SeedRegistry

Pair = Tuple[torch.Tensor, torch.Tensor]


@attrs.frozen(kw_only=True, eq=False)
class Plan:
    """What a demonstration trains and asks.

    Attributes:
        recipe: the training.
        train: training inputs and targets.
        test: test inputs and targets.
        targets: number of test examples whose losses are attributed, the first ones.
        fractions: shares of the training examples that retrainings leave out.
        subsets: retrainings for each fraction.
        ablation_fractions: the fractions for which retrainings with one wrong seed are made too.
        ablation_subsets: such retrainings for each of these fractions.
        influence_iterations: of the conjugate gradients of the influence function, at most.
        image_shape: shape of an image as (height, width) or (channels, height, width).

    Raises:
        InvalidOptionError: the ablation has no fractions, or a fraction that is not among
            ``fractions``, with whose retrainings it is compared.
    """

    recipe: Recipe
    train: Pair
    test: Pair
    targets: int = 32
    fractions: Tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    subsets: int = 50
    ablation_fractions: Tuple[float, ...] = (0.01, 0.05)
    ablation_subsets: int = 50
    influence_iterations: int = 100
    image_shape: Tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        if not self.ablation_fractions or not set(self.ablation_fractions) <= set(self.fractions):
            message = (
                f"ablation_fractions must be some of the fractions {self.fractions!r}; got "
                f"{self.ablation_fractions!r}."
            )
            raise InvalidOptionError(message)


def _describe_training(
    rate: float,
    optimizer_options: Mapping[str, Any],
    scheduler_options: Optional[Mapping[str, Any]] = None,
    **options: Any,
) -> Recipe:
    """Return a recipe of 20 epochs of SGD, with a rate that rises to ``rate`` and falls again."""
    return Recipe(
        epochs=20,
        drop_last=True,
        optimizer_options={"lr": rate, **optimizer_options},
        scheduler="OneCycleLR",
        scheduler_options={
            "max_lr": rate,
            "total_steps": "steps",
            "pct_start": 0.25,
            "anneal_strategy": "linear",
            "cycle_momentum": False,
            **(scheduler_options or {}),
        },
        **options,
    )


def digits_plan(registry: SeedRegistry) -> Plan:
    """Return the plan for the digits: 200 steps of SGD with momentum on 1,200 images, in float64.

    The model is a perceptron with GELU. Images are standardised by mean and deviation of the
    training images.

    Args:
        registry: its stream ("split", "digits") divides the images.
    """
    train, test = load_digits(registry)
    with torch_threads(1):  # sums depend on how many there are, in the last bit
        mean, deviation = train[0].mean(), train[0].std()  # of the training images alone
    train, test = (((inputs - mean) / deviation, targets) for inputs, targets in (train, test))

    recipe = _describe_training(
        0.02,
        {"momentum": 0.9, "weight_decay": 1e-3},
        {"div_factor": 20.0, "final_div_factor": 1.0},
        model=construct_digits_mlp,
        dataset=train,
        batch_size=120,
        dtype=torch.float64,
    )
    return Plan(recipe=recipe, train=train, test=test, image_shape=(8, 8))


def cifar10_plan(
    registry: SeedRegistry, root: Union[str, os.PathLike[str]], *, width: int = 64
) -> Plan:
    """Return the plan for CIFAR-10: ResNet-9 with smooth choices, batches of 500, 20 epochs.

    A step at full width takes more than a second on two cores: a job for a GPU.

    Args:
        registry: not used: the images come divided.
        root: as for ``load_cifar10``.
        width: channels of the first layer.
    """
    del registry
    data, test = (
        ReloadableTensors(load_cifar10, os.path.abspath(root)),
        load_cifar10(root, train=False),
    )
    train = (data.tensors[0], data.tensors[1])

    recipe = _describe_training(
        0.085,
        {"momentum": 0.85, "weight_decay": 5e-4},
        model=functools.partial(construct_rn9, width=width),
        dataset=data,
        batch_size=min(500, len(train[0])),
        threads=torch.get_num_threads(),
    )
    return Plan(
        recipe=recipe,
        train=train,
        test=test,
        image_shape=(3, 32, 32),
        targets=min(32, len(test[0])),
        fractions=(0.01, 0.05),
        ablation_fractions=(0.01,),
        influence_iterations=10,
    )
