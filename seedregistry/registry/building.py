"""Building: one product of a component, made in a scope of its stream and, for a registry, recorded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple

from seedregistry import rng
from seedregistry.common.callsite import call_site
from seedregistry.components.base import describe_factory, distribution_of
from seedregistry.errors import ComponentCreationError, SeedRegistryError
from seedregistry.ledger import records

if TYPE_CHECKING:
    from seedregistry.components.base import Component
    from seedregistry.registry.shared import Shared
    from seedregistry.rng import Scope
    from seedregistry.rng.state import LateSeed
    from seedregistry.stream import Stream

_log = logging.getLogger(__name__)


def build(
    component: Component,
    stream: Stream,
    factory: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    late_seed: LateSeed,
    torch_only: bool = False,
    watch: bool = False,
) -> Tuple[Any, Optional[rng.Movement]]:
    """Build one thing in a scope of its stream.

    Args:
        component: knows how.
        stream: what its draws come from.
        factory: what ``component.resolve`` returned.
        args: for the factory.
        kwargs: for the factory.
        late_seed: gives the seed of an accelerator that starts meanwhile.
        torch_only: leave python's and NumPy's generators alone, as the documented functions do.
        watch: look at which generators move.

    Returns:
        The product, and what moved; None where nothing could draw or nobody looked.

    Raises:
        ComponentCreationError: from the factory's own exception.
    """
    scope = None
    if component.draws(factory):
        scope = rng.Scope(
            stream, stream.label, torch_only=torch_only, watch=watch, late_seed=late_seed
        )
    product = _build_in_scope(component, stream, scope, factory, args, kwargs)
    if _log.isEnabledFor(logging.INFO):
        extra = {
            "master_seed": stream.master_seed,
            "purpose": stream.purpose,
            "instance_id": stream.instance_id,
            "component_seed": stream.seed,
        }
        _log.info("created %s with component seed %d", stream.label, stream.seed, extra=extra)
    return product, None if scope is None else scope.movement


def build_recorded(
    component: Component,
    stream: Stream,
    factory: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    shared: Shared,
    late_seed: LateSeed,
    torch_only: bool = False,
) -> Any:
    """Build one thing as :func:`build` does, and record it and the use of its stream.

    Raises:
        StreamReuseError: the stream was used before and ``on_reuse`` forbids it.
        ComponentCreationError: from the factory's own exception, or from the component's
            description.
    """
    site = call_site()
    with shared.lock:
        shared.guard.check_use(stream, site)
    product, movement = build(
        component,
        stream,
        factory,
        args,
        kwargs,
        late_seed=late_seed,
        torch_only=torch_only,
        watch=True,
    )
    shared.record_environment_once()
    description = _describe(component, stream, product, args, kwargs)
    origin = (describe_factory(factory), *distribution_of(factory))
    with shared.lock:
        shared.guard.mark_use(stream, site)
        shared.ledger.append_later(_built, stream, origin, description, movement, site)
    return product


def _built(
    stream: Stream,
    origin: Tuple[str, str, str],
    description: Any,
    movement: Optional[rng.Movement],
    site: str,
) -> records.Built:
    """Make the record of a build; what drew is worked out here, when the ledger is read."""
    factory, distribution, version = origin
    return records.Built(
        master_seed=stream.master_seed,
        purpose=stream.purpose,
        instance_id=stream.instance_id,
        factory=factory,
        description=description,
        drew=() if movement is None else movement.drew(),
        distribution=distribution,
        version=version,
        call_site=site,
    )


def _describe(
    component: Component,
    stream: Stream,
    product: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> records.Value:
    """Return what the ledger keeps of a product.

    Raises:
        ComponentCreationError: from an exception of the component's own.
    """
    try:
        return records.freeze(
            {**component.describe_call(args, kwargs), **component.describe(product)}
        )
    except Exception as error:
        message = (
            f"What was built from stream '{stream.label}' could not be described by "
            f"{type(component).__name__}: {error}"
        )
        raise ComponentCreationError(
            message, purpose=stream.purpose, instance_id=stream.instance_id
        ) from error


def _build_in_scope(
    component: Component,
    stream: Stream,
    scope: Optional[Scope],
    factory: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Build one thing inside a scope, or without one where nothing can draw.

    Raises:
        ComponentCreationError: from the factory's own exception.
    """
    try:
        if scope is None:
            return component.build(stream, factory, *args, **kwargs)
        with scope:
            return component.build(stream, factory, *args, **kwargs)
    except SeedRegistryError:
        raise
    except Exception as error:
        message = (
            f"{describe_factory(factory)} failed while the {component.purpose} of stream "
            f"'{stream.label}' was built: {type(error).__name__}: {error}"
        )
        raise ComponentCreationError(
            message, purpose=stream.purpose, instance_id=stream.instance_id
        ) from error
