"""The optimizer component: a class called with the parameters in the stream's scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, final

from seedregistry.components.base import Component

if TYPE_CHECKING:
    from seedregistry.stream import Stream

# How a step is computed, not what: these come and go between releases of torch, and none changes
# the update rule.
_NOT_HYPERPARAMETERS = frozenset(
    {"params", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay"}
)


@final
class OptimizerComponent(Component):
    """Builds an optimizer, ``cls(params, *args, **kwargs)``, from ("optimizer", instance_id).

    What ``registry.optimizer`` builds with. The class is called in the stream's scope.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.components import OptimizerComponent
        >>> params = [torch.zeros(3, requires_grad=True)]
        >>> sgd = SeedRegistry(42).optimizer(torch.optim.SGD, params, instance_id="a", lr=0.1)
        >>> OptimizerComponent().describe(sgd)["groups"][0]["tensors"]
        1
    """

    purpose = "optimizer"

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Call the class; most optimizers draw nothing, and the ledger says so."""
        return factory(*args, **kwargs)

    def describe(self, product: Any) -> Mapping[str, Any]:
        """Return the class, and of each parameter group the settings and the number of tensors."""
        groups = []
        for group in getattr(product, "param_groups", ()):
            settings = {
                name: value for name, value in group.items() if name not in _NOT_HYPERPARAMETERS
            }
            # The default, which older releases do not have for every class.
            if settings.get("maximize") is False:
                del settings["maximize"]
            settings["tensors"] = len(group["params"])
            groups.append(settings)
        return {
            "class": f"{type(product).__module__}.{type(product).__qualname__}",
            "groups": groups,
        }
