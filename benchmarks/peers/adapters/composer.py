"""Composer's Trainer."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from composer import ComposerModel, Trainer
from composer.utils import dist, reproducibility
from torch import nn

from peers.peer import Peer
from peers.work import Drawing, Net, Step, Work, disturb


class _Model(ComposerModel):
    def __init__(self, trace: List[Step]) -> None:
        super().__init__()
        self.net = Net(trace)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch)

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        del batch
        return outputs

    def eval_forward(self, batch: torch.Tensor, outputs: Any = None) -> torch.Tensor:
        return self.net(batch) if outputs is None else outputs


class Composer(Peer):
    """``Trainer(seed=...)``, ``dist.get_sampler``, a checkpoint by ``save_checkpoint`` and
    ``load_path``."""

    name = "composer"
    title = "Composer"
    packages = ("mosaicml",)

    def train(self, work: Work) -> List[Step]:
        if "RANK" in os.environ:
            dist.initialize_dist("cpu")
        reproducibility.seed_all(work.seed)
        trace: List[Step] = []
        model = _Model(trace)
        data = Drawing(work.size)
        loader = torch.utils.data.DataLoader(
            data,
            batch_size=work.batch_size,
            sampler=dist.get_sampler(data, shuffle=work.shuffle, seed=work.seed),
            num_workers=work.workers,
            persistent_workers=work.persistent,
        )
        if work.disturb:
            disturb(loader)
        validation = (
            torch.utils.data.DataLoader(Drawing(8), num_workers=work.workers)
            if work.validate
            else None
        )
        trainer = Trainer(
            model=model,
            train_dataloader=loader,
            eval_dataloader=validation,
            max_duration=f"{work.stop_after}ba" if work.stop_after else f"{work.epochs}ep",
            optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
            seed=work.seed,
            device="cpu",
            load_path=str(work.folder / "state.pt") if work.resume else None,
            progress_bar=False,
            auto_log_hparams=False,
        )
        trainer.fit()
        if work.stop_after:
            trainer.save_checkpoint(str(work.folder / "state.pt"))
        trainer.close()
        return trace

    def seed(self, value: Any) -> Any:
        reproducibility.seed_all(value)

    def in_scope(self, seed: int, function: Callable[[], Any]) -> Any:
        if "RANK" in os.environ and not dist.is_initialized():
            dist.initialize_dist("cpu")
        with reproducibility.seed_context(seed):
            return function()

    def build(self, names: Sequence[Tuple[str, Any]]) -> Dict[Tuple[str, Any], List[float]]:
        reproducibility.seed_all(5)
        return {name: nn.Linear(4, 4).weight.flatten().tolist() for name in names}

    def equal_streams(self) -> Tuple[List[float], List[float]]:
        one, other = (
            list(dist.get_sampler(range(10), shuffle=True, seed=seed)) for seed in (1, 1 + 2**32)
        )
        return one, other

    def set_switches(self) -> Tuple[str, Optional[Callable[[], None]]]:
        reproducibility.configure_deterministic_mode()
        return "", None

    def rng_state(self) -> Any:
        return reproducibility.get_rng_state()

    def set_rng_state(self, state: Any) -> None:
        reproducibility.load_rng_state(state)

    def without_numpy(self, state: Any) -> Any:
        return [{name: entry for name, entry in one.items() if name != "numpy"} for one in state]

    def with_short_torch(self, state: Any) -> Any:
        return [{**one, "torch": one["torch"][:100]} for one in state]


PEER = Composer()
