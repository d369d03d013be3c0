"""Lightning: it drives the loader as it is, on one device and with two ranks, and resumes it in
mid-epoch."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from augmented import Augmented

from seedregistry import SeedRegistry

pytest.importorskip("lightning")

HERE = Path(__file__).parent

SCRIPT = """
import os, pickle, sys, warnings, logging
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import lightning
import torch
from augmented import Augmented
from seedregistry import SeedRegistry

class Module(lightning.LightningModule):
    def __init__(self, stop=None, path=None):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.seen = []
        self.stop, self.path = stop, path

    def training_step(self, batch, step):
        self.seen.append((self.current_epoch, step, batch.numpy().copy()))
        if len(self.seen) == self.stop:
            self.trainer.should_stop = True
        return self.layer(batch.float() / 24).pow(2).mean()

    def on_train_batch_end(self, outputs, batch, step):
        if len(self.seen) == self.stop:
            self.trainer.save_checkpoint(self.path)

    def validation_step(self, batch, step):
        return self.layer(batch.float()).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

def loaders(**kwargs):
    registry = SeedRegistry(42)
    shard = True if WORLD > 1 else None
    train = registry.dataloader(
        Augmented(24), instance_id="training", batch_size=4, shuffle=True, shard=shard, **kwargs
    )
    return train, registry.dataloader(
        Augmented(8), instance_id="validation", batch_size=4, shard=shard
    )

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

def trainer(**kwargs):
    several = {"strategy": "ddp", "devices": WORLD} if WORLD > 1 else {"devices": 1}
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=sys.argv[1],
        **{"max_epochs": 3, **QUIET, **several, **kwargs},
    )

found = {}
for workers in (0, 1):
    module = Module()
    trainer().fit(module, *loaders(num_workers=workers))
    found[f"seen, {workers}"] = module.seen
if WORLD == 1:
    path = os.path.join(sys.argv[1], "stopped.ckpt")
    module = Module(stop=8, path=path)
    trainer(max_steps=8).fit(module, *loaders())
    found["before"] = module.seen
    module = Module()
    trainer().fit(module, *loaders(num_workers=1), ckpt_path=path)
    found["after"] = module.seen
    from lightning.pytorch.callbacks import ModelCheckpoint
    for name, options in (("default", {}), ("last step", {"every_n_train_steps": 6})):
        folder = os.path.join(sys.argv[1], name)
        callback = ModelCheckpoint(folder, "{step}", save_top_k=-1, **options)
        trainer(callbacks=[callback], enable_checkpointing=True).fit(Module(), *loaders())
        for file in os.listdir(folder):
            module = Module()
            trainer().fit(
                module, *loaders(num_workers=1), ckpt_path=os.path.join(folder, file)
            )
            found["resumed", name, int(file.partition("=")[2][:-5])] = module.seen
    predicted = lightning.Trainer(accelerator="cpu", **QUIET)
    Module.predict_step = lambda self, batch, step: batch
    found["predicted"] = [batch.numpy() for batch in predicted.predict(module, loaders()[1])]
rank = int(os.environ.get("LOCAL_RANK", 0))
with open(os.path.join(sys.argv[1], f"found.{rank}"), "wb") as file:
    pickle.dump(found, file)
"""


@pytest.fixture(scope="module", params=[1, 2])
def found(request, tmp_path_factory):
    """What each of the ranks saw."""
    world = request.param
    folder = tmp_path_factory.mktemp("lightning")
    script = folder / "script.py"
    script.write_text(f"WORLD = {world}\n{SCRIPT}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr
    return [pickle.loads((folder / f"found.{rank}").read_bytes()) for rank in range(world)]


def expected(rank, world) -> list:
    registry = SeedRegistry(42)
    shard = (rank, world) if world > 1 else None
    loader = registry.dataloader(
        Augmented(24), instance_id="training", batch_size=4, shuffle=True, shard=shard
    )
    return [
        (epoch, step, batch.numpy().tobytes())
        for epoch in range(3)
        for step, batch in loader.steps(epoch)
    ]


def contents(seen) -> list:
    return [(epoch, step, batch.tobytes()) for epoch, step, batch in seen]


def test_it_drives_the_loader_as_it_is(found):
    """Every rank sees its part of every epoch, bit for bit, in order, with and without workers;
    validation changes nothing."""
    for rank, own in enumerate(found):
        assert contents(own["seen, 0"]) == contents(own["seen, 1"]) == expected(rank, len(found))


def test_every_sample_comes_once(found):
    """Over the ranks each epoch has every sample once."""
    for epoch in range(3):
        seen = [
            row[0]
            for own in found
            for e, _, batch in own["seen, 0"]
            if e == epoch
            for row in batch.tolist()
        ]
        assert sorted(seen) == list(range(24))


def test_it_resumes_in_mid_epoch(found):
    """A checkpoint of Lightning's, taken in mid-epoch, goes on with the next batch, bit for bit."""
    if len(found) > 1:
        assert (
            "after" not in found[0]
        )  # one device only: Lightning saves the state of rank 0's loader alone
        return
    both = contents(found[0]["before"]) + contents(found[0]["after"])
    assert len(found[0]["before"]) == 8
    assert both == expected(0, 1)


@pytest.mark.parametrize("when", ["default", "last step"])
def test_it_resumes_at_the_end_of_an_epoch(found, when):
    """From each checkpoint that is made when an epoch ends, as Lightning's default is, or on its
    last batch, the training goes on with the next epoch, bit for bit."""
    if len(found) > 1:
        assert not any(isinstance(key, tuple) for key in found[0])  # one device only, as above
        return
    resumed = {key[2]: seen for key, seen in found[0].items() if key[:2] == ("resumed", when)}
    assert set(resumed) == {6, 12, 18}
    for step, seen in resumed.items():
        assert contents(seen) == expected(0, 1)[step:]


def test_predicting_goes_through_every_sample(found):
    """Lightning makes the loader again for predicting; it yields the samples of the dataset, in
    order."""
    if "predicted" in found[0]:
        assert [int(row[0]) for batch in found[0]["predicted"] for row in batch.tolist()] == list(
            range(8)
        )
