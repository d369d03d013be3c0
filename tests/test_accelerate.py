"""accelerate: a plain prepare keeps order and draws, and prepare of ours keeps resume too."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from augmented import Augmented, mixup

from seedregistry import SeedRegistry

pytest.importorskip("accelerate")

HERE = Path(__file__).parent

SCRIPT = """
import pickle, sys, warnings
warnings.simplefilter("ignore")
from inspect import signature
from torch.utils.data import DataLoader
from accelerate import Accelerator
from augmented import Augmented, mixup
from seedregistry import SeedRegistry
from seedregistry.errors import ShardingError
from seedregistry.integrations.accelerate import prepare

accelerator = Accelerator(cpu=True)

def make(**kwargs):
    options = {"batch_size": 4, "shuffle": True, **kwargs}
    return SeedRegistry(42).dataloader(Augmented(24), instance_id="training", **options)

def contents(batches):
    return [batch.numpy() for batch in batches]

found = {"rank": accelerator.process_index}
plain = accelerator.prepare(make(shard=False))
found["plain"] = [contents(plain) for _ in range(3)]
mixed = accelerator.prepare(make(shard=False, collate_fn=mixup, num_workers=1))
found["mixed"] = [contents(mixed) for _ in range(2)]
try:
    found["not said"] = contents(accelerator.prepare(make()))
except ShardingError as error:
    found["not said"] = str(error)

ours = prepare(accelerator, make(shard=False))
found["ours"] = [contents(ours) for _ in range(2)]
found["epoch"] = ours.epoch

stopped = prepare(accelerator, make())
got = []
for step, batch in stopped.steps(1):
    got.append(batch.numpy())
    if step == 1:
        state = stopped.state_dict()
        break
found["state"] = {name: state[name] for name in ("epoch", "batches_yielded", "world_size")}
fresh = prepare(accelerator, make(num_workers=1))
fresh.load_state_dict(state)
steps = list(fresh.steps(fresh.epoch))
found["resumed"] = got + [batch.numpy() for _, batch in steps]
found["steps"] = [step for step, _ in steps]
found["after"] = (fresh.epoch, fresh.state_dict()["batches_yielded"], len(fresh))

options = {
    "num_workers": 1,
    "prefetch_factor": 3,
    "timeout": 7,
    "pin_memory_device": "cuda",
    "in_order": False,
}
taken = signature(DataLoader).parameters
options = {name: value for name, value in options.items() if name in taken}
kept = prepare(accelerator, make(**options))
found["kept"] = options, {name: getattr(kept, name) for name in options}
with open(f"{sys.argv[1]}.{accelerator.process_index}", "wb") as file:
    pickle.dump(found, file)
accelerator.end_training()
"""


@pytest.fixture(scope="module", params=[1, 2])
def found(request, tmp_path_factory):
    """What each of the processes found."""
    world = request.param
    path = tmp_path_factory.mktemp("accelerate") / "found"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    if world == 1:
        environment = {
            name: value
            for name, value in environment.items()
            if "WORLD" not in name and "MASTER" not in name
        }
    ranks = []
    for rank in range(world):
        own = {**environment, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})}
        ranks.append(subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env=own))
    assert [rank.wait(100) for rank in ranks] == [0] * world
    return [pickle.loads(Path(f"{path}.{rank}").read_bytes()) for rank in range(world)]


def make(**kwargs):
    options = {"batch_size": 4, "shuffle": True, **kwargs}
    return SeedRegistry(42).dataloader(Augmented(24), instance_id="training", **options)


def contents(batches) -> list:
    return [
        batch.tobytes() if hasattr(batch, "tobytes") else batch.numpy().tobytes()
        for batch in batches
    ]


def test_a_plain_prepare_is_exact(found):
    """accelerator.prepare keeps the order and every draw; its processes take the batches in
    turn."""
    world = len(found)
    reference = make()
    mixed = make(collate_fn=mixup)
    for epoch in range(3):
        expected = contents(batch for _, batch in reference.steps(epoch))
        for rank, own in enumerate(found):
            assert contents(own["plain"][epoch]) == expected[rank::world]
            if epoch < 2:
                assert (
                    contents(own["mixed"][epoch])
                    == contents(b for _, b in mixed.steps(epoch))[rank::world]
                )


def test_several_processes_must_say(found):
    """With two processes a loader that was not told is refused under accelerate too."""
    for own in found:
        assert (
            ("There are 2 ranks" in own["not said"])
            if len(found) > 1
            else len(own["not said"]) == 6
        )


def test_our_prepare_divides_by_our_rule(found):
    """prepare of ours yields each process its part of every global step, and advances epochs."""
    world = len(found)
    for rank, own in enumerate(found):
        reference = make(shard=(rank, world))
        for epoch in range(2):
            assert contents(own["ours"][epoch]) == contents(
                batch for _, batch in reference.steps(epoch)
            )
        assert own["epoch"] == 2


def test_our_prepare_resumes(found):
    """A state taken in mid-epoch goes on in a new loader, with other workers, bit for bit."""
    world = len(found)
    for rank, own in enumerate(found):
        assert own["state"] == {"epoch": 1, "batches_yielded": 2, "world_size": world}
        expected = contents(batch for _, batch in make(shard=(rank, world)).steps(1))
        assert contents(own["resumed"]) == expected
        assert own["steps"] == list(range(2, len(expected)))
        assert own["after"] == (2, 0, len(expected))


def test_our_prepare_keeps_how_a_loader_fetches(found):
    """prepare of ours keeps every argument of DataLoader that says how a loader fetches."""
    for own in found:
        given, kept = own["kept"]
        assert kept == given
        assert {"num_workers", "prefetch_factor", "timeout"} <= given.keys()
