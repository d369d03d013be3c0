"""The documented functions: names, parameters, defaults and numbers that code out there relies on.

One integer seeds every library, and scopes are torch-only. Each function takes a
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
from seedregistry.errors import InvalidOptionError
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

    Example:
        >>> from seedregistry import derive_component_seed
        >>> derive_component_seed(42, "model", "training")
        1958051794

    Args:
        master_seed: int or ``numpy.integer``, ``0 <= master_seed < 2**128``, or a registry (whose
            scheme decides).
        purpose: str. ``""`` is accepted with an int, as the documents do.
        instance_id: None, int, ``numpy.integer`` or str; ``0`` and ``""`` count as ids.

    Returns:
        int, ``0 <= seed < 2**31``.

    Raises:
        InvalidSeedError: the master seed is not such an integer.
        InvalidNameError: a name is not of those types, or not encodable.
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
    """Seed python, NumPy and torch on every device, and set torch's determinism switches.

    With ``enable_deterministic``: ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` where unset, deterministic
    algorithms with a warning where there is none, cuDNN deterministic and without benchmarking,
    uninitialised memory filled. Without it the switches stay as they are. There is no way back;
    :meth:`SeedRegistry.set_global_state` has one.

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
    """Return a block in which torch's default generators are seeded, and restored at its end.

    Those of the CPU and of every initialised device, also when the body raises. Python's and
    NumPy's generators stay as they are. Also a decorator.

    Example:
        >>> import torch
        >>> from seedregistry import deterministic_context
        >>> with deterministic_context(7):
        ...     first = torch.rand(2)
        >>> with deterministic_context(7):
        ...     torch.equal(torch.rand(2), first)
        True

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
    return build(component, stream, resolved, args, kwargs, torch_only=True)


def create_deterministic_model(
    master_seed: MasterSeed,
    creator_func: Callable[..., Any],
    instance_id: InstanceId = None,
    **kwargs: Any,
) -> Any:
    """Return ``creator_func(**kwargs)``, called with torch seeded from ("model", instance_id).

    The default generators are afterwards as they were.

    Example:
        >>> import torch
        >>> from seedregistry import create_deterministic_model
        >>> options = {"in_features": 3, "out_features": 2}
        >>> model = create_deterministic_model(42, torch.nn.Linear, "training", **options)
        >>> again = create_deterministic_model(42, torch.nn.Linear, "training", **options)
        >>> torch.equal(model.weight, again.weight)
        True

    Args:
        master_seed: int or registry.
        creator_func: a class or a function that returns a model.
        instance_id: which one of several.
        **kwargs: for it.

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
    """Return ``optimizer_class(model_params, **kwargs)``.

    It is called with torch seeded from ("optimizer", instance_id).

    Args:
        master_seed: int or registry.
        optimizer_class: a class such as ``torch.optim.SGD``.
        model_params: parameters or groups of them.
        instance_id: which one of several.
        **kwargs: for the class.

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
        optimizer: whose learning rates it sets.
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
    """Rebuilds a factory's loader as :func:`create_deterministic_dataloader` promises."""

    purpose = "dataloader"

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:
        shuffle = bool(kwargs.get("shuffle", False))
        if "shuffle" in kwargs and not takes(factory, "shuffle"):
            del kwargs["shuffle"]  # what shuffles is the sampler, and the factory need not know
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
    """Return the loader of ``creator_func(**kwargs)``, rebuilt in the documented order.

    Every argument of the loader is kept. The keyword ``shuffle`` alone decides shuffling (default
    False; a factory that shuffled inside is warned about). The epoch repeats until told otherwise:
    ``loader.sampler.epoch = e`` or :func:`update_dataloader_epoch`.

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
    """Set the epoch of a loader; one that has no epoch is left alone, with a line in the log.

    Args:
        dataloader: any loader; it has an epoch where its sampler has ``set_epoch``.
        epoch: int >= 0.

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
    """Seed NumPy, python and torch of a loader's worker with ``torch.initial_seed() % 2**32``.

    For ``DataLoader(worker_init_fn=seed_worker)``. The three get one integer, as documented. Leave
    it out for loaders of :meth:`SeedRegistry.dataloader`, whose samples draw from streams.

    Example:
        >>> import torch
        >>> from seedregistry import seed_worker
        >>> options = {"num_workers": 2, "worker_init_fn": seed_worker}
        >>> loader = torch.utils.data.DataLoader(range(4), **options)

    Args:
        worker_id: given by torch, and not used: torch has put it into ``initial_seed``.
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
        model: what is trained, in place.
        dataloader: yields (inputs, targets).
        optimizer: of the model's parameters.
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

        mean = sum(losses) / len(losses) if losses else float("nan")
        means.append(mean)
        extra = {"epoch": epoch, "mean_loss": mean}
        _log.info("epoch %d: mean loss %.6f", epoch, mean, extra=extra)
    return means


# --- names that other guides teach ----------------------------------------------------------------


def seed_everything(
    seed: Optional[int] = 42,
    deterministic: Optional[bool] = None,  # noqa: FBT001 - the signature that guides teach
) -> Optional[int]:
    """Seed python, NumPy and torch on every device with one integer.

    Example:
        >>> from seedregistry import seed_everything
        >>> print(seed_everything(None))  # seeds nothing
        None

    Args:
        seed: int, ``0 <= seed < 2**32``; None seeds nothing.
        deterministic: True raises where an operator has no deterministic form, as
            ``registry.set_global_state(deterministic="strict")`` does; False, said explicitly,
            allows nondeterministic algorithms and lets cuDNN look for the fastest; None leaves the
            switches as they are.

    Returns:
        The seed, as an int; None for None.

    Raises:
        InvalidSeedError: out of range; nothing has changed.
        InvalidOptionError: ``deterministic`` is not one of the three; nothing has changed.
        ScopeError: inside a scope.
    """
    if deterministic not in (True, False, None):
        message = f"deterministic must be True, False or None; got {deterministic!r}."
        raise InvalidOptionError(message)
    if seed is None:
        _log.info("seed_everything was given None: nothing was seeded")
        return None
    number = _global_seed(seed)
    refuse_in_scope("seed_everything was called")
    if deterministic is not None:
        determinism.apply("strict" if deterministic else "fast")
    set_global_deterministic_state(seed, enable_deterministic=False)
    return number


def set_seed(seed: int = 42) -> None:
    """Seed python, NumPy and torch on every device with one integer. The switches stay.

    Args:
        seed: int, ``0 <= seed < 2**32``.

    Raises:
        InvalidSeedError: out of range; nothing has changed.
    """
    set_global_deterministic_state(seed, enable_deterministic=False)


def make_reproducible(seed: int = 42) -> None:
    """Seed python, NumPy and torch on every device with one integer, and set the switches.

    The switches are those of :func:`set_global_deterministic_state`. ``PYTHONHASHSEED`` has no
    effect once python has started and is not set; where hashes are random, a warning is logged.

    Args:
        seed: int, ``0 <= seed < 2**32``.

    Raises:
        InvalidSeedError: out of range; nothing has changed.
    """
    set_global_deterministic_state(seed, enable_deterministic=True)
    if sys.flags.hash_randomization:
        _log.warning(
            "hashes of str are random in this process; set PYTHONHASHSEED=0 before python starts "
            "to fix them"
        )


def get_generator(seed: int, device: Union[str, torch.device] = "cpu") -> torch.Generator:
    """Return a ``torch.Generator`` on a device, seeded with ``manual_seed(seed)``.

    Args:
        seed: int, ``0 <= seed < 2**64``.
        device: where it generates.

    Raises:
        InvalidSeedError: the seed is not such an integer.
        DeviceError: the device is unknown, unavailable or has no generators.
    """
    return rng.make_plain_generator(
        device, derivation.validate_master_seed(seed, bits=_TORCH_SEED_BITS, name="seed")
    )


def worker_init_fn(worker_id: int) -> None:
    """Seed a loader's worker process: :func:`seed_worker` under the name that torch has for it."""
    seed_worker(worker_id)
