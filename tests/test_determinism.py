"""Determinism switches: applied together or not at all, read back, reported, and given back to
the caller's values."""

from __future__ import annotations

import ast
import gc
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import pytest
import torch

import seedregistry
from seedregistry import determinism, rng
from seedregistry.errors import DeterministicStateError, InvalidOptionError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
ALGORITHMS = "torch.deterministic_algorithms"
INDUCTOR = "torch._inductor.config.deterministic"
FILL = "torch.utils.deterministic.fill_uninitialized_memory"
DETERMINISTIC = "torch.backends.cudnn.deterministic"
BENCHMARK = "torch.backends.cudnn.benchmark"

# States that a caller may have left the process in; torch's defaults are the first.
CALLERS = {
    "defaults": {
        CUBLAS: None,
        ALGORITHMS: "off",
        FILL: True,
        DETERMINISTIC: False,
        BENCHMARK: False,
    },
    "fast": {
        CUBLAS: None,
        ALGORITHMS: "off, warn_only",
        FILL: False,
        DETERMINISTIC: False,
        BENCHMARK: True,
    },
    "careful": {
        CUBLAS: ":16:8",
        ALGORITHMS: "strict",
        FILL: True,
        DETERMINISTIC: True,
        BENCHMARK: False,
    },
    "mixed": {
        CUBLAS: ":4096:8",
        ALGORITHMS: "warn",
        FILL: False,
        DETERMINISTIC: False,
        BENCHMARK: True,
    },
}

# What torch.backends.disable_global_flags sets, and has no way back from.
FROZEN = (torch.backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag", False)

HAS_INDUCTOR_SWITCH = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)


def read() -> dict:
    return {switch.name: switch.get() for switch in determinism._SWITCHES}


def write(values: dict) -> None:
    for switch in determinism._SWITCHES:
        if switch.name in values:
            switch.set(values[switch.name])


def by_name(report: determinism.DeterminismReport) -> dict:
    return {entry.name: entry for entry in report.ineffective}


@pytest.fixture(params=sorted(CALLERS))
def caller(request):
    """A caller's own settings; they must stand again at the end of the test."""
    original = read()
    write(CALLERS[request.param])
    before = read()
    yield before
    after = read()
    write(original)
    assert after == before


@pytest.fixture
def no_cublas(monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)


# --- applying -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["warn", "strict"])
@pytest.mark.parametrize("fill", [False, True])
def test_apply_sets_every_switch(caller, mode, fill):
    """Whatever the caller had, every switch is as asked for, in torch and in the report, which
    names it as applied."""
    with determinism.apply(mode, fill_uninitialized_memory=fill) as handle:
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == (mode == "warn")
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert torch.utils.deterministic.fill_uninitialized_memory == fill
        assert os.environ[CUBLAS] == (caller[CUBLAS] or ":4096:8")
        assert {s.name: s.after for s in handle.report.switches} == read()
        assert {s.name: s.before for s in handle.report.switches} == caller
        assert {ALGORITHMS, FILL, DETERMINISTIC, BENCHMARK} <= set(handle.report.applied)
        assert (CUBLAS in handle.report.applied) == (caller[CUBLAS] is None)


def test_off_leaves_everything_alone(caller):
    """Mode "off" changes nothing and reports what is there, without a claim about it."""
    with determinism.apply("off", fill_uninitialized_memory=True) as handle:
        assert read() == caller
        assert {s.name: s.after for s in handle.report.switches} == caller
        assert handle.report.applied == handle.report.ineffective == handle.report.notes == ()
        torch.backends.cudnn.benchmark = not caller[BENCHMARK]
    assert torch.backends.cudnn.benchmark != caller[BENCHMARK], (
        "a switch that was never ours was put back"
    )
    torch.backends.cudnn.benchmark = caller[BENCHMARK]


@pytest.mark.parametrize("mode", ["Strict", "stric", "on", "", True, None, 1, ["strict"], b"warn"])
def test_bad_mode(mode):
    """A mode that is not one of the four is refused with what came and what is expected, and
    nothing has changed."""
    before = read()
    with pytest.raises(InvalidOptionError, match="'off', 'fast', 'warn', 'strict'") as caught:
        determinism.apply(mode)
    assert repr(mode) in str(caught.value)
    assert ("Did you mean 'strict'?" in str(caught.value)) == (
        str(mode).lower().startswith("stric")
    )
    assert read() == before


@pytest.mark.parametrize("fill", [1, 0, None, "yes"])
def test_bad_fill(fill):
    """Anything but a bool for the filling is refused, in every mode, before anything has
    changed."""
    before = read()
    for mode in determinism.MODES:
        with pytest.raises(InvalidOptionError, match="True or False; got " + repr(fill)):
            determinism.apply(mode, fill_uninitialized_memory=fill)
    assert read() == before


def test_strict_raises_and_warn_warns():
    """An operator without a deterministic form runs, warns or raises, as the mode says, and runs
    again after."""

    def scatter() -> torch.Tensor:
        # put_ with accumulate=False: torch.use_deterministic_algorithms lists it, for every device.
        return torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    scatter()
    with determinism.apply("strict"), pytest.raises(
        RuntimeError, match="put_ does not have a deterministic"
    ):
        scatter()
    with determinism.apply("warn"), pytest.warns(
        UserWarning, match="put_ does not have a deterministic"
    ):
        scatter()
    scatter()


def test_fresh_memory_is_filled_only_when_asked():
    """Fresh memory is NaN (the largest value for integers) with ``fill_uninitialized_memory``
    and as it was found without."""
    # A size that no other test allocates, so that no block full of NaN comes back from the
    # allocator.
    size = 1_234_567
    with determinism.apply("strict"):
        assert not torch.empty(size).isnan().all()
    with determinism.apply("strict", fill_uninitialized_memory=True):
        assert torch.empty(7).isnan().all()
        assert (torch.empty(7, dtype=torch.int16) == torch.iinfo(torch.int16).max).all()
    assert not torch.empty(size).isnan().all()


def test_no_generator_moves():
    """Neither applying nor reverting draws from or sets a generator."""
    before = rng.fingerprint()
    for mode in determinism.MODES:
        determinism.apply(mode).revert()
    assert rng.fingerprint() == before


# --- the way back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way_out", [None, ValueError, KeyboardInterrupt, GeneratorExit])
def test_the_callers_values_come_back(caller, way_out):
    """Every way out of the block gives the caller's values back, the environment variable
    included."""
    if way_out is None:
        with determinism.apply("strict", fill_uninitialized_memory=not caller[FILL]):
            assert read() != caller
    else:

        def body() -> None:
            with determinism.apply("strict", fill_uninitialized_memory=not caller[FILL]):
                assert read() != caller
                raise way_out

        with pytest.raises(way_out):
            body()
    assert read() == caller


def test_warn_only_comes_back_while_the_mode_is_off():
    """Torch keeps ``warn_only`` while deterministic algorithms are off, and so it does after a
    block."""
    torch.use_deterministic_algorithms(mode=False, warn_only=True)
    determinism.apply("strict").revert()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=False, warn_only=False)


def test_nested_blocks(caller):
    """Blocks nest: at the end of each the values of the block around it stand again."""
    with determinism.apply("warn"):
        outer = read()
        with determinism.apply("strict", fill_uninitialized_memory=True):
            inner = read()
            with determinism.apply("off"), determinism.apply(
                "warn", fill_uninitialized_memory=True
            ):
                assert read()[ALGORITHMS] == "warn"
            assert read() == inner
        assert read() == outer


def test_out_of_order(caller):
    """An older handle that is reverted first leaves what a newer one wants, and the last gives
    the caller's values back."""
    first, second, third = (
        determinism.apply("warn"),
        determinism.apply("strict"),
        determinism.apply("warn"),
    )
    wanted = read()
    second.revert()
    assert read() == wanted
    first.revert()
    assert read() == wanted
    third.revert()
    assert read() == caller


def test_out_of_order_keeps_the_cublas_variable(no_cublas):
    """A newer handle goes on having the environment variable that an older one had set first."""
    first, second = determinism.apply("strict"), determinism.apply("strict")
    first.revert()
    assert os.environ[CUBLAS] == ":4096:8"
    second.revert()
    assert CUBLAS not in os.environ


def test_revert_twice(caller):
    """A second revert does nothing, also after somebody set a switch in between."""
    handle = determinism.apply("strict")
    handle.revert()
    torch.backends.cudnn.benchmark = not caller[BENCHMARK]
    handle.revert()
    assert torch.backends.cudnn.benchmark != caller[BENCHMARK]
    torch.backends.cudnn.benchmark = caller[BENCHMARK]


def test_changes_in_between_are_undone(caller):
    """The caller's values come back also where the body set the switches by hand."""
    with determinism.apply("warn"):
        torch.use_deterministic_algorithms(mode=False)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.deterministic = False
        torch.utils.deterministic.fill_uninitialized_memory = True
        os.environ[CUBLAS] = ":0:0"
        if caller[CUBLAS]:  # not ours to put back
            os.environ[CUBLAS] = caller[CUBLAS]
    assert read() == caller


def test_a_handle_that_nobody_holds(caller):
    """A handle dropped inside a block, as by the documented function, does not keep the block
    from giving everything back."""
    with determinism.apply("warn"):
        determinism.apply("strict", fill_uninitialized_memory=True)
        gc.collect()
        assert read()[ALGORITHMS] == "strict"
    assert read() == caller


def test_dropped_handles_are_forgotten():
    """A process that sets its switches again and again does not grow."""
    with determinism.apply("strict"):
        for _ in range(50):
            determinism.apply("strict")
        gc.collect()
        determinism.apply("strict").revert()
        assert len(determinism._active) <= 3


def test_two_threads(caller):
    """Two threads whose blocks overlap: the second keeps its mode when the first leaves, and the
    caller's values come back."""
    first_is_in, second_is_in, first_is_out = (
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )
    seen = []

    def second() -> None:
        first_is_in.wait(20)
        with determinism.apply("strict"):
            second_is_in.set()
            first_is_out.wait(20)
            seen.append(read()[ALGORITHMS])

    thread = threading.Thread(target=second)
    thread.start()
    with determinism.apply("warn"):
        first_is_in.set()
        assert second_is_in.wait(20)
    first_is_out.set()
    thread.join(20)
    assert seen == ["strict"]
    assert read() == caller


@pytest.mark.skipif(not HAS_INDUCTOR_SWITCH, reason="torch before 2.10 has no such switch")
@pytest.mark.parametrize("value", [False, True])
def test_inductor_is_put_back(monkeypatch, value):
    """Inductor's switch, which torch sets along with its own, goes back to the caller's value
    too."""
    from torch._inductor import config

    monkeypatch.setattr(config, "deterministic", value)
    with determinism.apply("strict") as handle:
        assert config.deterministic
        assert any(INDUCTOR in note for note in handle.report.notes)
    assert config.deterministic is value


def test_off_does_not_import_inductor():
    """Mode "off" reads Inductor's switch without the second that importing Inductor takes."""
    code = (
        "import sys; from seedregistry import determinism; determinism.apply('off'); "
        "print('torch._inductor' in sys.modules)"
    )
    assert python(code) == "False"


# --- failures -------------------------------------------------------------------------------------


def broken(name: str, error: BaseException, *, at: str) -> tuple:
    """The table of switches with one whose setter raises, before or after it has set the value."""

    def set_and_raise(value: object) -> None:
        is_way_back = value == CALLERS["defaults"][name]
        if at == "after" or is_way_back:
            real.set(value)
        if not is_way_back:
            raise error

    real = next(switch for switch in determinism._SWITCHES if switch.name == name)
    return tuple(
        attrs.evolve(s, set=set_and_raise) if s.name == name else s for s in determinism._SWITCHES
    )


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("name", [CUBLAS, ALGORITHMS, DETERMINISTIC])
def test_a_switch_that_fails(monkeypatch, no_cublas, name, at):
    """When one switch cannot be set all are as they were, and the error names it and has the
    cause."""
    before = read()
    cause = OSError("no such luck")
    monkeypatch.setattr(determinism, "_SWITCHES", broken(name, cause, at=at))
    with pytest.raises(
        DeterministicStateError, match=f"{name} could not be set to .*no such luck.*as it was"
    ) as caught:
        determinism.apply("strict", fill_uninitialized_memory=True)
    assert caught.value.__cause__ is cause
    assert read() == before


def test_an_interrupt_between_two_switches(monkeypatch, no_cublas):
    """An interrupt halfway passes as it is, and all switches are as they were."""
    before = read()
    monkeypatch.setattr(
        determinism, "_SWITCHES", broken(DETERMINISTIC, KeyboardInterrupt(), at="after")
    )
    with pytest.raises(KeyboardInterrupt):
        determinism.apply("strict")
    assert read() == before


def test_a_switch_that_cannot_be_read_back(monkeypatch, no_cublas):
    """When a switch cannot be read after it was set, all are put back."""
    before = read()
    answers = iter([False])  # then nothing
    real = determinism._SWITCHES
    monkeypatch.setattr(
        determinism,
        "_SWITCHES",
        tuple(
            attrs.evolve(s, get=lambda: next(answers)) if s.name == BENCHMARK else s for s in real
        ),
    )
    with pytest.raises(DeterministicStateError, match=BENCHMARK):
        determinism.apply("strict")
    monkeypatch.undo()
    os.environ.pop(CUBLAS, None)
    assert {**read(), CUBLAS: None} == before


def test_flags_frozen_by_torch(monkeypatch):
    """``torch.backends.disable_global_flags`` makes cuDNN's flags read-only: an error that says
    so, and nothing has changed."""
    before = read()
    monkeypatch.setitem(*FROZEN)
    with pytest.raises(
        DeterministicStateError,
        match=r"cudnn\.deterministic could not be set.*disable_global_flags",
    ):
        determinism.apply("strict")
    assert read() == before


def test_a_revert_that_fails(monkeypatch):
    """When a switch cannot be set back the error names it, the others are back, and a second
    call finishes the work."""
    before = read()
    handle = determinism.apply("strict")
    with monkeypatch.context() as frozen:
        frozen.setitem(*FROZEN)
        with pytest.raises(
            DeterministicStateError,
            match=r"could not be set back: torch\.backends\.cudnn\.deterministic",
        ):
            handle.revert()
        assert read() == {**before, DETERMINISTIC: True}
    handle.revert()
    assert read() == before


def test_a_setter_that_does_nothing_is_caught(monkeypatch):
    """A switch that is broken and stays as it was is not reported as applied but as ineffective."""
    table = tuple(
        attrs.evolve(s, set=lambda value: None) if s.name == DETERMINISTIC else s
        for s in determinism._SWITCHES
    )
    monkeypatch.setattr(determinism, "_SWITCHES", table)
    with determinism.apply("strict") as handle:
        entry = by_name(handle.report)[DETERMINISTIC]
        assert (entry.wanted, entry.actual) == ("True", "False")
        assert DETERMINISTIC not in handle.report.applied


def test_a_revert_that_does_nothing_is_caught(monkeypatch):
    """The comparison that these tests rest on sees a revert that forgets its work."""
    before = read()
    handle = determinism.apply("strict")
    with monkeypatch.context() as sabotage:
        sabotage.setattr(determinism, "_put_back", lambda saved: None)
        handle.revert()
        assert read() != before
    handle.revert()
    assert read() == before


# --- the report -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [":4096:8", ":16:8"])
def test_a_launchers_good_cublas_value(monkeypatch, value):
    """A documented value that the launcher set stays, during and after, and is no complaint."""
    monkeypatch.setenv(CUBLAS, value)
    with determinism.apply("strict") as handle:
        assert os.environ[CUBLAS] == value
        assert CUBLAS not in by_name(handle.report)
    assert os.environ[CUBLAS] == value


@pytest.mark.parametrize("value", [":1:1", "", ":4096:8:16:8", " :4096:8"])
@pytest.mark.parametrize(("version", "words"), [((2, 2), "refuses"), ((2, 13), "does not check")])
def test_a_launchers_bad_cublas_value(monkeypatch, value, version, words):
    """Any other value of the launcher stays too, and is reported with what this torch makes of
    it."""
    monkeypatch.setenv(CUBLAS, value)
    monkeypatch.setattr(determinism, "_torch_version", lambda: version)
    with determinism.apply("warn") as handle:
        assert os.environ[CUBLAS] == value
        entry = by_name(handle.report)[CUBLAS]
        assert entry.actual == value
        assert words in entry.reason
    assert os.environ[CUBLAS] == value


@pytest.mark.parametrize(
    ("version", "is_late"), [((2, 2), True), ((2, 9), True), ((2, 10), False), ((2, 13), False)]
)
def test_cublas_after_cuda_started(monkeypatch, no_cublas, version, is_late):
    """Setting the variable after CUDA started is reported up to torch 2.9, which asks for it,
    and not since 2.10."""
    monkeypatch.setattr(determinism, "_torch_version", lambda: version)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with determinism.apply("strict") as early:
        assert CUBLAS not in by_name(early.report)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with determinism.apply("strict") as late:
        assert (CUBLAS in by_name(late.report)) == is_late


@pytest.mark.parametrize(
    ("value", "is_reported"),
    [
        ("", False),
        ("Ring", False),
        ("ring,tree", False),
        ("^NVLS", False),
        ("^nvls,nvlstree", False),
        ("allreduce:tree;broadcast:ring", False),
        ("NVLS", True),
        ("Ring,NVLS", True),
        ("nvlstree", True),
        ("^Ring", True),
        ("allreduce:nvls;broadcast:ring", True),
    ],
)
def test_a_launchers_nccl_value(monkeypatch, value, is_reported):
    """A value of NCCL_ALGO that allows NVLS is reported; none is overwritten."""
    monkeypatch.setenv("NCCL_ALGO", value)
    with determinism.apply("strict") as handle:
        assert ("NCCL_ALGO" in by_name(handle.report)) == is_reported
        assert os.environ["NCCL_ALGO"] == value


def python(code: str, *flags: str, **env: str) -> str:
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONHASHSEED", CUBLAS)
    }
    command = [sys.executable, *flags, "-c", code]
    root = str(Path(seedregistry.__file__).parents[1])
    done = subprocess.run(
        command,
        env={**clean, **env},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HASH_CODE = """
import os
from seedregistry import determinism
seen = []
for value in [None, "0", "5", "6"]:  # None: as python was started
    if value is not None:
        os.environ["PYTHONHASHSEED"] = value
    with determinism.apply("strict") as handle:
        seen.append("PYTHONHASHSEED" in str(handle.report))
print(*seen)
"""


@pytest.mark.parametrize(
    ("start", "flags", "reported"),
    [
        ({}, (), "True True True True"),
        ({"PYTHONHASHSEED": "5"}, (), "False True False True"),
        ({"PYTHONHASHSEED": "0"}, (), "False False False False"),
        ({"PYTHONHASHSEED": "5"}, ("-E",), "True True True True"),
    ],
)
def test_hash_randomisation_is_reported(start, flags, reported):
    """PYTHONHASHSEED counts when python was started with it; set later, or ignored by python, it
    is named as ineffective."""
    assert python(HASH_CODE, *flags, **start) == reported


def test_hash_seed_where_it_cannot_be_told(monkeypatch):
    """On an interpreter that hides its hash secret the report says that it does not know."""
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    monkeypatch.setattr(determinism, "_started_with_hash_seed", lambda seed: None)
    monkeypatch.setattr(determinism.sys, "flags", type("Flags", (), {"hash_randomization": 1}))
    with determinism.apply("strict") as handle:
        assert "does not tell" in by_name(handle.report)["PYTHONHASHSEED"].reason


def test_warn_is_labelled():
    """Mode "warn" says that flash and memory-efficient attention stay nondeterministic; "strict"
    does not."""
    with determinism.apply("warn") as handle:
        assert any("flash and memory-efficient attention" in note for note in handle.report.notes)
        assert "attention" in str(handle.report)
    with determinism.apply("strict") as handle:
        assert "attention" not in str(handle.report)


def test_the_report_is_plain_data(monkeypatch):
    """The report is frozen, hashable, picklable, and made of plain values; printed it names
    every switch and problem."""
    monkeypatch.setenv(CUBLAS, ":1:1")
    with determinism.apply("warn") as handle:
        report = handle.report

    def leaves(value):
        if attrs.has(type(value)):
            value = attrs.astuple(value, recurse=False)
        return (
            [leaf for item in value for leaf in leaves(item)]
            if isinstance(value, tuple)
            else [value]
        )

    assert {type(leaf) for leaf in leaves(report)} <= {str, bool, type(None)}
    assert len(leaves(report)) > 20
    assert pickle.loads(pickle.dumps(report)) == report
    assert hash(report) == hash(pickle.loads(pickle.dumps(report)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        report.mode = "strict"
    for entry in report.switches + report.ineffective:
        assert entry.name in str(report)


def test_no_other_module_touches_switches():
    """Only ``determinism`` calls or assigns a determinism switch, read from the source of every
    module."""
    calls = {"use_deterministic_algorithms", "set_deterministic_debug_mode"}
    assigned = {"deterministic", "benchmark", "fill_uninitialized_memory"}
    touching = set()
    for path in Path(seedregistry.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
            if node.attr in calls or (
                isinstance(node.ctx, ast.Store) and node.attr in assigned and not is_own
            ):
                touching.add(path.name)
    assert touching == {"determinism.py"}


@pytest.mark.cuda
def test_strict_on_a_gpu():
    """On a GPU strict mode lets matrix products run and repeat, and refuses an operator without
    a deterministic form."""
    with determinism.apply("strict"):
        left = torch.arange(64.0, device="cuda").reshape(8, 8)
        assert torch.equal(left @ left, left @ left)
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.nn.AvgPool3d(1)(
                torch.ones(1, 1, 2, 2, 2, device="cuda", requires_grad=True)
            ).sum().backward()
