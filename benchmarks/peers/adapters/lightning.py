"""Lightning's Trainer, with the loader that its pages on resuming in mid-epoch ask for."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from peers.peer import Peer
from peers.work import Drawing, Net, Step, Work, disturb


class _Module(LightningModule):
    def __init__(self, trace: List[Step]) -> None:
        super().__init__()
        self.net = Net(trace)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch)

    def validation_step(self, batch: torch.Tensor) -> None:
        self.net(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Lightning(Peer):
    """``seed_everything(seed, workers=True)`` and a Trainer."""

    name = "lightning"
    title = "Lightning"
    packages = ("lightning", "torchdata")

    def train(self, work: Work) -> List[Step]:
        seed_everything(work.seed, workers=True, verbose=False)
        trace: List[Step] = []
        module = _Module(trace)
        loader = (StatefulDataLoader if work.resumable else DataLoader)(
            Drawing(work.size),
            batch_size=work.batch_size,
            shuffle=work.shuffle,
            num_workers=work.workers,
            persistent_workers=work.persistent,
        )
        if work.disturb:
            disturb(loader)
        trainer = Trainer(
            accelerator="cpu",
            devices=int(os.environ.get("WORLD_SIZE", "1")),
            strategy="ddp" if "RANK" in os.environ else "auto",
            max_epochs=work.epochs,
            max_steps=work.stop_after or -1,
            logger=False,
            callbacks=[ModelCheckpoint(work.folder, "state", every_n_train_steps=work.stop_after)]
            if work.stop_after
            else [],
            enable_checkpointing=bool(work.stop_after),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        validation = DataLoader(Drawing(8), num_workers=work.workers) if work.validate else None
        saved = work.folder / "state.ckpt"
        trainer.fit(module, loader, validation, ckpt_path=str(saved) if work.resume else None)
        return trace

    def seed(self, value: Any) -> Any:
        seed_everything(value, verbose=False)

    def in_scope(self, seed: int, function: Callable[[], Any]) -> Any:
        with isolate_rng():
            seed_everything(seed, verbose=False)
            return function()

    def build(self, names: Sequence[Tuple[str, Any]]) -> Dict[Tuple[str, Any], List[float]]:
        seed_everything(5, verbose=False)
        return {name: nn.Linear(4, 4).weight.flatten().tolist() for name in names}

    def equal_streams(self) -> Tuple[List[float], List[float]]:
        """Workers of two ranks whose seeds, as Lightning derives them, agree in the 32 bits that
        torch uses."""
        base = 5
        seeds: Dict[int, Tuple[int, int]] = {}
        for rank in range(16_384):
            for worker in range(16):
                torch.default_generator.manual_seed(base + worker)
                with isolate_rng():
                    pl_worker_init_function(worker, rank)
                    effective = torch.initial_seed() & 0xFFFFFFFF
                other = seeds.setdefault(effective, (worker, rank))
                if other != (worker, rank):
                    return _worker_draws(base, *other), _worker_draws(base, worker, rank)
        raise AssertionError("no two of 262,144 workers share a seed")

    def set_switches(self) -> Tuple[str, Optional[Callable[[], None]]]:
        Trainer(
            deterministic=True,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            barebones=False,
        )
        return "", None


def _worker_draws(base: int, worker: int, rank: int) -> List[float]:
    torch.default_generator.manual_seed(base + worker)
    pl_worker_init_function(worker, rank)
    return torch.rand(4).tolist()


PEER = Lightning()
