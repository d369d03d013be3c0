"""The environment record: an allow-list, read without moving or starting anything."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys

import torch

from seedregistry import environment


def test_the_facts_that_numbers_depend_on_are_there():
    """Versions, threads, precision switches, hash randomisation and GPU are facts by name."""
    facts = environment.snapshot().to_dict()
    assert facts["torch"] == torch.__version__
    assert facts["torch.num_threads"] == torch.get_num_threads()
    assert facts["python.hash_randomization"] is bool(sys.flags.hash_randomization)
    assert facts["torch.float32_matmul_precision"] == "highest"
    assert {"numpy", "torch.cuda", "torch.cudnn", "torch.gpus", "cuda.matmul.allow_tf32", "env.CUBLAS_WORKSPACE_CONFIG"} <= set(facts)
    assert all(value is None or isinstance(value, (bool, int, str)) for value in facts.values())


def test_a_changed_setting_shows():
    """The snapshot is of now: another thread count is another value."""
    torch.set_num_threads(1)
    assert environment.snapshot().to_dict()["torch.num_threads"] == 1


def test_no_secrets(monkeypatch):
    """Host name, user, home, paths, command line and other variables are not in it."""
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-token")
    monkeypatch.setenv("OMP_NUM_THREADS", "x" * 500)
    text = repr(environment.snapshot())
    for secret in ("s3cr3t-token", socket.gethostname(), os.getcwd(), sys.executable, *sys.argv[1:]):
        if len(secret) > 3:
            assert secret not in text
    assert getpass.getuser() not in text.split()
    assert "x" * 81 not in text


SCRIPT = """
import sys, torch
from seedregistry import environment, rng
before = rng.fingerprint()
environment.snapshot()
assert rng.fingerprint() == before
assert not torch.cuda.is_initialized()
assert "torch._inductor.config" not in sys.modules
"""


def test_reading_starts_and_moves_nothing():
    """A snapshot starts no accelerator, imports no compiler and moves no generator."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], check=True)


def test_a_fact_that_refuses_is_none(monkeypatch):
    """A setting that torch refuses to tell, as mixed TF32 interfaces do, is None and no error."""

    def refuse() -> None:
        raise RuntimeError("mixed")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    monkeypatch.setattr(environment, "_FACTS", (("precision", torch.get_float32_matmul_precision),))
    assert environment.snapshot().to_dict()["precision"] is None
