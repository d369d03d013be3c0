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
    """Return the metasmoothness of a training: three trainings.

    Near 1 the scores of MAGIC predict retrainings well; at .9 and below they do not, however exact
    they are.

    Args:
        training: what is looked at.
        measurement: as for ``magic``.
        step: how far the weights are moved, twice.
        direction: of the move, shape (size,); by default half of the examples by one and the other
            half not at all, drawn from the stream ("metasmoothness", instance id).
        progress: show how many trainings were done; see
            :data:`~seedregistry.attribution.progress.ProgressOption`.

    Raises:
        InvalidOptionError: the step is not positive, or the direction has another shape.
        RecipeError: the data, the step or the measurement would not do, which is found before
            anything is trained.
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
                values.append(
                    measure(training, measurement, state, is_differentiated=False).to(torch.float64)
                )
            if not bool(torch.isfinite(values[-1]).all()):
                raise RecipeError(
                    f"The measurement is not finite after a training: {values[-1].tolist()[:5]} ..."
                )
            tell(count + 1, 3)
    first, second = values[1] - values[0], values[2] - values[1]
    size = float(first.abs().sum() + second.abs().sum())
    # Of each target the part of its change that both halves agree on, weighted by how much it
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
