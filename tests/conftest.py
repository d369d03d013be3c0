"""Fixtures of the whole suite: no test may change the state of the process without saying so."""

from __future__ import annotations

import os

import hypothesis
import pytest
import rich.progress  # noqa: F401 - draws from python's generator when it is imported: here, before any test looks at it
import torch

from seedregistry import determinism, rng
from seedregistry.rng import accelerators

pytest_plugins = ["seedregistry.testing"]

hypothesis.settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "moves_global_state: the test changes default generators or switches, and says so",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_cuda = pytest.mark.skip(reason="needs a CUDA device; none here")
    skip_slow = pytest.mark.skip(reason="takes minutes; run with -m slow")
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_cuda)
        if "slow" in item.keywords and "slow" not in config.getoption("-m"):
            item.add_marker(skip_slow)


@pytest.fixture(autouse=True)
def _process_state_is_untouched(request: pytest.FixtureRequest):
    """Fail a test that changes a default generator or a determinism switch without the marker;
    put everything back."""
    before = rng.fingerprint()
    captured = rng.Captured()
    switches = {switch.name: switch.get() for switch in determinism._SWITCHES}
    default_threads = torch.get_num_threads()
    yield
    after = rng.fingerprint()
    after_switches = {switch.name: switch.get() for switch in determinism._SWITCHES}
    captured.restore()
    for switch in determinism._SWITCHES:
        switch.set(switches[switch.name])
    torch.set_num_threads(default_threads)
    assert not rng.in_scope(), "a scope was left open"
    if "moves_global_state" in request.keywords:
        return
    assert {name for name, value in before.items() if after[name] != value} == set(), (
        "generators moved"
    )
    assert after_switches == switches, "switches changed"


class FakeDevice:
    """A stand-in for ``torch.cuda``: starts late, keeps its seeds in torch's own queue, has CPU
    generators behind it."""

    def __init__(self, count: int = 2) -> None:
        self.__name__ = "torch.fake"
        self._lazy_seed_tracker = (
            torch._utils._LazySeedTracker() if hasattr(torch._utils, "_LazySeedTracker") else None
        )
        if self._lazy_seed_tracker is None:
            self._lazy_seed_tracker = torch.cuda._LazySeedTracker()
        self._queued_calls = [(lambda: None, [])]
        self.default_generators = ()
        self._count = count
        self._initialized = False
        self.capturing = False

    def device_count(self) -> int:
        return self._count

    def is_initialized(self) -> bool:
        return self._initialized

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def init(self) -> None:
        if self._initialized:
            return
        self.default_generators = tuple(torch.Generator() for _ in range(self._count))
        calls = self._queued_calls + [call for call in self._lazy_seed_tracker.call_order if call]
        for call, _ in calls:
            call()
        self._initialized = True

    def manual_seed_all(self, seed: int) -> None:
        def seed_all() -> None:
            for generator in self.default_generators:
                generator.manual_seed(seed)

        if self._initialized:
            seed_all()
        else:
            self._lazy_seed_tracker.queue_seed_all(seed_all, [])


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """An accelerator that the library takes for a real one."""
    device = FakeDevice()
    fake = accelerators.Accelerator("cuda", device)
    monkeypatch.setattr(accelerators, "ACCELERATORS", (fake,))
    return device
