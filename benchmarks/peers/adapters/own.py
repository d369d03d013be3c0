"""seedregistry."""

from __future__ import annotations

import itertools
import os
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Tuple
from unittest import mock

import torch
from torch import nn

from peers.peer import Peer
from peers.work import Drawing, Net, Step, Work, disturb
from seedregistry import SeedRegistry
from seedregistry.rng import accelerators

SCHEME = "sha256-256"


class Own(Peer):
    """The registry, under the scheme that has neither weakness of the documented one."""

    name = "own"
    title = "seedregistry"
    packages = ("seedregistry",)

    def train(self, work: Work) -> List[Step]:
        rank = int(os.environ["RANK"]) if "RANK" in os.environ else None
        if rank is not None:
            torch.distributed.init_process_group("gloo")
        registry = SeedRegistry(work.seed, scheme=SCHEME)
        trace: List[Step] = []
        model = registry.model(Net, trace, instance_id="training")
        optimizer = registry.optimizer(
            torch.optim.SGD, model.parameters(), instance_id="training", lr=0.1
        )
        dropout = registry.stream("dropout", "training")

        def loader_of(size: int, instance_id: str, **options: Any) -> Any:
            return registry.dataloader(
                Drawing(size),
                instance_id=instance_id,
                batch_size=work.batch_size,
                shard=True,
                **options,
            )

        loader = loader_of(
            work.size,
            "training",
            shuffle=work.shuffle,
            num_workers=work.workers,
            persistent_workers=work.persistent,
        )
        if work.resume:
            state = torch.load(work.folder / "state.pt", weights_only=True)
            model.load_state_dict(state["model"])
            loader.load_state_dict(state["loader"])
        if work.disturb:
            disturb(loader)
        for epoch in range(loader.epoch, work.epochs):
            for step, batch in loader.steps(epoch):
                with dropout.scope(epoch, step, rank=rank):
                    loss = model(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if len(trace) == work.stop_after:
                    state = {"model": model.state_dict(), "loader": loader.state_dict()}
                    torch.save(state, work.folder / "state.pt")
                    return trace
            if work.validate:
                model.eval()
                for batch in loader_of(8, "validation", num_workers=work.workers):
                    model(batch)
                model.train()
        return trace

    def seed(self, value: Any) -> Any:
        return SeedRegistry(value, scheme=SCHEME).set_global_state()

    def in_scope(self, seed: int, function: Callable[[], Any]) -> Any:
        with SeedRegistry(seed, scheme=SCHEME).stream("scope", "test").scope(0, rank=None):
            return function()

    def build(self, names: Sequence[Tuple[str, Any]]) -> Dict[Tuple[str, Any], List[float]]:
        registry = SeedRegistry(5, scheme=SCHEME)
        built = {}
        for name in names:
            with registry.stream(*name).scope():
                built[name] = nn.Linear(4, 4).weight.flatten().tolist()
        return built

    def named_stream(self, purpose: str, instance_id: Any) -> List[float]:
        stream = SeedRegistry(5, scheme=SCHEME).stream(purpose, instance_id)
        return torch.rand(4, generator=stream.generator()).tolist()

    def equal_streams(self) -> Tuple[List[float], List[float]]:
        """Two models whose seeds collide in 31 bits: kept apart by the one scheme, refused by
        the other."""
        seeds: Dict[int, int] = {}
        plain = SeedRegistry(5, scheme=SCHEME)
        for instance_id in itertools.count():
            other = seeds.setdefault(plain.seed("model", instance_id), instance_id)
            if other != instance_id:
                break
        one, two = (
            torch.rand(4, generator=plain.generator("model", name)).tolist()
            for name in (other, instance_id)
        )
        if one == two:
            return one, two
        documented = SeedRegistry(5)
        documented.reserve("model", range(200_000))  # some 5 collisions: raises
        return one, one

    def set_switches(self) -> Tuple[str, Optional[Callable[[], None]]]:
        handle = SeedRegistry(5).set_global_state(deterministic="strict")
        return str(handle.report), handle.revert

    def rng_state(self) -> Any:
        return SeedRegistry(5, scheme=SCHEME).state_dict()

    def set_rng_state(self, state: Any) -> None:
        SeedRegistry(5, scheme=SCHEME).load_state_dict(state)

    def without_numpy(self, state: Any) -> Any:
        del state["generators"]["numpy"]
        return state

    def with_short_torch(self, state: Any) -> Any:
        entry = state["generators"]["torch:cpu"]
        entry["state"] = entry["state"][:100]
        return state

    def discover(self) -> ContextManager[Any]:
        """Look for devices again, which the library does once, when it is imported."""
        found = tuple(
            accelerators.Accelerator(kind, getattr(torch, kind)) for kind in ("xpu", "mps")
        )
        return mock.patch.object(accelerators, "ACCELERATORS", found)


PEER = Own()
