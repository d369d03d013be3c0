"""The documented setup functions for MAGIC and LDS, with the documented streams and numbers.

A configuration is any object with these attributes, of which all but ``SEED`` have defaults:

- ``SEED``: master seed, or a ``SeedRegistry``;
- ``BATCH_SIZE``, ``NUM_CLASSES``: for the loader and the model; their factories have defaults;
- ``LR``, ``MOMENTUM``: of SGD, 0.1 and 0.9 by default. Another optimizer gets ``LR`` alone.

The documents build a ResNet-9 on CIFAR-10 with SGD. ``MODEL``, ``DATALOADER`` and ``OPTIMIZER``
name other factories, and ``MODEL_PARAMS``, ``DATALOADER_PARAMS`` and ``OPTIMIZER_PARAMS`` have more
keywords for them.

Source: the implementation patterns of the documents that the functions come from.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Tuple, Union

import torch

from seedregistry.attribution.datasets import get_cifar10_dataloader
from seedregistry.attribution.models import construct_rn9
from seedregistry.common.callsite import stack_level
from seedregistry.errors import InvalidOptionError, UnsharedInitialParametersWarning
from seedregistry.functional import (
    create_deterministic_dataloader,
    create_deterministic_model,
    create_deterministic_optimizer,
    set_global_deterministic_state,
)
from seedregistry.registry import SeedRegistry

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

_TRAINING = "training"
_SHARED = "shared_training"

Source = Union[int, SeedRegistry]


def _arguments(config_or_registry: Any, config: Any) -> Tuple[Source, Any]:
    """Return where seeds come from, and the configuration.

    Raises:
        InvalidOptionError: there is no configuration with a seed, or it has another seed than the
            registry.
    """
    if not isinstance(config_or_registry, SeedRegistry):
        if config is not None:
            message = (
                "With two arguments the first is a SeedRegistry and the second a "
                f"configuration; got {config_or_registry!r}."
            )
            raise InvalidOptionError(message)
        seed = getattr(config_or_registry, "SEED", None)
        if seed is None:
            hint = (
                " Make one of a dict by types.SimpleNamespace(**config)."
                if isinstance(config_or_registry, dict)
                else ""
            )
            raise InvalidOptionError(
                f"A configuration has an attribute SEED; {config_or_registry!r} has none.{hint}"
            )
        return seed, config_or_registry
    seed = getattr(config, "SEED", config_or_registry)
    master_seed = seed.master_seed if isinstance(seed, SeedRegistry) else seed
    if master_seed != config_or_registry.master_seed:
        registry_seed = config_or_registry.master_seed
        message = (
            f"The configuration has SEED {master_seed!r} and the registry has master seed "
            f"{registry_seed}: use one."
        )
        raise InvalidOptionError(message)
    return config_or_registry, config


def _set_global_state(source: Source) -> None:
    """Seed the default generators and set the switches, as the documented function does."""
    # A registry's seed may be beyond the 32 bits that the documented function takes.
    if isinstance(source, SeedRegistry):
        source.set_global_state(deterministic="warn", fill_uninitialized_memory=True)
    else:
        set_global_deterministic_state(source)


def _keywords(config: Any, params: str, **documented: str) -> Dict[str, Any]:
    """Return keywords for a factory.

    Args:
        config: the configuration.
        params: its attribute with more keywords, which replace documented ones of the same name.
        **documented: the attribute that has each keyword's value, where it is there.
    """
    keywords = {
        keyword: getattr(config, name)
        for keyword, name in documented.items()
        if hasattr(config, name)
    }
    return {**keywords, **getattr(config, params, {})}


def _loader(source: Source, config: Any) -> DataLoader[Any]:
    keywords = {"shuffle": True, **_keywords(config, "DATALOADER_PARAMS", batch_size="BATCH_SIZE")}
    factory = getattr(config, "DATALOADER", get_cifar10_dataloader)
    loader: DataLoader[Any] = create_deterministic_dataloader(
        source, factory, _TRAINING, **keywords
    )
    return loader


def _model(source: Source, config: Any, instance_id: str) -> nn.Module:
    keywords = _keywords(config, "MODEL_PARAMS", num_classes="NUM_CLASSES")
    model: nn.Module = create_deterministic_model(
        source, getattr(config, "MODEL", construct_rn9), instance_id, **keywords
    )
    return model


def _optimizer(
    source: Source, config: Any, model: nn.Module, instance_id: str
) -> torch.optim.Optimizer:
    cls = getattr(config, "OPTIMIZER", torch.optim.SGD)
    if cls is torch.optim.SGD:
        keywords = {
            "lr": 0.1,
            "momentum": 0.9,
            **_keywords(config, "OPTIMIZER_PARAMS", lr="LR", momentum="MOMENTUM"),
        }
    else:
        keywords = _keywords(config, "OPTIMIZER_PARAMS", lr="LR")
    optimizer: torch.optim.Optimizer = create_deterministic_optimizer(
        source, cls, model.parameters(), instance_id, **keywords
    )
    return optimizer


def setup_magic_training(
    config_or_registry: Any, config: Any = None
) -> Tuple[DataLoader[Any], nn.Module, torch.optim.Optimizer]:
    """Return loader, model and optimizer of the training, all of instance id "training".

    The default generators and the determinism switches are set first, as
    ``set_global_deterministic_state`` does.

    Args:
        config_or_registry: the configuration, or a registry.
        config: the configuration, after a registry.

    Returns:
        Loader, model and optimizer; the optimizer has the model's parameters.

    Raises:
        InvalidOptionError: no ``SEED``, or another seed than the registry's.
    """
    source, settings = _arguments(config_or_registry, config)
    _set_global_state(source)
    loader, model = _loader(source, settings), _model(source, settings, _TRAINING)
    return loader, model, _optimizer(source, settings, model, _TRAINING)


def setup_lds_validation(
    config_or_registry: Any, *arguments: Any, num_models: Any = None, share_init: Any = None
) -> Tuple[DataLoader[Any], List[nn.Module], List[torch.optim.Optimizer]]:
    """Return the shared loader, models and optimizers of retrainings, by the documented ids.

    The loader is the training's, of id "training"; models have "lds_0", "lds_1", ..., optimizers
    "lds_opt_0", ... The default generators and the determinism switches are set first, as
    ``set_global_deterministic_state`` does. A registry's ledger notes whether the models are the
    training's.

    With other initial parameters, which the documented ids mean, a model does not repeat the
    training, and attribution of a single model cannot predict it: the score falls from .99 to .1
    in this library's demonstration. ``share_init=True`` takes the training's initial parameters.
    Without it there is one warning.

    Args:
        config_or_registry: the configuration, or a registry, which the configuration follows.
        *arguments: the configuration after a registry; then ``num_models`` and ``share_init``, as
            the documents pass them.
        num_models: int > 0, 5 by default.
        share_init: build every model from ("model", "training"); False by default.

    Returns:
        The loader; the models; an optimizer for each of them.

    Raises:
        InvalidOptionError: no ``SEED``, or another seed than the registry's, or no number of
            models.
    """
    # The documents pass what follows the configuration by position, and either may be left out.
    rest = list(arguments)
    config = rest.pop(0) if isinstance(config_or_registry, SeedRegistry) and rest else None
    count = num_models if num_models is not None else rest.pop(0) if rest else 5
    shares = share_init if share_init is not None else rest.pop(0) if rest else False
    if (
        rest
        or not isinstance(count, int)
        or isinstance(count, bool)
        or count < 1
        or not isinstance(shares, bool)
    ):
        message = (
            "setup_lds_validation takes (config, num_models, share_init), an int > 0 and a bool; "
            f"got {count!r}, {shares!r}{', and more' if rest else ''}."
        )
        raise InvalidOptionError(message)
    source, settings = _arguments(config_or_registry, config)

    if not shares:
        message = (
            "The models of setup_lds_validation have initial parameters of their own, ('model', "
            "'lds_i'): retrainings that MAGIC, or any attribution of a single model, does not "
            "predict. Pass share_init=True to repeat the training itself."
        )
        warnings.warn(message, UnsharedInitialParametersWarning, stacklevel=stack_level())
    if isinstance(source, SeedRegistry):
        streams = "shared" if shares else "not those of the run"
        source.note(**{f"setup_lds_validation {count}": {"models": count, "streams": streams}})

    _set_global_state(source)
    loader = _loader(source, settings)
    models = [_model(source, settings, _TRAINING if shares else f"lds_{i}") for i in range(count)]
    optimizers = [
        _optimizer(source, settings, model, f"lds_opt_{i}") for i, model in enumerate(models)
    ]
    return loader, models, optimizers


def setup_perfect_consistency(
    config_or_registry: Any, *arguments: Any, **model_params: Any
) -> Tuple[nn.Module, nn.Module]:
    """Return two models with equal parameters, one for MAGIC and one for LDS.

    It is called with ``(config, creator_func)`` or ``(registry, config, creator_func)``. Both
    models are built from ("model", "shared_training"), the documented id.

    Example:
        >>> import types
        >>> import torch
        >>> from seedregistry.attribution import setup_perfect_consistency
        >>> config = types.SimpleNamespace(SEED=42)
        >>> first, second = setup_perfect_consistency(
        ...     config, torch.nn.Linear, in_features=3, out_features=2
        ... )
        >>> torch.equal(first.weight, second.weight), first is second
        (True, False)

    Args:
        config_or_registry: the configuration, or a registry.
        *arguments: the factory, after the configuration where a registry came first.
        **model_params: keywords for the factory.

    Returns:
        Two models that share no memory.

    Raises:
        InvalidOptionError: no ``SEED``, or another seed than the registry's, or no factory.
    """
    if not arguments or not callable(arguments[-1]) or len(arguments) > 2:  # noqa: PLR2004 - a configuration and a factory
        raise InvalidOptionError(
            "setup_perfect_consistency takes (config, creator_func) or (registry, config, "
            "creator_func)."
        )
    creator: Callable[..., nn.Module] = arguments[-1]
    source, _ = _arguments(config_or_registry, *(arguments[:-1] or (None,)))
    first, second = (
        create_deterministic_model(source, creator, _SHARED, **model_params) for _ in range(2)
    )
    return first, second
