"""What only a real GPU can show. Each test is skipped, visibly, where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from seedregistry import SeedRegistry, deterministic_context, rng
from seedregistry.errors import DeviceError, ScopeError, UndeclaredRandomnessError
from seedregistry.ledger import Built

pytestmark = [pytest.mark.cuda, pytest.mark.moves_global_state]

LATE_START = """
import torch
from seedregistry import SeedRegistry
from seedregistry.ledger import LateSeeded
assert not torch.cuda.is_initialized()
registry = SeedRegistry(42)
stream = registry.stream("dropout", "training")
if {queued}:
    torch.cuda.manual_seed_all(123)
with stream.scope(1, 2):
    inside = torch.rand(4, device="cuda")
assert torch.cuda.is_initialized()
at = stream.at(1, 2).generator("cuda")
assert torch.equal(inside, torch.rand(4, device="cuda", generator=at))
after = torch.rand(4, device="cuda")
late = registry.ledger.find(LateSeeded)
seed = 123 if {queued} else late[0].seed
assert len(late) == (0 if {queued} else 1)
plain = torch.Generator("cuda").manual_seed(seed)
assert torch.equal(after, torch.rand(4, device="cuda", generator=plain))
print("ok")
"""


@pytest.mark.parametrize("queued", [True, False])
def test_cuda_that_starts_inside_a_scope(queued):
    """CUDA first used inside a scope draws from it; after it the queued seed holds, or a
    recorded one."""
    script = LATE_START.format(queued=queued)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "ok", run.stderr


STATE_FIRST = """
import torch
from seedregistry import SeedRegistry
state = torch.zeros(16, dtype=torch.uint8)
state[0] = 77
torch.cuda.set_rng_state(state, "cuda:0")
with SeedRegistry(42).stream("x").scope(0):
    torch.rand(4, device="cuda")
assert torch.equal(torch.cuda.get_rng_state(), state)
print("ok")
"""


def test_a_state_set_before_cuda_starts_holds_after_a_scope():
    """A set_rng_state that waited for CUDA is in force after a scope in which CUDA started."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STATE_FIRST],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "ok", run.stderr


@pytest.mark.parametrize("scheme", ["sha256-31", "sha256-256"])
def test_dropout_on_the_gpu_is_a_function_of_its_position(scheme):
    """Dropout in scope(epoch, step) repeats on the GPU, differs between steps, and leaves the
    default generators alone."""
    stream = SeedRegistry(42, scheme=scheme).stream("dropout", "training")
    x = torch.ones(1000, device="cuda")
    masks = []
    before = rng.fingerprint()
    for epoch, step in ((0, 0), (0, 1), (0, 0)):
        with stream.scope(epoch, step):
            masks.append(nn.functional.dropout(x))
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert rng.fingerprint() == before


def test_models_on_the_gpu():
    """A model made on the GPU equals manual_seed with the bare constructor, and its digest is
    that of its CPU copy."""
    from seedregistry.components import model_digest

    registry = SeedRegistry(42)
    model = registry.model(nn.Linear, 64, 64, device="cuda", instance_id="training")
    torch.manual_seed(registry.seed("model", "training"))
    assert torch.equal(model.weight, nn.Linear(64, 64, device="cuda").weight)
    (built,) = registry.ledger.find(Built)
    assert built.drew == ("cuda",)
    assert dict(built.description)["digest"] == model_digest(model) == model_digest(model.cpu())


def test_the_documented_context_on_the_gpu():
    """deterministic_context seeds CUDA with its integer and restores it."""
    torch.cuda.init()
    before = rng.fingerprint()
    with deterministic_context(7):
        inside = torch.rand(3, device="cuda")
    assert torch.equal(
        inside, torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(7))
    )
    assert rng.fingerprint() == before


def test_the_audit_names_the_gpu():
    """A draw on the GPU outside every stream is caught with its device, in the backward pass's
    recomputation too."""
    x = torch.ones(10, device="cuda")
    with pytest.raises(UndeclaredRandomnessError) as caught, SeedRegistry(1).audit():
        nn.functional.dropout(x)
    assert caught.value.device == "cuda:0"
    assert "test_cuda.py" in caught.value.line
    registry = SeedRegistry(1)
    with registry.audit() as audit, registry.stream("dropout", 0).scope(0):
        nn.functional.dropout(x)
    assert audit.undeclared == 0


def test_capture_is_refused():
    """A scope inside CUDA graph capture is a ScopeError; a registered generator of a position
    can be captured."""
    stream = SeedRegistry(42).stream("dropout", "training")
    x = torch.zeros(8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    generator = stream.at(0).generator("cuda")
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        with pytest.raises(ScopeError, match="captured"), stream.scope(0):
            pass
        x.uniform_(generator=generator)
    graph.replay()
    torch.cuda.synchronize()
    assert not rng.in_scope()
    expected = torch.zeros(8, device="cuda").uniform_(generator=stream.at(0).generator("cuda"))
    assert torch.equal(x, expected)


def test_checkpointed_modules_draw_from_positions():
    """In a recomputed module, a generator made anew from its position gives the gradients of the
    module not recomputed."""
    from torch.utils.checkpoint import checkpoint

    stream = SeedRegistry(42).stream("noise", "training")
    weight = torch.ones(16, device="cuda", requires_grad=True)

    def block(w: torch.Tensor) -> torch.Tensor:
        return (
            (w * torch.rand(16, device="cuda", generator=stream.at(0, 0).generator("cuda")))
            .pow(2)
            .sum()
        )

    block(weight).backward()
    plain = weight.grad.clone()
    weight.grad = None
    checkpoint(block, weight, use_reentrant=False).backward()
    assert torch.equal(weight.grad, plain)


def test_states_round_trip():
    """Default and handed-out CUDA generators go on after loading as they did after saving."""
    torch.cuda.init()
    registry = SeedRegistry(42)
    own = registry.generator("noise", "gpu", device="cuda")
    state = registry.state_dict()
    expected = (
        torch.rand(3, device="cuda").tolist(),
        torch.rand(3, device="cuda", generator=own).tolist(),
    )
    registry.load_state_dict(state)
    assert (
        torch.rand(3, device="cuda").tolist(),
        torch.rand(3, device="cuda", generator=own).tolist(),
    ) == expected


def test_a_device_that_is_not_there():
    """An index past the last GPU is a typed error."""
    with pytest.raises(DeviceError, match="not available"):
        SeedRegistry(1).generator("noise", device=f"cuda:{torch.cuda.device_count()}")


def test_strict_mode_on_the_gpu():
    """A small training step repeats bit for bit on the GPU under strict mode."""

    def train() -> list:
        registry = SeedRegistry(42)
        model = registry.model(
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 10)
            ).cuda(),
            instance_id="training",
        )
        optimizer = registry.optimizer(
            torch.optim.SGD, model.parameters(), instance_id="training", lr=0.1, momentum=0.9
        )
        data = torch.rand(
            64, 3, 8, 8, device="cuda", generator=registry.generator("data", "x", device="cuda")
        )
        dropout = registry.stream("dropout", "training")
        for step in range(5):
            with dropout.scope(0, step):
                loss = nn.functional.cross_entropy(
                    model(data), torch.arange(64, device="cuda") % 10
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return [parameter.tolist() for parameter in model.parameters()]

    with SeedRegistry(1).set_global_state(deterministic="strict"):
        assert train() == train()


@pytest.fixture
def default_cuda():
    """CUDA is torch's default device for a test."""
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_under_a_default_device(default_cuda, num_workers):
    """With CUDA as the default device a loader yields the batches that it yields without it, also
    by torch's samplers, which draw on the default device."""
    samplers = {
        "shuffle": {"shuffle": True},
        "weighted": {"sampler": torch.utils.data.WeightedRandomSampler([1.0] * 16, 16)},
        "replacement": {"sampler": torch.utils.data.RandomSampler(range(16), replacement=True)},
    }

    # Workers are forked, in which CUDA cannot be used: what they put together is there already.
    data = torch.utils.data.TensorDataset(torch.arange(16, device="cpu"))

    def make(name):
        return SeedRegistry(42).dataloader(
            data, instance_id=name, batch_size=4, num_workers=num_workers, **samplers[name]
        )

    got = {name: [batch.tolist() for (batch,) in make(name)] for name in samplers}
    torch.set_default_device("cpu")
    assert got == {name: [batch.tolist() for (batch,) in make(name)] for name in samplers}
