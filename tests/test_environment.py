"""The environment record: named facts from an allow-list, read without touching what is read."""

from __future__ import annotations

import getpass
import json
import os
import pickle
import platform
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

import seedregistry
from seedregistry import determinism, rng
from seedregistry.common import environment

ROOT = Path(seedregistry.__file__).parents[1]
HAS_NEW_PRECISION = hasattr(torch.backends, "fp32_precision")


def python(code: str, **env: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command,
        env={**os.environ, **env},
        cwd=str(ROOT),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_versions_and_machine():
    """Versions, system and thread counts are those of this process."""
    facts = environment.snapshot().to_dict()
    assert facts["python"] == platform.python_version()
    assert facts["python.implementation"] == platform.python_implementation()
    assert facts["torch"] == str(torch.__version__)
    assert facts["torch.cuda"] == torch.version.cuda
    assert facts["numpy"] == np.__version__
    assert (facts["system"], facts["machine"]) == (platform.system(), platform.machine())
    assert facts["torch.num_threads"] == torch.get_num_threads()
    assert facts["torch.num_interop_threads"] == torch.get_num_interop_threads()
    assert facts["python.hash_randomization"] == bool(sys.flags.hash_randomization)


def test_settings_are_read_now(monkeypatch):
    """A snapshot shows the switches as they stand at its call, not as they stood at import."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = environment.snapshot().to_dict()
    with determinism.apply(
        "warn", fill_uninitialized_memory=not before["fill_uninitialized_memory"]
    ):
        during = environment.snapshot().to_dict()
    changed = {name for name in during if before.get(name) != during[name]}
    assert {
        "deterministic_algorithms",
        "deterministic_algorithms.warn_only",
        "fill_uninitialized_memory",
        "cudnn.deterministic",
        "env.CUBLAS_WORKSPACE_CONFIG",
    } <= changed
    after = environment.snapshot().to_dict()
    assert {name for name in after if before[name] != after[name]} <= {
        "inductor.deterministic",
        "inductor.fallback_random",
    }


def test_threads_are_counted_now():
    """After a change of the number of threads the next snapshot has the new number."""
    torch.set_num_threads(1)
    assert environment.snapshot().to_dict()["torch.num_threads"] == 1
    torch.set_num_threads(2)
    assert environment.snapshot().to_dict()["torch.num_threads"] == 2


@pytest.mark.parametrize(
    ("fact", "change"),
    [
        ("sdp.flash", lambda: torch.backends.cuda.enable_flash_sdp(enabled=False)),
        ("sdp.mem_efficient", lambda: torch.backends.cuda.enable_mem_efficient_sdp(enabled=False)),
        ("sdp.math", lambda: torch.backends.cuda.enable_math_sdp(enabled=False)),
    ],
)
def test_attention_backends(fact, change):
    """Each attention backend that is turned off is seen as off."""
    assert environment.snapshot().to_dict()[fact] is True
    try:
        change()
        assert environment.snapshot().to_dict()[fact] is False
    finally:
        torch.backends.cuda.enable_flash_sdp(enabled=True)
        torch.backends.cuda.enable_mem_efficient_sdp(enabled=True)
        torch.backends.cuda.enable_math_sdp(enabled=True)


def test_reading_changes_nothing():
    """A snapshot moves no generator, sets no switch, and equals the next one."""
    generators, switches = rng.fingerprint(), {s.name: s.get() for s in determinism._SWITCHES}
    first = environment.snapshot()
    assert rng.fingerprint() == generators
    assert {s.name: s.get() for s in determinism._SWITCHES} == switches
    assert environment.snapshot() == first


def test_a_fresh_process_stays_as_it_was():
    """In a fresh process, warnings being errors, a snapshot initialises no CUDA and imports
    nothing of torch."""
    code = (
        "import sys, torch; from seedregistry.common import environment\nbefore = {m for m in "
        "sys.modules if "
        "m.startswith('torch')}\nenvironment.snapshot()\nprint(torch.cuda.is_initialized(), "
        "sorted({m for m in sys.modules if m.startswith('torch')} - before))"
    )
    assert python(code).split(maxsplit=1) == ["False", "[]\n"]


def test_no_call_that_starts_cuda(monkeypatch):
    """While CUDA has not started no call is made that would start it; models and their number
    are "not initialised"."""
    called = []
    for name in (
        "_lazy_init",
        "device_count",
        "get_device_name",
        "get_device_capability",
        "get_device_properties",
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: called.append(name))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    snapshot = environment.snapshot()
    assert called == []
    assert (
        snapshot.to_dict()["torch.gpus"]
        == snapshot.to_dict()["torch.gpu_count"]
        == "not initialised"
    )


def test_gpus(monkeypatch):
    """Once CUDA runs the models are there with compute capability, equal neighbours counted, in
    full for many GPUs."""
    names = ["NVIDIA H200 with a name as long as names of GPUs get"] * 8 + [
        "NVIDIA T4",
        "NVIDIA H200",
    ]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_capability",
        lambda index: (7, 5) if "T4" in names[index] else (9, 0),
    )
    facts = environment.snapshot().to_dict()
    assert (
        facts["torch.gpus"]
        == f"8 x {names[0]} (sm_90), 1 x NVIDIA T4 (sm_75), 1 x NVIDIA H200 (sm_90)"
    )
    assert facts["torch.gpu_count"] == 10


@pytest.mark.skipif(not HAS_NEW_PRECISION, reason="this torch has one interface for TF32")
def test_mixed_precision_interfaces():
    """Where torch refuses to tell (TF32 set through its new interface, read through the old) a
    fact is None, with a reason."""
    original = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            _ = torch.backends.cuda.matmul.allow_tf32
        snapshot = environment.snapshot()
    finally:
        torch.backends.cuda.matmul.fp32_precision = original
    facts = snapshot.to_dict()
    assert facts["cuda.matmul.fp32_precision"] == "tf32"
    assert facts["cuda.matmul.allow_tf32"] is None
    assert dict(snapshot.unreadable)["cuda.matmul.allow_tf32"] == "refused: RuntimeError"
    assert facts["cuda.matmul.allow_tf32.unreadable"] == "refused: RuntimeError"


def fail_with_a_path() -> None:
    raise OSError("/home/somebody/secret")


@pytest.mark.parametrize(
    ("get", "reason"),
    [
        (lambda: torch.no_such_thing, "not in this version"),
        (fail_with_a_path, "refused: OSError"),
        (lambda: torch.zeros(1), "refused: a Tensor"),
        (lambda: ["a", "list"], "refused: a list"),
    ],
)
def test_a_broken_fact(monkeypatch, get, reason):
    """A fact that fails or is not plain is None with a reason that quotes nothing, and the
    others are unharmed."""
    healthy = environment.snapshot()
    table = tuple((name, get if name == "numpy" else read) for name, read in environment._FACTS)
    monkeypatch.setattr(environment, "_FACTS", table)
    snapshot = environment.snapshot()
    assert dict(snapshot.unreadable)["numpy"] == reason
    assert dict(snapshot.values) == {**dict(healthy.values), "numpy": None}


def test_an_interrupt_is_not_a_fact(monkeypatch):
    """An interrupt while a fact is read is not swallowed."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "_FACTS", (("numpy", interrupt),))
    with pytest.raises(KeyboardInterrupt):
        environment.snapshot()


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:8", ":4096:8"),
        ("NCCL_ALGO", "allreduce:tree;broadcast:^ring,nvls", "allreduce:tree;broadcast:^ring,nvls"),
        ("NCCL_PROTO", "^LL128", "^LL128"),
        ("OMP_NUM_THREADS", "4,2", "4,2"),
        ("MKL_NUM_THREADS", "4", "4"),
        ("PYTHONHASHSEED", "random", "random"),
        ("PYTHONHASHSEED", "4294967295", "4294967295"),
        ("CUDA_LAUNCH_BLOCKING", "1", "1"),
        ("CUDA_VISIBLE_DEVICES", "0,1,-1", "0,1,-1"),
        ("CUDA_VISIBLE_DEVICES", "", ""),
        ("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "<withheld>"),
        ("NCCL_ALGO", "/home/somebody/topology", "<withheld>"),
        ("NCCL_PROTO", "LL\n", "<withheld>"),
        ("PYTHONHASHSEED", "somebody", "<withheld>"),
        ("OMP_NUM_THREADS", "4" * 81, "<withheld>"),
    ],
)
def test_variables(monkeypatch, name, value, shown):
    """A listed variable is shown when its value looks as it should; a path or the UUID of a GPU
    is withheld."""
    monkeypatch.setenv(name, value)
    assert environment.snapshot().to_dict()[f"env.{name}"] == shown
    monkeypatch.delenv(name)
    assert environment.snapshot().to_dict()[f"env.{name}"] is None


def test_nobody_is_identified(monkeypatch):
    """No host, user, path, command line or unlisted variable is anywhere in a snapshot."""
    monkeypatch.setenv("MY_API_TOKEN", "hunter2-canary")
    monkeypatch.setenv("HOME", "/home/canary")
    text = json.dumps(environment.snapshot().to_dict())
    secrets = {
        platform.node(),
        str(Path.cwd()),
        str(Path.home()),
        sys.executable,
        *sys.argv,
        torch.__file__,
        "canary",
        "hunter2",
    }
    user = getpass.getuser()
    secrets |= {user} if len(user) > 4 else set()
    assert [secret for secret in secrets if len(secret) > 4 and secret in text] == []
    assert "/" not in text
    assert "\\\\" not in text


def test_it_is_plain_data():
    """A snapshot is frozen, hashable, picklable and JSON; its names are unique and the same at
    every call."""
    snapshot = environment.snapshot()
    assert environment.Environment.IS_CONTENT is False
    assert {type(value) for _, value in snapshot.values} <= {type(None), bool, int, str}
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert hash(snapshot) == hash(environment.snapshot())
    names = [name for name, _ in snapshot.values]
    assert len(set(names)) == len(names) > 40
    assert json.loads(json.dumps(snapshot.to_dict())) == snapshot.to_dict()
    assert {name for name, _ in snapshot.unreadable} <= {
        name for name, value in snapshot.values if value is None
    }
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        snapshot.values = ()


def test_inductor_once_imported():
    """Inductor's settings are None before somebody imports it and its own values after."""
    code = (
        "from seedregistry.common import environment as e; before = "
        "e.snapshot().to_dict()\nimport torch._inductor.config as config; config.fallback_random "
        "= True; after = e.snapshot().to_dict()\nprint(before['inductor.fallback_random'], "
        "after['inductor.fallback_random'])"
    )
    assert python(code).split() == ["None", "True"]


@pytest.mark.cuda
def test_a_real_gpu():
    """With a GPU in use its model, capability and number are those that torch tells, and cuDNN's
    version is torch's."""
    torch.zeros(1, device="cuda")
    facts = environment.snapshot().to_dict()
    assert facts["torch.gpu_count"] == torch.cuda.device_count()
    assert torch.cuda.get_device_name(0) in facts["torch.gpus"]
    assert facts["torch.cudnn"] == torch.backends.cudnn.version()


@pytest.mark.cuda
def test_a_real_gpu_is_not_started():
    """On a machine with a GPU a snapshot in a fresh process does not start it, and still tells
    cuDNN's version."""
    code = (
        "import torch; from seedregistry.common import environment; facts = "
        "environment.snapshot().to_dict()\nprint(torch.cuda.is_initialized(), "
        "facts['torch.gpus'], facts['torch.cudnn'] == torch.backends.cudnn.version())"
    )
    assert python(code).strip() == "False not initialised True"
