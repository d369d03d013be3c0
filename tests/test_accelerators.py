"""Accelerators through one path: late start, queued seeds, capture, and a stand-in for a device
that is not here."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from seedregistry import SeedRegistry, deterministic_context, rng
from seedregistry.errors import DeviceError, ScopeError, UndeclaredRandomnessWarning
from seedregistry.ledger import LateSeeded
from seedregistry.rng import accelerators, generators


def states(device) -> list:
    return [generator.get_state().tolist() for generator in device.default_generators]


def draws(device) -> list:
    return [torch.rand(2, generator=generator).tolist() for generator in device.default_generators]


def test_initialised_devices_are_set_and_restored(fake_device):
    """Every default generator of a running device is set in a scope and back after it, on an
    exception too."""
    fake_device.init()
    fake_device.manual_seed_all(5)
    before = states(fake_device)
    stream = SeedRegistry(42).stream("dropout", "training")
    with stream.scope(0, 1):
        first = draws(fake_device)
    assert states(fake_device) == before
    with pytest.raises(ValueError, match="body"), stream.scope(0, 1):
        assert draws(fake_device) == first
        raise ValueError("body")
    assert states(fake_device) == before


def test_a_device_that_starts_inside_draws_from_the_scope(fake_device):
    """If the body is the first to use a device its draws come from the scope; after it the seed
    queued before holds."""
    fake_device.manual_seed_all(123)
    stream = SeedRegistry(42).stream("dropout", "training")
    with stream.scope(7):
        fake_device.init()
        inside = draws(fake_device)
    expected = torch.rand(2, generator=stream.at(7).generator()).tolist()
    assert inside == [expected, expected]
    assert states(fake_device) == [torch.Generator().manual_seed(123).get_state().tolist()] * 2


def test_a_device_that_starts_inside_without_a_seed_gets_a_recorded_one(fake_device):
    """Without a queued seed the generators get one derived from the master seed after the scope,
    and the ledger has it."""
    registry = SeedRegistry(42)
    with registry.stream("dropout", "training").scope(7):
        fake_device.init()
        draws(fake_device)
    (record,) = registry.ledger.find(LateSeeded)
    assert record.kind == "cuda"
    assert (
        states(fake_device) == [torch.Generator().manual_seed(record.seed).get_state().tolist()] * 2
    )
    with_seed = SeedRegistry(42).ledger.digest
    assert registry.ledger.find(LateSeeded)[0].IS_CONTENT is False
    assert (
        with_seed != registry.ledger.digest
    )  # the derivation differs, the late seed is circumstance


def test_a_scope_whose_body_leaves_the_device_alone_keeps_the_queue(fake_device):
    """The seeds that wait for a device are as before after a scope, and those queued inside are
    gone."""
    fake_device.manual_seed_all(123)
    before = list(fake_device._lazy_seed_tracker.call_order)
    with SeedRegistry(1).stream("x").scope(0):
        fake_device.manual_seed_all(999)
        with SeedRegistry(2).stream("y").scope(0):
            pass
    assert fake_device._lazy_seed_tracker.call_order == before
    fake_device.init()
    assert states(fake_device) == [torch.Generator().manual_seed(123).get_state().tolist()] * 2


def test_generator_states_queued_before_are_replayed(fake_device):
    """A set_rng_state that waited for the device holds after a scope in which the device
    started."""
    saved = torch.Generator().manual_seed(77).get_state()

    def set_state() -> None:
        fake_device.default_generators[0].set_state(saved)

    set_state.__module__ = "torch.fake.random"
    fake_device._queued_calls.append((set_state, []))
    with SeedRegistry(1).stream("x").scope(0):
        fake_device.init()
        draws(fake_device)
    assert torch.equal(fake_device.default_generators[0].get_state(), saved)


def test_nested_scopes_around_a_late_start(fake_device):
    """A device that starts in an inner scope is, after it, as the outer scope sets it, and then
    as before both."""
    fake_device.manual_seed_all(9)
    registry = SeedRegistry(42)
    outer = registry.stream("outer", 0)
    with outer.scope(1):
        with registry.stream("inner", 0).scope(2):
            fake_device.init()
            draws(fake_device)
        assert draws(fake_device)[0] == torch.rand(2, generator=outer.at(1).generator()).tolist()
    assert states(fake_device) == [torch.Generator().manual_seed(9).get_state().tolist()] * 2


def test_the_documented_context_covers_devices(fake_device):
    """deterministic_context seeds and restores initialised devices as well."""
    fake_device.init()
    before = states(fake_device)
    with deterministic_context(7):
        assert (
            draws(fake_device)
            == [torch.rand(2, generator=torch.Generator().manual_seed(7)).tolist()] * 2
        )
    assert states(fake_device) == before


def test_graph_capture_is_a_clear_error(fake_device):
    """A scope inside CUDA graph capture is refused with the way out, and leaves nothing open."""
    fake_device.init()
    fake_device.capturing = True
    with pytest.raises(ScopeError, match="captured"), SeedRegistry(1).stream("x").scope(0):
        pass
    fake_device.capturing = False
    assert not rng.in_scope()


def test_what_a_factory_draws_on_a_device_is_recorded(fake_device):
    """The entry of a build names the device kind whose generator moved."""
    fake_device.init()
    from seedregistry.ledger import Built

    registry = SeedRegistry(42)

    def factory():
        torch.rand(1, generator=fake_device.default_generators[1])
        return torch.nn.Identity()

    registry.model(factory)
    (built,) = registry.ledger.find(Built)
    assert built.drew == ("cpu",)  # the stand-in's generators live on the CPU


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("meta", "no generator"),
        ("nonsense", "not a torch device"),
        (3.5, "not a torch device"),
        ("cuda:99", "not available"),
        ("mps", "not available"),
        ("xpu", "not available"),
        ("hpu", "not available"),
    ],
)
def test_devices_without_generators_are_refused(device, message):
    """An unknown or unavailable device, and meta, is a typed error that says what there is;
    nothing is handed out."""
    registry = SeedRegistry(1)
    with pytest.raises(DeviceError, match=message):
        registry.generator("noise", device=device)
    assert [type(record).__name__ for record in registry.ledger] == ["Run"]
    with pytest.raises(DeviceError, match=message):
        registry.stream("noise").at(3).generator(device)


def test_more_devices_than_there_are(fake_device):
    """An index past the last device is refused with the count."""
    with pytest.raises(DeviceError, match=r"2 device\(s\)"):
        generators.resolve_device("cuda:2")


def test_discovery_matches_the_build():
    """The kinds handled are those that this torch was built with."""
    kinds = {accelerator.kind for accelerator in accelerators.ACCELERATORS}
    assert ("cuda" in kinds) == (
        torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None
    )


def test_mps_of_an_old_torch(monkeypatch):
    """torch 2.2 has no torch.mps.device_count; whether MPS is there is asked in another way."""
    mps = accelerators.Accelerator("mps", type("module", (), {}))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(accelerators, "ACCELERATORS", (mps,))
    with SeedRegistry(1).stream("x").scope(0):
        torch.rand(1)
    assert (mps.is_initialized(), mps.device_count()) == (False, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (mps.is_initialized(), mps.device_count()) == (True, 1)


class StartsLate(torch.utils.data.Dataset):
    """A dataset whose first sample is the first to use the device."""

    def __init__(self, device) -> None:
        self.device = device

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        self.device.init()
        return torch.rand(2, generator=self.device.default_generators[0])


@pytest.mark.parametrize("scheme", ["sha256-31", "sha256-256"])
def test_a_device_that_starts_in_mid_batch(fake_device, scheme):
    """Samples after the one in which the device started draw from their own positions: the batch
    is the same when it is fetched again."""
    data = StartsLate(fake_device)
    loader = SeedRegistry(42, scheme=scheme).dataloader(data, instance_id="a", batch_size=4)
    first = loader.batch(0, 0)
    assert torch.equal(first, loader.batch(0, 0))
    assert len({tuple(row) for row in first.tolist()}) == 4


def test_a_seed_that_waited_for_one_of_two_devices(fake_device):
    """A device that starts in a scope, with a seed waiting for its first generator alone: that one
    has it after the scope, and the other a recorded one, never the scope's."""

    def seed_first():
        fake_device.default_generators[0].manual_seed(123)

    fake_device._lazy_seed_tracker.queue_seed(seed_first, [])
    registry = SeedRegistry(42)
    with registry.stream("dropout").scope(7):
        fake_device.init()
        draws(fake_device)
    (record,) = registry.ledger.find(LateSeeded)
    assert states(fake_device) == [
        torch.Generator().manual_seed(seed).get_state().tolist() for seed in (123, record.seed)
    ]


def test_a_child_that_cannot_use_the_device(fake_device, monkeypatch):
    """In a forked child, in which torch lets nobody use the device, a scope of the parent's is
    left, and a build of the parent's is read from the ledger."""
    from seedregistry.ledger import Built

    fake_device.init()
    registry = SeedRegistry(42)
    registry.model(torch.nn.Linear, 2, 2)
    before = torch.default_generator.get_state()
    scope = registry.stream("x").scope(0)
    scope.__enter__()
    torch.rand(3)
    fake_device._initialized = False

    class Gone:
        def __getattr__(self, name):
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    fake_device.default_generators = (Gone(), Gone())
    scope.__exit__()
    assert torch.equal(torch.default_generator.get_state(), before)
    assert registry.ledger.find(Built)[0].drew == ("torch",)


def test_leaving_while_a_graph_is_captured(fake_device):
    """A scope that is left inside a capture is a ScopeError before anything is put back; after the
    capture the next scope puts all of it back."""
    fake_device.init()
    before, cpu = states(fake_device), torch.default_generator.get_state()
    stream = SeedRegistry(1).stream("x")
    scope = stream.scope(0)
    with pytest.raises(ScopeError, match="entered or left while a CUDA graph"), scope:
        draws(fake_device)
        fake_device.capturing = True
    assert rng.in_scope()
    fake_device.capturing = False
    with stream.scope(1):
        pass
    assert states(fake_device) == before
    assert torch.equal(torch.default_generator.get_state(), cpu)


def test_a_generator_in_a_capture_is_refused_by_name(fake_device):
    """Making a generator of a position while a graph is captured says what is the matter."""
    fake_device.init()
    fake_device.capturing = True
    with pytest.raises(ScopeError, match="A generator on 'cuda' cannot be made while a CUDA graph"):
        SeedRegistry(1).stream("x").at(0).generator("cuda")


def test_compiled_code_with_generators_of_its_own(fake_device, monkeypatch):
    """On CUDA, once something was compiled while torch gives checkpointed graphs generators of
    their own, a scope says so, once; with the switch off it does not."""
    config = types.SimpleNamespace(graphsafe_rng_functionalization=True)
    monkeypatch.setitem(sys.modules, "torch._functorch.config", config)
    dynamo = types.SimpleNamespace(counters={"frames": {}})
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", dynamo)
    accelerators._warn_of_graph_generators.cache_clear()
    stream = SeedRegistry(1).stream("dropout")
    fake_device.init()
    with stream.scope(0):  # nothing was compiled
        pass
    dynamo.counters["frames"]["total"] = 1
    config.graphsafe_rng_functionalization = False
    with stream.scope(0):
        pass
    config.graphsafe_rng_functionalization = True
    way_out = pytest.warns(UndeclaredRandomnessWarning, match="functionalization = False")
    with way_out, stream.scope(0):
        pass
    with stream.scope(0):  # said already
        pass
    accelerators._warn_of_graph_generators.cache_clear()
