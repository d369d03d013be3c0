"""Data attribution on the streams of one registry: exact metagradients, retraining, scores."""

from typing import TYPE_CHECKING

from seedregistry.common.lazy import lazy_door

if TYPE_CHECKING:
    from seedregistry.attribution import baselines, bridges
    from seedregistry.attribution.datasets import (
        ReloadableTensors,
        get_cifar10_dataloader,
        load_cifar10,
        load_digits,
    )
    from seedregistry.attribution.measurements import losses_of, margins_of
    from seedregistry.attribution.metagradients import Attribution, magic
    from seedregistry.attribution.models import (
        GroupNorm,
        construct_digits_cnn,
        construct_digits_mlp,
        construct_rn9,
    )
    from seedregistry.attribution.recipe import Recipe, cross_entropy
    from seedregistry.attribution.retraining import PROTOCOLS, Retrainings, drop_sets, retrain
    from seedregistry.attribution.scoring import LdsScore, lds, noise_ceiling, score
    from seedregistry.attribution.setups import (
        setup_lds_validation,
        setup_magic_training,
        setup_perfect_consistency,
    )
    from seedregistry.attribution.smoothness import Metasmoothness, metasmoothness
    from seedregistry.attribution.states import Batch, State
    from seedregistry.attribution.training import Training

__getattr__, __dir__ = lazy_door(
    __name__,
    {
        "seedregistry.attribution.datasets": (
            "ReloadableTensors",
            "get_cifar10_dataloader",
            "load_cifar10",
            "load_digits",
        ),
        "seedregistry.attribution.measurements": ("losses_of", "margins_of"),
        "seedregistry.attribution.metagradients": ("Attribution", "magic"),
        "seedregistry.attribution.models": (
            "GroupNorm",
            "construct_digits_cnn",
            "construct_digits_mlp",
            "construct_rn9",
        ),
        "seedregistry.attribution.recipe": ("Recipe", "cross_entropy"),
        "seedregistry.attribution.retraining": ("PROTOCOLS", "Retrainings", "drop_sets", "retrain"),
        "seedregistry.attribution.scoring": ("LdsScore", "lds", "noise_ceiling", "score"),
        "seedregistry.attribution.setups": (
            "setup_lds_validation",
            "setup_magic_training",
            "setup_perfect_consistency",
        ),
        "seedregistry.attribution.smoothness": ("Metasmoothness", "metasmoothness"),
        "seedregistry.attribution.states": ("Batch", "State"),
        "seedregistry.attribution.training": ("Training",),
    },
    rooms=("baselines", "bridges", "demo"),
)

__all__ = [
    "PROTOCOLS",
    "Attribution",
    "Batch",
    "GroupNorm",
    "LdsScore",
    "Metasmoothness",
    "Recipe",
    "ReloadableTensors",
    "Retrainings",
    "State",
    "Training",
    "baselines",
    "bridges",
    "construct_digits_cnn",
    "construct_digits_mlp",
    "construct_rn9",
    "cross_entropy",
    "drop_sets",
    "get_cifar10_dataloader",
    "lds",
    "load_cifar10",
    "load_digits",
    "losses_of",
    "magic",
    "margins_of",
    "metasmoothness",
    "noise_ceiling",
    "retrain",
    "score",
    "setup_lds_validation",
    "setup_magic_training",
    "setup_perfect_consistency",
]
