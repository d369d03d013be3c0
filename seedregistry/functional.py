"""The documented functions: names, parameters, defaults and numbers that code out there relies on.

One integer seeds every library and scopes are torch-only, as documented. Each takes a
:class:`~seedregistry.SeedRegistry` wherever ``master_seed`` stands; then the registry's seed is
used and its ledger filled, and no number changes.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import torch

from seedregistry import derivation, determinism, rng
from seedregistry.components.base import Component, takes
from seedregistry.components.model import ModelComponent
from seedregistry.components.optimizer import OptimizerComponent
from seedregistry.components.scheduler import SchedulerComponent, find_scheduler
from seedregistry.data.build import build_documented_loader
from seedregistry.data.sampler import DeterministicSampler
from seedregistry.registry import SeedRegistry
from seedregistry.registry.building import build
from seedregistry.registry.global_state import refuse_in_scope
from seedregistry.stream import Stream, plain_scope

if TYPE_CHECKING:
    from seedregistry.derivation import InstanceId

__all__ = [
    "DeterministicSampler",
    "create_deterministic_dataloader",
    "create_deterministic_model",
    "create_deterministic_optimizer",
    "create_deterministic_scheduler",
    "derive_component_seed",
    "deterministic_context",
    "deterministic_multi_epoch_training",
    "get_generator",
    "make_reproducible",
    "seed_everything",
    "seed_worker",
    "set_global_deterministic_state",
    "set_seed",
    "update_dataloader_epoch",
    "worker_init_fn",
]

_log = logging.getLogger(__name__)

MasterSeed = Union[int, SeedRegistry]

_TORCH_SEED_BITS = 64


def derive_component_seed(
    master_seed: MasterSeed, purpose: str, instance_id: InstanceId = None
) -> int:
    """Return the component seed by the documented formula.

    Args:
        master_seed: int or ``numpy.integer``, ``0 <= master_seed < 2**128``, or a registry (whose
            scheme decides).
        purpose: str. The empty one is accepted with an int, as the documents do.
        instance_id: None, int, ``numpy.integer`` or str; ``0`` and ``""`` count as ids.

    Returns:
        int, ``0 <= seed < 2**31``.

    Raises:
        InvalidSeedError: the master seed is not such an integer.
        InvalidNameError: a word is not of those types, or not encodable.
    """
    if isinstance(master_seed, SeedRegistry):
        return master_seed.seed(purpose, instance_id)
    seed = derivation.documented_seed(
        derivation.validate_master_seed(master_seed),
        derivation.validate_purpose(purpose, allow_empty=True),
        derivation.validate_instance_id(instance_id),
    )
    _log.debug("derived %s/%s: %d", purpose, instance_id, seed)
    return seed


def _global_seed(master_seed: MasterSeed) -> int:
    number = master_seed.master_seed if isinstance(master_seed, SeedRegistry) else master_seed
    return derivation.validate_master_seed(
        number, bits=rng.GLOBAL_SEED_BITS, name="seed of the global state (NumPy's range)"
    )


def set_global_deterministic_state(
    master_seed: MasterSeed,
    enable_deterministic: bool = True,  # noqa: FBT001, FBT002 - the documented signature
) -> None:
    """Seed python, NumPy and torch on every device with one integer, and set torch's determinism switches.

    With ``enable_deterministic``: ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` where unset, deterministic
    algorithms with a warning where there is none, cuDNN deterministic and without benchmarking,
    uninitialised memory filled. Without it the switches stay as they are. There is no way back;
    ``registry.set_global_state`` has one.

    Args:
        master_seed: int, ``0 <= master_seed < 2**32`` (NumPy's range), or a registry with such a
            master seed.
        enable_deterministic: set the switches too.

    Raises:
        InvalidSeedError: out of range; nothing has changed.
        ScopeError: inside a scope.
    """
    seed = _global_seed(master_seed)
    refuse_in_scope("set_global_deterministic_state was called")
    if isinstance(master_seed, SeedRegistry):
        mode = "warn" if enable_deterministic else "off"
        master_seed.set_global_state(
            deterministic=mode, fill_uninitialized_memory=bool(enable_deterministic)
        )
        return
    if enable_deterministic:
        determinism.apply("warn", fill_uninitialized_memory=True)
    rng.seed_global(seed)
    _log.info("global state seeded with %d", seed, extra={"master_seed": seed})


def deterministic_context(component_seed: int, component_name: str = "operation") -> rng.Scope:
    """Return a block in which torch's generators (CPU and initialised devices) are seeded, and restored on every way out.

    Python's and NumPy's generators stay as they are. Also a decorator.

    Args:
        component_seed: int, ``0 <= component_seed < 2**64``; the CPU generator uses its low 32
            bits.
        component_name: what messages call the block.

    Raises:
        InvalidSeedError: not such an integer.
    """
    seed = derivation.validate_master_seed(
        component_seed, bits=_TORCH_SEED_BITS, name="component seed"
    )
    return plain_scope(seed, component_name)


def _build(
    master_seed: MasterSeed,
    component: Component,
    factory: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
    instance_id: InstanceId,
) -> Any:
    """Build in a torch-only scope; recorded where a registry was given."""
    if isinstance(master_seed, SeedRegistry):
        return master_seed._build(component, factory, args, kwargs, instance_id, torch_only=True)
    number = derivation.validate_master_seed(master_seed)
    resolved = component.resolve(factory)
    seed = derive_component_seed(number, component.purpose, instance_id)
    identity = derivation.validate_instance_id(instance_id)
    stream = Stream(number, derivation.DEFAULT_SCHEME, component.purpose, identity, seed=seed)
    product, _ = build(
        component, stream, resolved, args, kwargs, late_seed=stream.late_seed, torch_only=True
    )
    return product


def create_deterministic_model(
    master_seed: MasterSeed,
    creator_func: Callable[..., Any],
    instance_id: InstanceId = None,
    **kwargs: Any,
) -> Any:
    """Return ``creator_func(**kwargs)``, called with torch seeded from ("model", instance_id).

    Raises:
        ComponentCreationError: from the factory's exception.
    """
    return _build(master_seed, ModelComponent(), creator_func, (), kwargs, instance_id)


def create_deterministic_optimizer(
    master_seed: MasterSeed,
    optimizer_class: Callable[..., Any],
    model_params: Any,
    instance_id: InstanceId = None,
    **kwargs: Any,
) -> Any:
    """Return ``optimizer_class(model_params, **kwargs)``, called with torch seeded from ("optimizer", instance_id).

    Raises:
        ComponentCreationError: from the class's exception.
    """
    return _build(
        master_seed, OptimizerComponent(), optimizer_class, (model_params,), kwargs, instance_id
    )


_SCHEDULER_DEFAULTS: Dict[str, Dict[str, Any]] = {
    "StepLR": {"step_size": 10, "gamma": 0.1},
    "CosineAnnealingLR": {},
    "OneCycleLR": {
        "max_lr": 0.1,
        "pct_start": 0.3,
        "anneal_strategy": "cos",
        "div_factor": 25,
        "final_div_factor": 1e4,
    },
}


def create_deterministic_scheduler(
    master_seed: MasterSeed,
    optimizer: torch.optim.Optimizer,
    schedule_type: Optional[str],
    total_steps: int,
    instance_id: InstanceId = None,
    **scheduler_params: Any,
) -> Any:
    """Return a scheduler by name, made with torch seeded from ("scheduler", instance_id).

    Args:
        master_seed: int or registry.
        optimizer: the optimizer.
        schedule_type: ``"StepLR"`` (step_size 10, gamma 0.1), ``"CosineAnnealingLR"`` (t_max, else
            total_steps), ``"OneCycleLR"`` (max_lr 0.1, total_steps, pct_start 0.3, anneal_strategy
            "cos", div_factor 25, final_div_factor 1e4), another name of
            ``torch.optim.lr_scheduler``, or None.
        total_steps: number of steps in all.
        instance_id: which one of several.
        **scheduler_params: override the defaults; for another name, all of its parameters.

    Returns:
        The scheduler, or None where ``schedule_type`` is None.

    Raises:
        UnsupportedSchedulerError: "Unsupported scheduler type ..."; also a ``ValueError``.
        ComponentCreationError: from the class's exception.
    """
    if schedule_type is None:
        return None
    factory = find_scheduler(schedule_type) if isinstance(schedule_type, str) else schedule_type
    params = {**_SCHEDULER_DEFAULTS.get(schedule_type, {}), **scheduler_params}
    if schedule_type == "CosineAnnealingLR":
        params["T_max"] = params.pop("t_max", params.get("T_max", total_steps))
    elif schedule_type == "OneCycleLR":
        params.setdefault("total_steps", total_steps)
    return _build(master_seed, SchedulerComponent(), factory, (optimizer,), params, instance_id)


class _DocumentedLoader(Component):
    """Rebuilds a factory's loader in the documented order, as :func:`create_deterministic_dataloader` promises."""

    purpose = "dataloader"

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:
        shuffle = bool(kwargs.get("shuffle", False))
        if "shuffle" in kwargs and not takes(factory, "shuffle"):
            del kwargs[
                "shuffle"
            ]  # it is ours to decide; a factory without the parameter need not have it
        return build_documented_loader(stream, factory, args, kwargs, shuffle=shuffle)

    def describe(self, product: Any) -> Mapping[str, Any]:
        description: Mapping[str, Any] = product.describe()
        return description


def create_deterministic_dataloader(
    master_seed: MasterSeed,
    creator_func: Callable[..., Any],
    instance_id: InstanceId = None,
    **kwargs: Any,
) -> Any:
    """Return the loader of ``creator_func(**kwargs)``, rebuilt in the documented order with every argument kept.

    The keyword ``shuffle`` alone decides shuffling (default False; a factory that shuffled inside
    is warned about). The epoch repeats until told otherwise: ``loader.sampler.epoch = e`` or
    :func:`update_dataloader_epoch`.

    Args:
        master_seed: int or registry.
        creator_func: returns a ``DataLoader``, or is ``DataLoader`` itself, with ``dataset=``.
        instance_id: which one of several.
        **kwargs: for the factory.

    Raises:
        ComponentCreationError: from the factory's exception, or it returned no loader.
    """
    return _build(master_seed, _DocumentedLoader(), creator_func, (), kwargs, instance_id)


def update_dataloader_epoch(dataloader: Any, epoch: int) -> None:
    """Set the epoch of a loader of ours; one without an epoch is left alone, with a debug line.

    Raises:
        InvalidOptionError: the epoch is not an int >= 0.
    """
    sampler: Any = getattr(dataloader, "_deterministic_sampler", None)
    if sampler is None:
        sampler = getattr(dataloader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    else:
        _log.debug("%s has no epoch to set", type(dataloader).__name__)


def seed_worker(worker_id: int) -> None:  # noqa: ARG001 - the signature of a worker_init_fn
    """Seed NumPy, python and torch of a loader's worker process with ``torch.initial_seed() % 2**32``.

    One integer for all, as documented; for streams of its own in each library leave it out: torch's
    workers have them.
    """
    rng.seed_global(torch.initial_seed() % 2**rng.GLOBAL_SEED_BITS)


def deterministic_multi_epoch_training(
    model: torch.nn.Module,
    dataloader: Any,
    optimizer: torch.optim.Optimizer,
    num_epochs: int,
    loss_fn: Callable[..., torch.Tensor] = torch.nn.functional.cross_entropy,
) -> List[float]:
    """Run the documented training loop: epoch set, zero_grad, forward, loss, backward, step.

    Args:
        model: the model.
        dataloader: yields (inputs, targets).
        optimizer: the optimizer.
        num_epochs: number of epochs, from 0.
        loss_fn: ``loss_fn(outputs, targets)``.

    Returns:
        The mean loss of each epoch's batches, one float an epoch; NaN for an epoch without batches.
    """
    means = []
    for epoch in range(num_epochs):
        update_dataloader_epoch(dataloader, epoch)
        losses = []
        for inputs, targets in dataloader:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses) if losses else float("nan"))
        _log.info(
            "epoch %d: mean loss %.6f",
            epoch,
            means[-1],
            extra={"epoch": epoch, "mean_loss": means[-1]},
        )
    return means


# --- names that other guides teach ----------------------------------------------------------------


def seed_everything(seed: Optional[int] = 42, deterministic: bool = False) -> Optional[int]:  # noqa: FBT001, FBT002 - the signature that guides teach
    """Seed python, NumPy and torch on every device with one integer.

    ``deterministic=False`` leaves the switches as they are; AutoTimm's function of that name turns
    cuDNN's benchmarking on.

    Args:
        seed: int, ``0 <= seed < 2**32``; None seeds nothing.
        deterministic: set the switches of :func:`set_global_deterministic_state` too.

    Returns:
        The seed, as an int; None for None.

    Raises:
        InvalidSeedError: out of range; nothing has changed.
    """
    if seed is None:
        return None
    set_global_deterministic_state(seed, enable_deterministic=deterministic)
    return _global_seed(seed)


def set_seed(seed: int = 42) -> None:
    """Seed python, NumPy and torch on every device with one integer, ``0 <= seed < 2**32``.

    The switches stay.
    """
    set_global_deterministic_state(seed, enable_deterministic=False)


def make_reproducible(seed: int = 42) -> None:
    """Seed as :func:`set_seed` does, and set the switches of :func:`set_global_deterministic_state`.

    ``PYTHONHASHSEED`` has no effect once python has started and is not set; where hashes are
    random, a warning is logged.
    """
    set_global_deterministic_state(seed, enable_deterministic=True)
    if sys.flags.hash_randomization:
        _log.warning(
            "hashes of str are random in this process; set PYTHONHASHSEED=0 before python starts "
            "to fix them"
        )


def get_generator(seed: int, device: Union[str, torch.device] = "cpu") -> torch.Generator:
    """Return a ``torch.Generator`` on a device, seeded with ``manual_seed(seed)``.

    Raises:
        InvalidSeedError: not an int, ``0 <= seed < 2**64``.
        DeviceError: the device is unknown, unavailable or has no generators.
    """
    return rng.make_plain_generator(
        device, derivation.validate_master_seed(seed, bits=_TORCH_SEED_BITS, name="seed")
    )


def worker_init_fn(worker_id: int) -> None:
    """Seed a loader's worker process; the same as :func:`seed_worker`."""
    seed_worker(worker_id)
