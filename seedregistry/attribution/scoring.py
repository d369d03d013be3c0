"""The linear datamodeling score: how well predicted outcomes of retrainings rank the real ones.

Source: S. M. Park and others, TRAK: Attributing Model Behavior at Scale, 2023, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple, Union

import attrs
import numpy as np
import torch

from seedregistry.attribution.measurements import identify
from seedregistry.attribution.metagradients import Attribution
from seedregistry.attribution.retraining import Retrainings, retrain
from seedregistry.common.identities import mismatches, show_mismatches
from seedregistry.errors import RecipeError, ReplayError

if TYPE_CHECKING:
    from seedregistry.attribution.measurements import Measurement
    from seedregistry.attribution.training import Training
    from seedregistry.registry import SeedRegistry

_BOOTSTRAPS = 1000

_DIGITS = 12
"""Characters of a digest that a message shows."""
"""Resamples behind an interval."""


@attrs.frozen(kw_only=True)
class LdsScore:
    """How well scores predict the retrainings for one fraction: a linear datamodeling score.

    Immutable, and it pickles; :func:`lds` and :func:`score` return it. The numbers are Python's.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, lds, losses_of
        >>> inputs, targets = torch.eye(8), torch.arange(8) % 2
        >>> options = {"dataset": (inputs, targets), "epochs": 1, "batch_size": 4}
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), **options)
        >>> training, tests = Training(SeedRegistry(42), recipe), losses_of(inputs, targets)
        >>> options = {"fractions": (0.25,), "subsets": 5, "progress": False}
        >>> (result,) = lds(training, tests, torch.eye(8), **options)
        >>> result.fraction, result.subsets, len(result.spearman), -1 <= result.mean <= 1
        (0.25, 5, 8, True)

    Attributes:
        fraction: share of the training examples that was left out.
        protocol: a name in ``PROTOCOLS``.
        mean: mean Spearman correlation over the targets where it exists; from -1 to 1, or NaN.
        interval: 95% bootstrap interval of the mean, over subsets; NaN twice without a registry.
        spearman: for each target; NaN where the predictions or the values are all equal.
        pearson: mean Pearson correlation over the targets where it exists.
        slope: of the real change by the predicted one, least squares over all targets; 1 where
            sizes are right too, NaN where every prediction of a target is its mean.
        undefined: number of targets without a correlation.
        subsets: number of retrainings.
    """

    fraction: float
    protocol: str
    mean: float
    interval: Tuple[float, float]
    spearman: Tuple[float, ...]
    pearson: float
    slope: float
    undefined: int
    subsets: int


def lds(
    training: Training,
    measurement: Measurement,
    scores: Union[torch.Tensor, Attribution],
    **options: Any,
) -> Tuple[LdsScore, ...]:
    """Retrain on subsets and return how well scores predict the outcomes, for each fraction.

    Both steps in one call: ``retrain``, then ``score`` for each of its results.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, lds, losses_of, magic
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> make = lambda: torch.nn.Linear(8, 2)
        >>> recipe = Recipe(model=make, dataset=data, epochs=1, batch_size=4)
        >>> training, measurement = Training(SeedRegistry(42), recipe), losses_of(*data)
        >>> scores = magic(training, measurement, progress=False)
        >>> options = {"fractions": (0.25,), "subsets": 4, "progress": False}
        >>> lds(training, measurement, scores, **options)[0].mean > 0.5
        True

    Args:
        training: what is repeated without some of its examples.
        measurement: as for ``magic``: it gives one number for each target.
        scores: what ``magic`` returned; or scores of each target and training example, shape
            (targets, size).
        **options: keywords for ``retrain``.

    Returns:
        A score for each fraction, in their order.

    Raises:
        RecipeError: as for ``retrain`` and :func:`score`; scores that would not do are refused
            before anything is trained.
        InvalidOptionError, ReplayError: as for ``retrain`` and :func:`score`.
    """
    # Before hours of retraining, not after them.
    identity = identify(training, measurement, is_differentiated=False)
    expected = {"measurement": identity.digest}
    if isinstance(scores, Attribution):
        mismatched = scores.measurement != identity.digest
        # The fingerprint takes a training.
        expected["fingerprint"] = "" if mismatched else training.whole_fingerprint()
    _check_scores(scores, identity.targets, training.size, expected)

    return tuple(
        score(retrainings, scores, registry=training.registry)
        for retrainings in retrain(training, measurement, **options)
    )


def _check_scores(
    scores: Union[torch.Tensor, Attribution], targets: int, size: int, expected: Mapping[str, str]
) -> torch.Tensor:
    """Return scores as a float64 tensor on the CPU.

    Args:
        scores: of an attribution, or plain.
        targets: how many there must be.
        size: number of training examples.
        expected: fingerprint and measurement of the retrainings.

    Raises:
        RecipeError: they have another shape, or are not finite.
        ReplayError: they are of another training or measurement.
    """
    if isinstance(scores, Attribution):
        actual = {"fingerprint": scores.fingerprint, "measurement": scores.measurement}
        _refuse_others("The scores are", actual, expected, "Attribute this one.")
        scores = scores.scores
    if scores.shape != (targets, size):
        raise RecipeError(
            f"scores must have shape ({targets}, {size}), targets and examples; got "
            f"{tuple(scores.shape)}."
        )
    if not bool(torch.isfinite(scores).all()):
        raise RecipeError("scores must be finite numbers.")
    return scores.detach().to("cpu", torch.float64)


def _refuse_others(
    what: str, actual: Mapping[str, str], expected: Mapping[str, str], way_out: str
) -> None:
    """Refuse results of another training, or of one that measured something else.

    Raises:
        ReplayError: shows the digests of both.
    """
    different = mismatches(actual, expected)
    if different:
        thing = "measurement" if different == ["measurement"] else "training"
        values = show_mismatches(
            different, actual, expected, there="of them", here="here", longest=_DIGITS
        )
        raise ReplayError(f"{what} of another {thing}: {values}. {way_out}")


def score(
    retrainings: Retrainings,
    scores: Union[torch.Tensor, Attribution],
    *,
    registry: Optional[SeedRegistry] = None,
) -> LdsScore:
    """Return how well scores predict retrainings.

    Example:
        >>> import torch
        >>> from seedregistry.attribution import Retrainings, score
        >>> dropped = torch.tensor([[0, 1], [2, 3], [4, 5]])
        >>> values = torch.tensor([[3.0], [2.0], [1.0]])
        >>> made = {"protocol": "weights", "fraction": 0.25, "size": 8}
        >>> made.update(fingerprint="", measurement="")
        >>> retrainings = Retrainings(dropped=dropped, values=values, **made)
        >>> effects = torch.arange(8.0)[None]
        >>> score(retrainings, effects).mean
        1.0

    Args:
        retrainings: one of the results of ``retrain``.
        scores: what ``magic`` returned, whose training is compared; or scores of each target and
            training example, shape (targets, size): the effect of the example's weight on the
            measured value.
        registry: gives the bootstrap's draws, from the stream ("lds_bootstrap", protocol and
            fraction); None makes no interval.

    Raises:
        RecipeError: the scores have another shape, or are not finite.
        ReplayError: the scores are of another training, or of other measurements.
    """
    scores = _check_scores(
        scores, retrainings.values.shape[1], retrainings.size, _identity_of(retrainings)
    )
    # Minus: an example that is left out takes its effect away.
    predicted = -torch.stack([scores[:, dropped].sum(1) for dropped in retrainings.dropped]).numpy()
    actual = retrainings.values.numpy()

    ranked = ranks(predicted), ranks(actual)
    spearman = _correlations(*ranked)
    pearson = _correlations(predicted, actual)
    centred = predicted - predicted.mean(0), actual - actual.mean(0)
    spread = float((centred[0] ** 2).sum())

    interval = (float("nan"), float("nan"))
    if registry is not None:
        draws = (
            registry.stream("lds_bootstrap", f"{retrainings.protocol} {retrainings.fraction!r}")
            .at(0)
            .numpy()
        )
        # Retrainings are drawn, with all their targets: the targets share the subsets, and are
        # not independent of each other.
        chosen = draws.integers(0, len(actual), (_BOOTSTRAPS, len(actual)))
        # Not ranked anew: rows drawn twice would be ties, and lower every correlation.
        means = [_mean(_correlations(ranked[0][rows], ranked[1][rows])) for rows in chosen]
        interval = (float(np.nanpercentile(means, 2.5)), float(np.nanpercentile(means, 97.5)))

    return LdsScore(
        fraction=retrainings.fraction,
        protocol=retrainings.protocol,
        mean=_mean(spearman),
        interval=interval,
        spearman=tuple(float(value) for value in spearman),
        pearson=_mean(pearson),
        slope=float((centred[0] * centred[1]).sum()) / spread if spread else float("nan"),
        undefined=int(np.isnan(spearman).sum()),
        subsets=len(actual),
    )


def noise_ceiling(first: Retrainings, second: Retrainings) -> float:
    """Return how well two replicates of retraining predict each other: a bound for any scores.

    Scores cannot be expected to exceed it by much. Under the protocol ``"fresh"`` each retraining
    has other seeds than the training, whose noise no attribution of a single training can know.

    Args:
        first: one of the results of ``retrain``.
        second: the result for the same fraction of a call with another ``replicate``.

    Returns:
        Mean Spearman correlation of both over the targets, from -1 to 1; NaN where all values of
        each target are equal.

    Raises:
        RecipeError: the two have not left out the same examples.
        ReplayError: they are of two trainings, or of two measurements.
    """
    _refuse_others(
        "The first retrainings are",
        _identity_of(first),
        _identity_of(second),
        "Compare two replicates of one.",
    )
    if first.values.shape != second.values.shape or not torch.equal(first.dropped, second.dropped):
        raise RecipeError(
            "A noise ceiling compares two replicates of one retraining: these left other "
            "examples out."
        )
    return _mean(_correlations(ranks(first.values.numpy()), ranks(second.values.numpy())))


def _identity_of(retrainings: Retrainings) -> Dict[str, str]:
    return {"fingerprint": retrainings.fingerprint, "measurement": retrainings.measurement}


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks within each column, equal values sharing the mean of theirs."""
    from scipy.stats import rankdata

    result: np.ndarray = rankdata(values, axis=0)
    return result


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair of columns, NaN where one is constant."""
    left, right = first - first.mean(0), second - second.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = (left * right).sum(0) / np.sqrt((left**2).sum(0) * (right**2).sum(0))
    return result
