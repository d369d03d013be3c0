"""Accelerate: ``set_seed``, ``prepare`` with the seedable sampler, ``save_state``,
``skip_first_batches``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn

from peers.peer import Peer
from peers.work import Drawing, Net, Step, Work, disturb


def _accelerator() -> Accelerator:
    return Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True)
    )


class Accelerate(Peer):
    """The loop of its pages on checkpoints."""

    name = "accelerate"
    title = "accelerate"
    packages = ("accelerate",)

    def train(self, work: Work) -> List[Step]:
        accelerator = _accelerator()
        set_seed(work.seed)
        trace: List[Step] = []
        net = Net(trace)
        loader: Any = torch.utils.data.DataLoader(
            Drawing(work.size),
            batch_size=work.batch_size,
            shuffle=work.shuffle,
            num_workers=work.workers,
            persistent_workers=work.persistent,
        )
        optimizer: Any
        model, optimizer, loader = accelerator.prepare(
            net, torch.optim.SGD(net.parameters(), lr=0.1), loader
        )
        first, skipped = 0, 0
        if work.resume:
            accelerator.load_state(str(work.folder))
            first, skipped = torch.load(work.folder / "progress.pt")
        if work.disturb:
            disturb(loader)
        for epoch in range(first, work.epochs):
            loader.set_epoch(epoch)
            batches = skip_first_batches(loader, skipped) if skipped else loader
            done, skipped = skipped, 0
            for batch in batches:
                loss = model(batch)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                done += 1
                if len(trace) == work.stop_after:
                    accelerator.save_state(str(work.folder))
                    torch.save((epoch, done), work.folder / "progress.pt")
                    return trace
            if work.validate:
                model.eval()
                for batch in accelerator.prepare(
                    torch.utils.data.DataLoader(Drawing(8), num_workers=work.workers)
                ):
                    model(batch)
                model.train()
        return trace

    def seed(self, value: Any) -> Any:
        set_seed(value)

    def build(self, names: Sequence[Tuple[str, Any]]) -> Dict[Tuple[str, Any], List[float]]:
        set_seed(5)
        return {name: nn.Linear(4, 4).weight.flatten().tolist() for name in names}

    def equal_streams(self) -> Tuple[List[float], List[float]]:
        one, other = (
            list(SeedableRandomSampler(range(10), data_seed=seed)) for seed in (1, 1 + 2**32)
        )
        return one, other

    def set_switches(self) -> Tuple[str, Optional[Callable[[], None]]]:
        set_seed(5, deterministic=True)
        return "", None

    def rng_state(self) -> Any:
        """Return what ``save_state`` writes for the generators of a process."""
        with tempfile.TemporaryDirectory() as folder:
            _accelerator().save_state(folder)
            (path,) = Path(folder).glob("random_states*.pkl")
            return torch.load(path, weights_only=False)

    def set_rng_state(self, state: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            accelerator = _accelerator()
            accelerator.save_state(folder)
            (path,) = Path(folder).glob("random_states*.pkl")
            torch.save(state, path)
            accelerator.load_state(folder)

    def without_numpy(self, state: Any) -> Any:
        return {name: entry for name, entry in state.items() if "numpy" not in name}

    def with_short_torch(self, state: Any) -> Any:
        return {**state, "torch_manual_seed": state["torch_manual_seed"][:100]}


PEER = Accelerate()
