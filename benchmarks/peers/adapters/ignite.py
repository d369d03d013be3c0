"""Ignite's ``DeterministicEngine`` and ``keep_random_state``."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import ignite.distributed as idist
import torch
from ignite.engine import DeterministicEngine, Engine, Events
from ignite.engine.deterministic import keep_random_state
from ignite.utils import manual_seed
from torch import nn
from torch.utils.data import DataLoader

from peers.peer import Peer
from peers.work import Drawing, Net, Step, Work, disturb


class Ignite(Peer):
    """The engine whose data flow is synchronised, as its page on that has it."""

    name = "ignite"
    title = "ignite"
    packages = ("pytorch-ignite",)

    def train(self, work: Work) -> List[Step]:
        if "RANK" in os.environ:
            idist.initialize("gloo")
        manual_seed(work.seed)
        trace: List[Step] = []
        model = Net(trace)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def update(_: Any, batch: torch.Tensor) -> float:
            loss = model(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        trainer = DeterministicEngine(update)
        loader = idist.auto_dataloader(
            Drawing(work.size),
            batch_size=work.batch_size * idist.get_world_size(),
            shuffle=work.shuffle,
            num_workers=work.workers * idist.get_world_size(),
            persistent_workers=work.persistent,
        )
        if work.disturb:
            disturb(loader)
        if work.resume:
            state = torch.load(work.folder / "state.pt", weights_only=False)
            model.load_state_dict(state["model"])
            trainer.load_state_dict(state["trainer"])

        @trainer.on(Events.EPOCH_STARTED)
        def _() -> None:
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(trainer.state.epoch - 1)

        if work.validate:
            _validate(trainer, model, work)

        if work.stop_after:

            @trainer.on(Events.ITERATION_COMPLETED(once=work.stop_after))
            def _() -> None:
                torch.save(
                    {"model": model.state_dict(), "trainer": trainer.state_dict()},
                    work.folder / "state.pt",
                )
                trainer.terminate()

        trainer.run(loader, max_epochs=work.epochs)
        return trace

    def seed(self, value: Any) -> Any:
        manual_seed(value)

    def in_scope(self, seed: int, function: Callable[[], Any]) -> Any:
        @keep_random_state
        def scope() -> Any:
            manual_seed(seed)
            return function()

        return scope()

    def build(self, names: Sequence[Tuple[str, Any]]) -> Dict[Tuple[str, Any], List[float]]:
        manual_seed(5)
        return {name: nn.Linear(4, 4).weight.flatten().tolist() for name in names}

    def set_switches(self) -> Tuple[str, Optional[Callable[[], None]]]:
        self._nothing("sets switches only where there is CUDA")

    def rng_state(self) -> Any:
        return DeterministicEngine(lambda *_: None).state_dict()["rng_states"]

    def set_rng_state(self, state: Any) -> None:
        """Resume an engine in mid-epoch, which is when it sets them."""
        engine = DeterministicEngine(lambda *_: None)
        engine.load_state_dict(
            {"epoch_length": 4, "max_epochs": 1, "iteration": 2, "rng_states": state}
        )
        engine.run(list(range(4)), max_epochs=1)

    def without_numpy(self, state: Any) -> Any:
        return state[:2]

    def with_short_torch(self, state: Any) -> Any:
        return [state[0], state[1][:100], state[2]]


def _validate(trainer: Engine, model: Net, work: Work) -> None:
    evaluator = Engine(lambda _, batch: model(batch).item())

    @trainer.on(Events.EPOCH_COMPLETED)
    @keep_random_state
    def _() -> None:
        model.eval()
        evaluator.run(DataLoader(Drawing(8), num_workers=work.workers))
        model.train()


PEER = Ignite()
