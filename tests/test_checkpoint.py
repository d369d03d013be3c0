"""Generator states: plain data that round-trips, checked as a whole, loaded all or not at all."""

from __future__ import annotations

import copy
import gc
import io
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from seedregistry import SeedRegistry, rng
from seedregistry.errors import RngStateError, ScopeError
from seedregistry.ledger import StateLoaded, StateSaved
from seedregistry.rng import accelerators

pytestmark = pytest.mark.moves_global_state


def make() -> tuple:
    registry = SeedRegistry(42)
    return (
        registry,
        registry.generator("noise", "train"),
        registry.numpy("noise", 7),
        registry.python("noise", None),
    )


def draw(held: tuple) -> tuple:
    _, from_torch, from_numpy, from_python = held
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.randn(),
        np.random.rand(),
        torch.rand(2).tolist(),
        torch.randn(1).item(),
        torch.rand(2, generator=from_torch).tolist(),
        from_numpy.random(),
        from_numpy.integers(0, 2**31, dtype=np.int32).item(),
        from_python.random(),
        from_python.gauss(0, 1),
    )


def through_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_draws_repeat_after_loading():
    """What is drawn after saving is drawn again after loading, cached normals and half-used
    words included."""
    held = make()
    draw(held)
    state = through_file(held[0].state_dict())
    expected = [draw(held) for _ in range(2)]
    held[0].load_state_dict(state)
    assert [draw(held) for _ in range(2)] == expected
    held[0].load_state_dict(state)
    assert draw(held) == expected[0]
    assert len(held[0].ledger.find(StateSaved)) == 1
    assert len(held[0].ledger.find(StateLoaded)) == 2


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_checkpoint import draw, make
held = make()
held[0].load_state_dict(torch.load({path!r}, weights_only=True))
print(draw(held))
"""


def test_draws_repeat_in_another_process(tmp_path):
    """A new process that hands out the same generators goes on where the first one saved."""
    held = make()
    draw(held)
    path = str(tmp_path / "state.pt")
    torch.save(held[0].state_dict(), path)
    expected = draw(held)
    script = SCRIPT.format(tests=os.path.dirname(__file__), path=path)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(expected)


def test_the_state_is_plain_data():
    """The state is made of dicts with string keys, strings, ints and uint8 tensors alone."""

    def check(value) -> None:
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, torch.Tensor):
            assert value.dtype == torch.uint8
        else:
            assert type(value) in (str, int)

    check(make()[0].state_dict())


def test_generators_that_nobody_holds_are_left_out():
    """A generator that was handed out and dropped is not in the state, and its number is not
    given away."""
    registry = SeedRegistry(42)
    registry.generator("noise", "a")
    kept = registry.generator("noise", "a")
    gc.collect()
    names = [name for name in registry.state_dict()["generators"] if name.startswith("handed")]
    assert len(names) == 1
    assert names[0].endswith("|cpu|1")
    assert kept is not None


def damage(state: dict, name: str, field: str, value) -> dict:
    damaged = copy.deepcopy(state)
    damaged["generators"][name][field] = value
    return damaged


def test_every_kind_of_damage_is_named_and_changes_nothing():
    """A missing, foreign or corrupt entry is an error that names it, and no generator has moved."""
    held = make()
    registry = held[0]
    state = registry.state_dict()
    handed = next(name for name in state["generators"] if "noise" in name and "numpy" in name)
    draw(held)
    flipped = state["generators"]["torch:cpu"]["state"].clone()
    flipped[100] ^= 1
    cases = {
        "torch:cpu": [
            ("state", flipped),
            ("state", torch.zeros(3, dtype=torch.uint8)),
            ("state", "x"),
            ("device", "cuda"),
            ("kind", "python"),
        ],
        "python": [
            ("position", 9999),
            ("words", torch.zeros(4)),
            ("version", 2),
            ("gauss", "zebra"),
            ("sha256", "0" * 64),
        ],
        "numpy": [
            ("position", -1),
            ("has_gauss", "x"),
            ("words", torch.zeros(2496, dtype=torch.uint8)),
        ],
        handed: [("bit_generator", "Philox"), ("state", "-5"), ("extra", 1)],
    }
    before = rng.fingerprint()
    own = held[2].bit_generator.state
    for name, changes in cases.items():
        for field, value in changes:
            with pytest.raises(RngStateError, match="Nothing was changed") as caught:
                registry.load_state_dict(damage(state, name, field, value))
            assert name in caught.value.entries, (name, field)
            assert rng.fingerprint() == before
            assert held[2].bit_generator.state == own
    for name in state["generators"]:
        broken = copy.deepcopy(state)
        del broken["generators"][name]
        with pytest.raises(RngStateError, match="no entry for") as caught:
            registry.load_state_dict(broken)
        assert caught.value.entries == (name,)
        broken = copy.deepcopy(state)
        broken["generators"][name] = 3
        with pytest.raises(RngStateError, match="not a dict"):
            registry.load_state_dict(broken)
    broken = copy.deepcopy(state)
    broken["generators"]["torch:cuda:3"] = broken["generators"]["torch:cpu"]
    with pytest.raises(RngStateError, match="nothing here goes by torch:cuda:3"):
        registry.load_state_dict(broken)
    assert rng.fingerprint() == before


def resealed(state: dict, name: str, field: str, value) -> dict:
    """Damage with a digest that fits: the checks of the values themselves must find it."""
    from seedregistry.rng import checkpoint

    damaged = damage(state, name, field, value)
    entry = damaged["generators"][name]
    entry["sha256"] = checkpoint._digest(entry)
    return damaged


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("python", "position", 625),
        ("python", "version", 9),
        ("python", "gauss", "x"),
        ("python", "position", "a"),
        ("numpy", "position", 700),
        ("numpy", "words", torch.zeros(5, dtype=torch.uint8)),
        ("numpy", "gauss", "y"),
        ("torch:cpu", "state", torch.zeros(5056, dtype=torch.uint8)),
        ("torch:cpu", "device", "mps"),
    ],
)
def test_values_are_checked_beside_the_digest(name, field, value):
    """An entry whose digest fits and whose value does not is refused too."""
    registry = SeedRegistry(1)
    state = registry.state_dict()
    before = rng.fingerprint()
    with pytest.raises(RngStateError) as caught:
        registry.load_state_dict(resealed(state, name, field, value))
    assert name in caught.value.entries
    assert rng.fingerprint() == before


def test_a_state_of_another_registry_is_refused():
    """Another master seed, scheme or format is refused with both values."""
    registry = SeedRegistry(42)
    state = registry.state_dict()
    with pytest.raises(RngStateError, match=r"master_seed is '42' and '43' was expected"):
        SeedRegistry(43).load_state_dict(state)
    with pytest.raises(RngStateError, match=r"sha256-31.*sha256-256"):
        SeedRegistry(42, scheme="sha256-256").load_state_dict(state)
    with pytest.raises(RngStateError, match="format"):
        registry.load_state_dict({**state, "format": "seedregistry.registry/9"})
    for bad in (
        None,
        [],
        "x",
        {**state, "generators": None},
        {k: v for k, v in state.items() if k != "generators"},
        {**state, "zzz": 1},
    ):
        with pytest.raises(RngStateError):
            registry.load_state_dict(bad)


def test_not_inside_a_scope():
    """Inside a scope the default generators are the scope's: neither saving nor loading."""
    registry = SeedRegistry(42)
    state = registry.state_dict()
    with registry.stream("x").scope(0):
        with pytest.raises(ScopeError):
            registry.state_dict()
        with pytest.raises(ScopeError):
            registry.load_state_dict(state)


def test_another_global_bit_generator_cannot_be_saved():
    """A global Philox is an error that names NumPy, not a state that could not be loaded."""
    original = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.Philox(1))
    try:
        with pytest.raises(RngStateError, match="Philox"):
            SeedRegistry(1).state_dict()
    finally:
        np.random.set_bit_generator(original)


def test_a_failure_while_applying_puts_everything_back(monkeypatch):
    """If one generator refuses after others were set, all are put back."""
    held = make()
    state = held[0].state_dict()
    draw(held)
    before = rng.fingerprint()
    real, calls = np.random.set_state, []

    def fail_once(value):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("refused")
        real(value)

    monkeypatch.setattr(np.random, "set_state", fail_once)
    with pytest.raises(RuntimeError, match="refused"):
        held[0].load_state_dict(state)
    assert rng.fingerprint() == before


def test_running_accelerators_are_in_it(fake_device):
    """The default generators of a running device are saved and loaded; a device that went away
    is an error."""
    fake_device.init()
    registry = SeedRegistry(42)
    state = registry.state_dict()
    assert {"torch:cuda:0", "torch:cuda:1"} <= set(state["generators"])
    expected = [torch.rand(1, generator=g).item() for g in fake_device.default_generators]
    registry.load_state_dict(through_file(state))
    assert [torch.rand(1, generator=g).item() for g in fake_device.default_generators] == expected
    fake_device.default_generators = fake_device.default_generators[:1]
    with pytest.raises(RngStateError, match="torch:cuda:1"):
        registry.load_state_dict(state)


def test_a_device_that_has_not_started_is_started_for_its_entry(fake_device):
    """Loading a state with entries of an available device starts it and sets its generators."""
    fake_device.init()
    registry = SeedRegistry(42)
    state = registry.state_dict()
    expected = [g.get_state().tolist() for g in fake_device.default_generators]
    fake_device._initialized = False
    fake_device.default_generators = ()
    fake_device.manual_seed_all(5)
    registry.load_state_dict(state)
    assert [g.get_state().tolist() for g in fake_device.default_generators] == expected


GOLDEN = (
    0.2550690257394217,
    -1.390283264191243,
    -0.056266827226329474,
    0.4353223926182769,
    [0.7718658447265625, 0.7436993718147278],
    1.6762014627456665,
    [0.6886815428733826, 0.8310161828994751],
    0.41388205957727087,
    693871191,
    0.34435214670794456,
    1.0141247519178391,
)


def test_a_state_of_the_first_format_loads_for_ever(monkeypatch):
    """The golden file of format seedregistry.registry/1, written with torch 2.2 on Python 3.8,
    loads and goes on as it did."""
    monkeypatch.setattr(accelerators, "ACCELERATORS", ())  # it was written without any
    held = make()
    path = os.path.join(os.path.dirname(__file__), "data", "state-registry-1.pt")
    held[0].load_state_dict(torch.load(path, weights_only=True))
    assert draw(held) == GOLDEN
