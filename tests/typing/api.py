"""How a user's code types against the library: checked by mypy, never run."""

from __future__ import annotations

import random
from typing import Any, List, Mapping

import numpy as np
import torch
from torch import nn
from typing_extensions import assert_type

from seedregistry import (
    Component,
    Position,
    SeedRegistry,
    Stream,
    derive_component_seed,
    deterministic_context,
)

registry = SeedRegistry(42, scheme="sha256-256", on_reuse="forbid", purposes={"model", "noise"})
assert_type(registry.seed("model", 7), int)
assert_type(registry.stream("model", "x"), Stream)
assert_type(registry.stream("model").at(1, "a"), Position)
assert_type(registry.generator("noise", device=torch.device("cpu")), torch.Generator)
assert_type(registry.numpy("noise"), np.random.Generator)
assert_type(registry.python("noise"), random.Random)
assert_type(registry.child("fold", 0), SeedRegistry)
assert_type(derive_component_seed(registry, "model"), int)

model = registry.model(nn.Linear, 3, 2, instance_id="training")
assert_type(model, nn.Linear)
optimizer = registry.optimizer(torch.optim.SGD, model.parameters(), lr=0.1)
assert_type(optimizer, torch.optim.SGD)
loader = registry.dataloader([1, 2, 3], shuffle=True)
assert_type(loader.epoch, int)

with registry.set_global_state(deterministic="warn") as handle:
    assert_type(str(handle.report), str)
with registry.stream("model").scope(1, 2, rank=None), deterministic_context(7):
    pass


position = registry.stream("noise").scope(1)


@position
def noise(count: int) -> List[float]:
    """Keep its type under the decorator."""
    return [random.random() for _ in range(count)]


assert_type(noise(3), List[float])


class Own(Component):
    """A component of the user's own."""

    purpose = "own"

    def build(self, stream: Stream, factory: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Build."""
        return factory(*args, **kwargs)

    def describe(self, product: Any) -> Mapping[str, Any]:
        """Describe."""
        return {"product": str(product)}


registry.register(Own())
registry.seed(3)  # type: ignore[arg-type]
registry.model("Linear")  # type: ignore[arg-type]
