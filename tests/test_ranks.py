"""Ranks: equal global steps for every world size, with real processes on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from augmented import Augmented
from hypothesis import given
from hypothesis import strategies as st

from seedregistry import SeedRegistry
from seedregistry.common import ranks as process_group
from seedregistry.data.shards import Shards
from seedregistry.errors import InvalidOptionError, ShardingError

HERE = Path(__file__).parent

WORKER = """
import os, pickle, sys
import torch
import torch.distributed as dist
from augmented import Augmented, mixup
from seedregistry import SeedRegistry
from seedregistry.common import ranks as process_group
from seedregistry.errors import ShardingError

dist.init_process_group(
    "gloo",
    init_method="file://" + sys.argv[2],
    rank=int(sys.argv[3]),
    world_size=int(sys.argv[4]),
)
rank, world = dist.get_rank(), dist.get_world_size()
found = {}
registry = SeedRegistry(42)
for name, options in OPTIONS.items():
    loader = registry.dataloader(Augmented(22), instance_id="training", shuffle=True, **options)
    try:
        found[name] = [[batch.numpy() for batch in loader] for _ in range(2)]
        mixed = registry.dataloader(
            Augmented(22), instance_id="training", shuffle=True, collate_fn=mixup, **options
        )
        found[name + ", mixed"] = [mixed.batch(0, 0).numpy()]
        found[name + ", length"] = (len(loader), len(loader.sampler), rank, world)
    except ShardingError as error:
        found[name] = str(error)
every = [None] * world
dist.all_gather_object(every, found)
if rank == 0:
    with open(sys.argv[1], "wb") as file:
        pickle.dump(every, file)
dist.barrier()
os._exit(0)  # torch 2.2 may hang in destroy_process_group on gloo
"""

OPTIONS = {
    "global": {"global_batch_size": 8, "shard": True},
    "global, dropped": {"global_batch_size": 8, "shard": True, "drop_last": True},
    "global, workers": {"global_batch_size": 8, "shard": True, "num_workers": 1},
    "per rank": {"batch_size": 3, "shard": True},
    "everything": {"batch_size": 3, "shard": False},
    "not said": {"batch_size": 3},
}


def launch(world, path) -> list:
    """Run the script on some ranks and return what each found."""
    import pickle

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    script = f"OPTIONS = {OPTIONS!r}\n{WORKER}"
    command = [sys.executable, "-c", script, str(path), f"{path}.store"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(world)], env=environment)
        for rank in range(world)
    ]
    try:
        assert [rank.wait(60) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {world: launch(world, folder / f"{world}.pickle") for world in (1, 2, 4)}


def union(ranks, name, epoch, step) -> list:
    return sorted(tuple(row) for rank in ranks for row in rank[name][epoch][step].tolist())


@pytest.mark.parametrize("name", ["global", "global, dropped", "global, workers"])
def test_global_steps_are_equal(found, name):
    """With a global batch size every step of all ranks together is the same samples, bit for
    bit, the last included."""
    steps = 2 if "dropped" in name else 3
    for world, ranks in found.items():
        assert all(len(rank[name][0]) == steps for rank in ranks)
        for epoch in range(2):
            for step in range(steps):
                got = union(ranks, name, epoch, step)
                assert got == union(found[1], name, epoch, step)
                assert len(got) == 8
                assert all(len(rank[name][epoch][step]) == 8 // world for rank in ranks)


def test_every_sample_is_seen_as_often_as_stated(found):
    """Padding repeats the epoch's first positions with draws of their own, and dropping leaves
    out the last."""
    loader = SeedRegistry(42).dataloader(Augmented(22), instance_id="training", shuffle=True)
    order = loader.indices(0).tolist()
    for ranks in found.values():
        rows = [row for step in range(3) for row in union(ranks, "global", 0, step)]
        assert sorted(int(row[0]) for row in rows) == sorted(order + order[:2])
        assert len({row[1] for row in rows}) == 24
        rows = [row for step in range(2) for row in union(ranks, "global, dropped", 0, step)]
        assert sorted(int(row[0]) for row in rows) == sorted(order[:16])


def test_the_batch_size_of_a_rank(found):
    """Without a global batch size, batch_size is per rank, and a last step is padded to a
    multiple of the ranks."""
    for world, ranks in found.items():
        steps, samples = ranks[0]["per rank, length"][:2]
        rest = -(-(22 % (3 * world)) // world)
        assert steps == 22 // (3 * world) + (rest > 0)
        for rank in ranks:
            sizes = [len(batch) for batch in rank["per rank"][0]]
            assert sizes == [3] * (22 // (3 * world)) + [rest] * (rest > 0)
            assert sum(sizes) == samples
        rows = [row for step in range(steps) for row in union(ranks, "per rank", 0, step)]
        assert {int(row[0]) for row in rows} == set(range(22))
        assert len(rows) == 22 + -22 % world


def test_ranks_share_no_draws(found):
    """No two ranks see the same draws of samples or of collate functions, and every epoch is
    another."""
    for ranks in found.values():
        draws = [
            row[1]
            for rank in ranks
            for epoch in rank["global"]
            for batch in epoch
            for row in batch.tolist()
        ]
        assert len(set(draws)) == len(draws)
        mixed = {rank["global, mixed"][0].tobytes() for rank in ranks}
        assert len(mixed) == len(ranks)


def test_forgetting_to_say_is_an_error(found):
    """Several ranks and no shard: an error that names both ways out; one rank, or shard=False,
    is fine."""
    assert [len(batch) for batch in found[1][0]["not said"][0]] == [3] * 7 + [1]
    for world in (2, 4):
        for rank in found[world]:
            assert f"There are {world} ranks" in rank["not said"]
            assert "shard=True" in rank["not said"]
            assert "shard=False" in rank["not said"]
            assert sum(len(batch) for batch in rank["everything"][0]) == 22


@given(
    samples=st.integers(0, 60),
    per_rank=st.integers(1, 5),
    world=st.integers(1, 5),
    tail=st.sampled_from(["keep", "pad", "drop"]),
)
def test_positions(samples, per_rank, world, tail):
    """Ranks share each step in equal blocks without overlap, and lengths add up."""
    ranks = [
        Shards(
            samples=samples,
            global_batch_size=per_rank * world,
            tail=tail,
            rank=rank,
            world_size=world,
        )
        for rank in range(world)
    ]
    steps = ranks[0].steps
    seen: list = []
    for step in range(steps):
        blocks = [rank.positions(step) for rank in ranks]
        assert len({stop - start for start, stop in blocks}) == 1
        positions = [p for start, stop in blocks for p in range(start, stop)]
        assert positions == list(
            range(step * per_rank * world, step * per_rank * world + len(positions))
        )
        seen += positions
    assert sum(rank.length for rank in ranks) == len(seen)
    full = samples - samples % (per_rank * world)
    expected = {
        "keep": samples + -samples % world,
        "pad": full + per_rank * world * (full < samples),
        "drop": full,
    }[tail]
    assert len(seen) == expected


def test_a_rank_by_hand():
    """shard=(rank, world size) needs no process group, and a state of a global batch is of no
    number of ranks."""
    loaders = [
        SeedRegistry(42).dataloader(
            Augmented(22),
            instance_id="training",
            shuffle=True,
            global_batch_size=8,
            shard=(rank, 2),
        )
        for rank in range(2)
    ]
    got = torch.cat([torch.cat(list(loader)) for loader in loaders])
    assert len(got) == 24
    assert loaders[0].batch_size == 4
    assert "world_size" not in loaders[0].state_dict()
    alone = SeedRegistry(42).dataloader(Augmented(22), instance_id="a", shard=(1, 2))
    assert alone.state_dict()["world_size"] == 2
    assert (loaders[1].sampler.rank, loaders[1].sampler.num_replicas) == (1, 2)
    state = loaders[0].state_dict()
    loaders[1].load_state_dict(state)  # a state is of all ranks


def test_the_ledger_does_not_depend_on_the_ranks():
    """With a global batch size the ledgers of all ranks and of every number of ranks have one
    digest."""
    digests = set()
    for shard in ((0, 1), (0, 2), (1, 2), (3, 4)):
        registry = SeedRegistry(42)
        list(
            registry.dataloader(
                range(22), instance_id="training", shuffle=True, global_batch_size=8, shard=shard
            )
        )
        digests.add(registry.ledger.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("shard", [1, "yes", (1,), (2, 2), (-1, 2), (0, 2.0), (True, 2)])
def test_bad_shards(shard):
    """Another form of shard is refused with the forms that there are."""
    with pytest.raises(InvalidOptionError, match="rank, world size"):
        SeedRegistry(42).dataloader(Augmented(), shard=shard)


def test_bad_global_batch_sizes():
    """A global batch size that is no int >= 1, stands beside batch_size, or cannot be divided is
    refused."""
    registry = SeedRegistry(42)
    for bad in (0, -1, 1.5, True, "8"):
        with pytest.raises(InvalidOptionError, match="global_batch_size"):
            registry.dataloader(Augmented(), global_batch_size=bad)
    with pytest.raises(InvalidOptionError, match="not two"):
        registry.dataloader(Augmented(), global_batch_size=8, batch_size=4)
    with pytest.raises(ShardingError, match="cannot be divided by 3"):
        registry.dataloader(Augmented(), global_batch_size=8, shard=(0, 3))


def test_what_torch_says():
    """Without a process group there is one rank."""
    assert (process_group.rank(), process_group.world_size()) == (0, 1)
