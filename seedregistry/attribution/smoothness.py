"""Metasmoothness: whether a training is smooth enough for a derivative to predict retrainings.

Source: L. Engstrom and others, Optimizing ML Training with Metagradient Descent, arXiv 2503.13751,
definition 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import attrs
import torch

from seedregistry.attribution.measurements import identify, measure
from seedregistry.attribution.progress import ProgressOption, show_progress
from seedregistry.determinism import torch_threads
from seedregistry.errors import InvalidOptionError, RecipeError

if TYPE_CHECKING:
    from seedregistry.attribution.measurements import Measurement
    from seedregistry.attribution.training import Training

_GOOD, _FAIR = 0.98, 0.9


@attrs.frozen(kw_only=True)
class Metasmoothness:
    """How well the two halves of a small change of the weights agree.

    Immutable, and it pickles; :func:`metasmoothness` returns it.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, losses_of, metasmoothness
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> make = lambda: torch.nn.Linear(8, 2)
        >>> recipe = Recipe(model=make, dataset=data, epochs=1, batch_size=4)
        >>> training = Training(SeedRegistry(42), recipe)
        >>> result = metasmoothness(training, losses_of(*data), progress=False)
        >>> result.step, -1 <= result.value <= 1
        (0.1, True)

    Attributes:
        value: weighted share of targets whose measurement changes in the same direction in both
            halves, from -1 to 1.
        step: size of the change of the weights.
        advice: what to do when the value is low; ``""`` when it is not.
    """

    value: float
    step: float
    advice: str


def metasmoothness(
    training: Training,
    measurement: Measurement,
    *,
    step: float = 0.1,
    direction: Optional[torch.Tensor] = None,
    progress: ProgressOption = True,
) -> Metasmoothness:
    """Return the metasmoothness of a training, from three trainings with moved weights.

    Near 1 the scores of MAGIC predict retrainings well. At .9 and below they do not, however exact
    they are as derivatives.

    Args:
        training: what is repeated with its weights moved.
        measurement: as for ``magic``: it gives one number for each target.
        step: how far the weights are moved, twice; > 0.
        direction: of the move, shape (size,); by default about half of the examples by 1 and the
            others not at all, drawn from the stream ("metasmoothness", instance id).
        progress: show how many trainings were done; see
            :data:`~seedregistry.attribution.progress.ProgressOption`.

    Raises:
        InvalidOptionError: the step is not positive, or the direction has another shape.
        RecipeError: the data, the step or the measurement would not do, which is found before
            anything is trained. Or a measurement is not finite.
    """
    if not step > 0:
        raise InvalidOptionError(f"step must be > 0; got {step!r}.")
    if direction is None:
        generator = (
            training.registry.stream("metasmoothness", training.recipe.instance_id)
            .at(0)
            .generator()
        )
        direction = torch.randint(0, 2, (training.size,), generator=generator, device="cpu").to(
            training.recipe.dtype
        )
    if direction.shape != (training.size,):
        raise InvalidOptionError(
            f"direction must have shape ({training.size},); got {tuple(direction.shape)}."
        )
    training.check()
    identify(training, measurement, is_differentiated=False)

    values = []
    with show_progress(progress, "metasmoothness") as tell:
        for count in range(3):
            state = training.train(1 + count * step * direction)
            with torch_threads(training.recipe.threads):
                measured = measure(training, measurement, state, is_differentiated=False)
                values.append(measured.cpu().to(torch.float64))  # MPS has no float64
            if not bool(torch.isfinite(values[-1]).all()):
                raise RecipeError(
                    f"The measurement is not finite after a training: {values[-1].tolist()[:5]} ..."
                )
            tell(count + 1, 3)

    first, second = values[1] - values[0], values[2] - values[1]
    size = float(first.abs().sum() + second.abs().sum())
    # Of each target the share of its change that both halves agree on, weighted by how much it
    # changes at all.
    agreed = torch.sign(first) * torch.sign(second) * (first.abs() + second.abs())
    value = float(agreed.sum()) / size if size else 1.0
    return Metasmoothness(value=value, step=step, advice=_advice(value))


def _advice(value: float) -> str:
    if value >= _GOOD:
        return ""
    how = (
        "Lower the learning rate or the momentum; use GELU, average pooling and larger batches; "
        "scale the last layer down."
    )
    if value >= _FAIR:
        return f"The training is a little rough: small drops will be predicted less well. {how}"
    return f"The training is rough: its derivative will predict few retrainings. {how}"
