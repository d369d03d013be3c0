"""Building: one product of a component, made in a scope of its stream, and its record."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple

from seedregistry import rng
from seedregistry.common.callsite import call_site
from seedregistry.common.identities import QualifiedId
from seedregistry.components.base import describe_factory, distribution_of
from seedregistry.errors import ComponentCreationError, SeedRegistryError
from seedregistry.ledger import records

if TYPE_CHECKING:
    from seedregistry.components.base import Component
    from seedregistry.registry.shared import Shared
    from seedregistry.stream import Stream

_log = logging.getLogger(__name__)


def build(
    component: Component,
    stream: Stream,
    factory: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    shared: Optional[Shared] = None,
    torch_only: bool = False,
) -> Any:
    """Build one thing in a scope of its stream.

    For a registry, the product and the use of the stream are recorded.

    Args:
        component: knows how.
        stream: what its draws come from.
        factory: what ``component.resolve`` returned.
        args: for the factory.
        kwargs: for the factory.
        shared: of the registry; None records nothing.
        torch_only: leave python's and NumPy's generators alone, as the documented functions do.

    Raises:
        StreamReuseError: the stream was used before and ``on_reuse`` forbids it.
        ComponentCreationError: from the factory's own exception, or from the component's
            description.
    """
    site = ""
    if shared is not None:
        site = call_site()
        with shared.lock:
            shared.guard.check_use(stream, site)

    scope = None
    if component.draws(factory):
        host = stream.host
        scope = rng.Scope(
            stream,
            stream.label,
            torch_only=torch_only,
            watch=shared is not None,
            late_seed=stream.late_seed if host is None else host.late_seed,
        )

    try:
        with contextlib.nullcontext() if scope is None else scope:
            product = component.build(stream, factory, *args, **kwargs)
    except SeedRegistryError:
        raise
    except Exception as error:
        message = (
            f"{describe_factory(factory)} failed while the {component.purpose} of stream "
            f"'{stream.label}' was built: {type(error).__name__}: {error}"
        )
        raise _fail(stream, message) from error
    if _log.isEnabledFor(logging.INFO):
        extra = {**QualifiedId.of(stream)._asdict(), "component_seed": stream.seed}
        _log.info("created %s with component seed %d", stream.label, stream.seed, extra=extra)

    if shared is not None:
        shared.record_environment_once()
        description = _describe(component, stream, product, args, kwargs)
        origin = (describe_factory(factory), *distribution_of(factory))
        movement = None if scope is None else scope.movement
        with shared.lock:
            shared.guard.mark_use(stream, site)
            shared.ledger.append_later(_make_record, stream, origin, description, movement, site)
    return product


def _fail(stream: Stream, message: str) -> ComponentCreationError:
    return ComponentCreationError(message, purpose=stream.purpose, instance_id=stream.instance_id)


def _describe(
    component: Component,
    stream: Stream,
    product: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
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
        raise _fail(stream, message) from error


def _make_record(
    stream: Stream,
    origin: Tuple[str, str, str],
    description: Any,
    movement: Optional[rng.Movement],
    site: str,
) -> records.Built:
    """Make the record of a build; what drew is worked out here, when the ledger is read."""
    factory, distribution, version = origin
    return records.Built(
        **QualifiedId.of(stream)._asdict(),
        factory=factory,
        description=description,
        drew=() if movement is None else movement.drew(),
        distribution=distribution,
        version=version,
        call_site=site,
    )
