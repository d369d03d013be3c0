"""What came out of a demonstration: the figures, and what they were made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Sequence, Tuple

import attrs

if TYPE_CHECKING:
    from seedregistry.attribution.demo.plans import Plan
    from seedregistry.attribution.metagradients import Attribution
    from seedregistry.attribution.retraining import Retrainings
    from seedregistry.attribution.scoring import LdsScore
    from seedregistry.attribution.smoothness import Metasmoothness
    from seedregistry.registry import SeedRegistry


@attrs.frozen(kw_only=True, eq=False)
class Demo:
    """What came out of a demonstration.

    Attributes:
        registry: the registry, with the ledger.
        plan: what was trained and asked.
        attribution: MAGIC's scores.
        scores: for each method, MAGIC first, its score for each fraction.
        retrainings: those that share all seeds with the training, for each fraction.
        wrong: for each protocol with a wrong seed, the retrainings for each of the ablation's
            fractions.
        ablation: for each protocol, ``"weights"`` first, MAGIC's score for each of the ablation's
            fractions.
        smoothness: the metasmoothness of the training.
        test_accuracy: share of the test examples that the trained model gets right.
        seconds: how long each step took, by name.
    """

    registry: SeedRegistry
    plan: Plan
    attribution: Attribution
    scores: Dict[str, Tuple[LdsScore, ...]]
    retrainings: Tuple[Retrainings, ...]
    wrong: Dict[str, Tuple[Retrainings, ...]]
    ablation: Dict[str, Tuple[LdsScore, ...]]
    smoothness: Metasmoothness
    test_accuracy: float
    seconds: Dict[str, float]

    def results(self) -> Dict[str, Any]:
        """Return the figures as plain data: what ``results.json`` holds."""

        def means(scores: Sequence[LdsScore]) -> Dict[str, float]:
            return {repr(score.fraction): score.mean for score in scores}

        lds = self.scores["MAGIC"]
        return {
            "seed": self.registry.master_seed,
            "digest": self.registry.ledger.digest,
            "lds": means(lds),
            "lds_interval": {repr(score.fraction): list(score.interval) for score in lds},
            "lds_slope": {repr(score.fraction): score.slope for score in lds},
            "baselines": {
                name: means(scores) for name, scores in self.scores.items() if name != "MAGIC"
            },
            "ablation": {name: means(scores) for name, scores in self.ablation.items()},
            "metasmoothness": self.smoothness.value,
            "test_accuracy": self.test_accuracy,
            "seconds": self.seconds,
        }
