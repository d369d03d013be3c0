"""PyTorch as its note on reproducibility has it, with torchdata's ``StatefulDataLoader`` and
``DistributedSampler``."""

from __future__ import annotations

import os
import random
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from peers.peer import Peer
from peers.work import Drawing, Net, Step, Work, disturb


def seed_worker(worker_id: int) -> None:
    """Seed Python and NumPy in a worker, as the note says."""
    del worker_id
    worker_seed = torch.initial_seed() % 2**32
    np.random.seed(worker_seed)
    random.seed(worker_seed)


class PyTorch(Peer):
    """One global seed, a generator for the loader, ``worker_init_fn``."""

    name = "pytorch"
    title = "PyTorch"
    packages = ("torch", "torchdata")

    def train(self, work: Work) -> List[Step]:
        self.seed(work.seed)
        trace: List[Step] = []
        model = Net(trace)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(work.seed)
        data = Drawing(work.size)
        sampler = None
        if "RANK" in os.environ:
            torch.distributed.init_process_group("gloo")
            sampler = DistributedSampler(data, shuffle=work.shuffle, seed=work.seed)
        loader: Any = StatefulDataLoader(
            data,
            batch_size=work.batch_size,
            shuffle=None if sampler else work.shuffle,
            sampler=sampler,
            num_workers=work.workers,
            persistent_workers=work.persistent,
            worker_init_fn=seed_worker,
            generator=generator,
        )
        first = 0
        if work.resume:
            state = torch.load(work.folder / "state.pt", weights_only=False)
            model.load_state_dict(state["model"])
            loader.load_state_dict(state["loader"])
            generator.set_state(state["generator"])
            _set_states(state["rng"])
            first = state["epoch"]
        if work.disturb:
            disturb(loader)
        for epoch in range(first, work.epochs):
            if sampler is not None:
                sampler.set_epoch(epoch)
            for batch in loader:
                loss = model(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if len(trace) == work.stop_after:
                    state = {
                        "model": model.state_dict(),
                        "loader": loader.state_dict(),
                        "epoch": epoch,
                    }
                    torch.save(
                        {**state, "generator": generator.get_state(), "rng": _states()},
                        work.folder / "state.pt",
                    )
                    return trace
            if work.validate:
                model.eval()
                for batch in torch.utils.data.DataLoader(
                    Drawing(8),
                    num_workers=work.workers,
                    worker_init_fn=seed_worker,
                    generator=generator,
                ):
                    model(batch)
                model.train()
        return trace

    def seed(self, value: Any) -> Any:
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value)

    def in_scope(self, seed: int, function: Callable[[], Any]) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return function()

    def build(self, names: Sequence[Tuple[str, Any]]) -> Dict[Tuple[str, Any], List[float]]:
        self.seed(5)
        return {name: nn.Linear(4, 4).weight.flatten().tolist() for name in names}

    def equal_streams(self) -> Tuple[List[float], List[float]]:
        one, other = (
            torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
            for seed in (1, 1 + 2**32)
        )
        return one, other

    def set_switches(self) -> Tuple[str, Optional[Callable[[], None]]]:
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False
        return "", None

    def rng_state(self) -> Any:
        self._nothing("torch.get_rng_state() holds torch's CPU generator alone")


def _states() -> Any:
    """Return the states of all three libraries, which a user has to collect."""
    return {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _set_states(states: Any) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


PEER = PyTorch()
