"""Scopes: set from a position, and everything as before after the block, to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from augmented import Augmented
from hypothesis import given
from hypothesis import strategies as st

from seedregistry import SeedRegistry, rng
from seedregistry.errors import InvalidNameError, InvalidOptionError, ScopeError
from seedregistry.rng import numpy_state


def draw_all() -> tuple:
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(2).tolist(),
        torch.randn(1).item(),
    )


@pytest.fixture
def stream():
    return SeedRegistry(42).stream("dropout", "training")


@pytest.fixture(params=["sha256-31", "sha256-256"])
def any_stream(request):
    return SeedRegistry(42, scheme=request.param).stream("dropout", "training")


def untouched(before: dict) -> bool:
    return rng.fingerprint() == before


def untouched_in_child(before: dict) -> bool:
    """A forked child cannot use its parent's GPU, and has the other generators alone."""
    now = rng.fingerprint()
    return {"python", "numpy", "torch:cpu"} <= set(now) and now.items() <= before.items()


def test_state_is_back_on_return(any_stream):
    """After a scope every default generator is as it was, and inside it draws the same at every
    visit."""
    before = rng.fingerprint()
    with any_stream.scope(1, 2):
        first = draw_all()
    assert untouched(before)
    with any_stream.scope(1, 2):
        assert draw_all() == first
    with any_stream.scope(2, 1):
        assert draw_all() != first
    assert untouched(before)


@pytest.mark.parametrize(
    "error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError]
)
def test_state_is_back_on_exceptions(stream, error):
    """An exception of any kind in the body leaves every generator byte as it was, and goes on."""
    before = rng.fingerprint()
    with pytest.raises(error), stream.scope(0, 0):
        draw_all()
        raise error
    assert untouched(before)


def test_state_is_back_on_close_and_throw(stream):
    """A generator function that is closed or thrown into inside its scope puts the state back."""

    def training():
        with stream.scope(0, 0):
            draw_all()
            yield 1
            draw_all()

    before = rng.fingerprint()
    steps = training()
    next(steps)
    steps.close()
    assert untouched(before)
    steps = training()
    next(steps)
    with pytest.raises(RuntimeError, match="thrown"):
        steps.throw(RuntimeError("thrown"))
    assert untouched(before)


@given(
    depths=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=5
    )
)
def test_any_nesting_and_any_failure_restore(depths):
    """Five scopes deep, with draws anywhere and a failure at any depth, every level finds its
    state again."""
    registry = SeedRegistry(7)
    before = rng.fingerprint()

    def enter(level: int) -> None:
        torch_only, fails, draws = depths[level]
        outer = rng.fingerprint()
        try:
            with registry.stream("nest", level).scope(level, torch_only=torch_only):
                for _ in range(draws):
                    np.random.randn()
                    if not torch_only or level:
                        torch.rand(1)
                if level + 1 < len(depths):
                    enter(level + 1)
                if fails:
                    raise RuntimeError
        finally:
            after = rng.fingerprint()
            if not torch_only:
                assert after == outer
            assert after["torch:cpu"] == outer["torch:cpu"]

    try:
        with registry.stream("nest", "outer").scope():
            enter(0)
    except RuntimeError:
        pass
    assert untouched(before)


@pytest.mark.moves_global_state
def test_the_cached_normal_of_numpy_survives(stream):
    """A normal that NumPy has cached before a scope is the next one after it, and is not seen
    inside."""
    np.random.seed(3)
    np.random.randn()
    expected = np.random.RandomState(3)
    expected.randn()
    with stream.scope(0):
        inside = np.random.randn()
    with stream.scope(0):
        np.random.randn()
        np.random.seed(99)
        np.random.set_state(np.random.get_state())
    assert inside != expected.randn()
    expected.seed(3)
    expected.randn()
    assert np.random.randn() == expected.randn()
    assert np.random.rand() == expected.rand()


@pytest.mark.moves_global_state
def test_a_state_without_the_cached_normal_is_caught(stream, monkeypatch):
    """The test above fails when the cached normal is not put back."""
    capture = numpy_state.capture
    monkeypatch.setattr(numpy_state, "capture", lambda: capture()._replace(normal=None))
    np.random.seed(3)
    np.random.randn()
    before = rng.fingerprint()
    with stream.scope(0):
        pass
    assert not untouched(before)


@pytest.mark.moves_global_state
@pytest.mark.parametrize("is_known", [True, False])
def test_a_numpy_whose_bytes_lie_elsewhere(stream, monkeypatch, is_known):
    """Where the bytes are not where they are expected, the public way keeps all of it too."""
    monkeypatch.setattr(numpy_state, "_normal_offset", lambda: 80 if is_known else None)
    if is_known:
        monkeypatch.undo()
        assert numpy_state._normal_offset() is not None  # with the NumPy that is here
    np.random.seed(3)
    np.random.randn()
    before = rng.fingerprint()
    with stream.scope(0):
        first = draw_all()
    assert untouched(before)
    monkeypatch.undo()
    with stream.scope(0):
        assert draw_all() == first


@pytest.mark.moves_global_state
@pytest.mark.parametrize("is_known", [True, False])
def test_a_handle_of_numpys_draws_from_the_scope(stream, monkeypatch, is_known):
    """A bit generator, or a bound method of it, that code got hold of before a scope draws what the
    position says, and is afterwards where it was; np.random.seed before it changes nothing."""
    if not is_known:
        monkeypatch.setattr(numpy_state, "_normal_offset", lambda: None)
    handle = np.random.get_bit_generator()
    draw, normal = handle.random_raw, np.random.mtrand._rand.standard_normal
    got = set()
    for seed in (1, 2):
        np.random.seed(seed)
        expected = np.random.RandomState(seed)
        with stream.scope(0):
            got.add((draw(), normal(), handle.random_raw()))
        assert np.random.rand() == expected.rand()
    assert len(got) == 1


@pytest.mark.moves_global_state
@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64, np.random.SFC64])
def test_another_bit_generator_under_numpy_is_kept(stream, kind):
    """A caller's own global bit generator, of any kind, comes back as the same object, not moved,
    with its cached normal; what is drawn inside does not depend on it."""
    with stream.scope(1):
        expected = draw_all()
    original = np.random.get_bit_generator()
    mine = kind(5)
    np.random.set_bit_generator(mine)
    try:
        np.random.randn()
        before = rng.fingerprint()
        with stream.scope(1):
            np.random.seed(7)
            with stream.scope(1):
                assert draw_all() == expected
        assert np.random.get_bit_generator() is mine
        assert untouched(before)
    finally:
        np.random.set_bit_generator(original)


@pytest.mark.moves_global_state
def test_a_handle_that_no_scope_can_seed(stream):
    """A draw from a bit generator of another kind, taken before the scope, is an error at its end;
    the generator is as it was."""
    original = np.random.get_bit_generator()
    handle = np.random.PCG64(5)
    np.random.set_bit_generator(handle)
    try:
        before = rng.fingerprint()
        with pytest.raises(ScopeError, match="It is no MT19937"), stream.scope(1):
            handle.random_raw()
        assert untouched(before)
        assert not rng.in_scope()
    finally:
        np.random.set_bit_generator(original)


def test_torch_only_leaves_python_and_numpy_alone(stream):
    """With torch_only, python's and NumPy's generators are the caller's inside the block."""
    before = rng.fingerprint()
    with stream.scope(0, torch_only=True):
        inside = rng.fingerprint()
        assert inside["python"] == before["python"]
        assert inside["numpy"] == before["numpy"]
        assert inside["torch:cpu"] != before["torch:cpu"]
    assert untouched(before)


def test_the_start_of_a_stream_is_manual_seed():
    """Under sha256-31 a scope without coordinates sets torch as manual_seed(seed) does."""
    stream = SeedRegistry(42).stream("model", "training")
    with stream.scope():
        found = torch.rand(5)
    assert torch.equal(found, torch.rand(5, generator=torch.Generator().manual_seed(1958051794)))


def test_scope_and_generators_agree(any_stream):
    """The default generators in a scope draw what the position's own generators draw."""
    position = any_stream.at(3, 4)
    with position.scope():
        inside = torch.rand(4), random.random()
    assert torch.equal(inside[0], torch.rand(4, generator=position.generator()))
    assert inside[1] == position.python().random()
    with any_stream.scope(3, 4):
        assert torch.equal(torch.rand(4), inside[0])


def test_the_libraries_share_no_words(any_stream):
    """Inside a scope python, NumPy and torch draw different 32-bit words, where one integer seed
    gives NumPy torch's."""
    for coordinates in ((), (0,), (5, 7)):
        with any_stream.scope(*coordinates):
            from_torch = {int(word) for word in torch.randint(0, 2**32, (624,), dtype=torch.int64)}
            from_numpy = {int(word) for word in np.random.randint(0, 2**32, 624, dtype=np.uint32)}
            from_python = {random.getrandbits(32) for _ in range(624)}
        assert (
            len(from_torch & from_numpy)
            + len(from_torch & from_python)
            + len(from_numpy & from_python)
            <= 2
        )


def test_one_integer_for_all_is_caught():
    """The classic recipe gives torch and NumPy one bit stream, which the test above would find."""
    from_torch = torch.randint(0, 8, (64,), generator=torch.Generator().manual_seed(0))
    from_numpy = np.random.RandomState(0).randint(0, 8, 64)
    assert from_torch.tolist() == from_numpy.tolist()


def test_decorator_returns_the_value(stream):
    """As a decorator every call runs in a new scope at the same position, and the function's
    value comes back."""

    @stream.scope(1)
    def noise(count: int, *, scale: float = 1.0) -> list:
        """Some noise."""
        return (torch.rand(count) * scale).tolist()

    before = rng.fingerprint()
    assert noise(3) == noise(3)
    assert noise(2, scale=0.0) == [0.0, 0.0]
    assert noise.__doc__ == "Some noise."
    assert untouched(before)


def test_decorator_allows_recursion(stream):
    """A decorated function may call itself."""

    @stream.scope(1)
    def countdown(n: int) -> float:
        return torch.rand(1).item() if n == 0 else countdown(n - 1)

    assert countdown(4) == countdown(0)


def test_decorator_refuses_bodies_that_run_later(stream):
    """Generator functions, async functions and classes are refused: their bodies run outside the
    scope."""

    def generator():
        yield

    async def coroutine():
        pass

    async def async_generator():
        yield

    for function in (generator, coroutine, async_generator, type("Body", (), {}), 3):
        with pytest.raises(ScopeError, match="inside the body"):
            stream.scope(1)(function)


def test_decorator_refuses_hidden_generators_and_descriptors(stream):
    """A callable whose call is a generator function, and a staticmethod, are refused too."""

    class Lazy:
        def __call__(self):
            yield

    for function in (Lazy(), staticmethod(draw_all), classmethod(draw_all)):
        with pytest.raises(ScopeError):
            stream.scope(1)(function)


def test_other_threads_read_numpys_state(stream):
    """While a scope is being entered, other threads read and seed NumPy's global state as
    always."""
    import sys

    failures = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                assert len(np.random.get_state(legacy=False)["state"]["key"]) == 624
            except Exception as error:  # noqa: BLE001, PERF203 - any failure is one
                failures.append(error)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(3000):
            with stream.scope(0, step):
                pass
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        reader.join()
    assert not failures


def test_a_thread_that_ends_inside_a_scope(stream):
    """A scope whose thread ended is put back by the next thread that wants one, without waiting."""
    before = rng.fingerprint()
    thread = threading.Thread(target=lambda: stream.scope(0).__enter__())
    thread.start()
    thread.join()
    with stream.scope(1, timeout_s=0):
        draw_all()
    assert untouched(before)


def test_state_is_refused_while_another_thread_is_in_a_scope():
    """States and global seeds are refused while any thread is in a scope: they would be the
    scope's."""
    registry = SeedRegistry(42)
    state = registry.state_dict()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with registry.stream("x", 1).scope(0):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(20)
    try:
        for call in (
            registry.state_dict,
            lambda: registry.load_state_dict(state),
            registry.set_global_state,
        ):
            with pytest.raises(ScopeError, match="another thread"):
                call()
    finally:
        leave.set()
        thread.join()


def test_a_scope_is_one_block(stream):
    """One scope object cannot be entered twice."""
    scope = stream.scope(0)
    with scope, pytest.raises(ScopeError, match="second time"):
        scope.__enter__()
    with pytest.raises(ScopeError, match="second time"):
        scope.__enter__()


def test_leaving_out_of_order_restores_the_outermost(stream):
    """A scope that is left while another is innermost puts the outermost state back and says so;
    the other closes quietly."""
    before = rng.fingerprint()
    outer, inner = stream.scope(0), stream.scope(1)
    outer.__enter__()
    torch.rand(3)
    inner.__enter__()
    draw_all()
    with pytest.raises(ScopeError, match="reverse order"):
        outer.__exit__()
    assert untouched(before)
    inner.__exit__()
    assert untouched(before)
    assert not rng.in_scope()


def test_leaving_in_another_thread_is_an_error(stream):
    """A scope that another thread leaves is closed, the state is back, and the error names the
    holder."""
    before = rng.fingerprint()
    scope = stream.scope(0)
    scope.__enter__()
    caught = []

    def leave() -> None:
        try:
            scope.__exit__()
        except ScopeError as error:
            caught.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert "MainThread" in caught[0].holder
    assert untouched(before)
    with stream.scope(0):
        pass


def test_a_thread_that_waits_too_long_is_told_who_holds(stream):
    """A thread waits for another's scope, and after timeout_s it gets the holder's name and
    line."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with stream.scope(0):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=hold, name="holder-of-the-scope")
    thread.start()
    entered.wait(20)
    started = time.monotonic()
    try:
        with pytest.raises(
            ScopeError, match=r"holder-of-the-scope.*test_scope\.py:\d+"
        ), stream.scope(1, timeout_s=0.2):
            pass
        assert 0.1 < time.monotonic() - started < 10
        assert not rng.in_scope()
    finally:
        leave.set()
        thread.join()
    with stream.scope(1, timeout_s=0):
        pass


def test_threads_take_turns(stream):
    """Eight threads that use scopes at once each draw what their position says."""
    expected = {}
    for i in range(8):
        with stream.scope(i):
            expected[i] = draw_all()
    found, failures = {}, []

    def work(i: int) -> None:
        try:
            for _ in range(10):
                with stream.scope(i):
                    found[i] = draw_all()
                    time.sleep(0)
        except ScopeError as error:
            failures.append(error)

    before = rng.fingerprint()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert found == expected
    assert untouched(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_another_thread_holds_a_scope(stream):
    """A child forked while another thread is in a scope can enter scopes at once, and is not
    inside the other's."""
    entered, leave = threading.Event(), threading.Event()
    before = rng.fingerprint()

    def hold() -> None:
        with stream.scope(0):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(20)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if untouched_in_child(before) and not rng.in_scope():
                with stream.scope(1, timeout_s=0):
                    draw_all()
                code = 0 if untouched_in_child(before) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    leave.set()
    thread.join()
    assert os.WEXITSTATUS(status) == 0
    assert untouched(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_inside_a_scope_keeps_it(stream):
    """A child forked by the thread in a scope is inside it too, and leaves it like the parent."""
    before = rng.fingerprint()
    with stream.scope(0) as scope:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                torch.rand(3)
                if rng.in_scope():
                    scope.__exit__()
                    code = 0 if untouched_in_child(before) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
    assert os.WEXITSTATUS(status) == 0
    assert untouched(before)


def test_ranks_must_be_told_apart(stream, monkeypatch):
    """With more than one rank, silence is an error that names both ways; rank=None is shared,
    rank=r is a rank's own."""
    from seedregistry.common import ranks

    with stream.scope(0):
        alone = torch.rand(3)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    with pytest.raises(ScopeError, match=r"rank=r.*rank=None"):
        stream.scope(0)
    with stream.scope(0, rank=None):
        assert torch.equal(torch.rand(3), alone)
    draws = []
    for rank in range(2):
        with stream.scope(0, rank=rank):
            draws.append(torch.rand(3))
        assert torch.equal(
            draws[-1], torch.rand(3, generator=stream.at(0, "rank", rank).generator())
        )
    assert not torch.equal(*draws)
    registry = SeedRegistry(42)
    assert torch.equal(
        registry.model(torch.nn.Linear, 2, 2).weight,
        SeedRegistry(42).model(torch.nn.Linear, 2, 2).weight,
    )


@pytest.mark.parametrize("rank", [-1, True, "0", 1.0])
def test_bad_ranks_are_refused(stream, rank):
    """A rank is an int >= 0 or None."""
    with pytest.raises(InvalidNameError):
        stream.scope(0, rank=rank)


@pytest.mark.parametrize("timeout_s", [-1, "1", True, float("nan"), None])
def test_bad_timeouts_are_refused(stream, timeout_s):
    """A timeout is a number of seconds >= 0."""
    with pytest.raises(InvalidOptionError, match="seconds"):
        stream.scope(0, timeout_s=timeout_s)


def test_a_failure_while_entering_leaves_nothing_open(stream, monkeypatch):
    """An error in the middle of entering, an interrupt too, puts back what was set and frees the
    place."""
    before = rng.fingerprint()
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(*args, error=error, **kwargs):
            torch.rand(1)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("seedregistry.rng.state.numpy_state.claim", fail)
            with pytest.raises(error), stream.scope(0):
                pytest.fail("the body must not run")
        assert untouched(before)
        assert not rng.in_scope()
    with stream.scope(0, timeout_s=0):
        pass


def test_an_interrupt_while_leaving_still_restores(stream, monkeypatch):
    """An interrupt in the middle of restoring finishes the restoring, then goes on."""
    before = rng.fingerprint()
    real = random.setstate
    calls = []

    def interrupted(state):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(state)

    with monkeypatch.context() as patch:
        patch.setattr(random, "setstate", interrupted)
        with pytest.raises(KeyboardInterrupt), stream.scope(0):
            draw_all()
    assert untouched(before)
    assert not rng.in_scope()


@pytest.mark.moves_global_state
def test_a_scope_that_does_not_restore_is_caught(stream, monkeypatch):
    """The fingerprint finds a scope whose restoring was taken away."""
    before = rng.fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(rng.Captured, "restore", lambda self, late_seed=None: None)
        with stream.scope(0):
            pass
    assert not untouched(before)


# --- tasks and generators that take turns ---------------------------------------------------------


def test_tasks_that_take_turns_are_refused(stream):
    """A task that enters a scope while another task waits inside one of its own is refused; the
    other one draws what it draws alone."""
    alone = []
    with stream.scope(1):
        alone = [torch.rand(1).item(), torch.rand(1).item()]
    refused = []

    async def train(position, pause):
        try:
            with stream.scope(position):
                first = torch.rand(1).item()
                await asyncio.sleep(pause)
                return [first, torch.rand(1).item()]
        except ScopeError as error:
            refused.append(str(error))

    async def both():
        return await asyncio.gather(train(1, 0.01), train(2, 0.03))

    before = rng.fingerprint()
    assert asyncio.run(both()) == [alone, None]
    assert "suspended inside" in refused[0]
    assert "test_scope.py" in refused[0]
    assert untouched(before)


def test_generators_that_take_turns_are_refused(stream):
    """Two generators that are advanced in turn, each in a scope of its own, are refused; one after
    the other they are not."""

    def draws(position):
        with stream.scope(position):
            while True:
                yield torch.rand(1).item()

    before = rng.fingerprint()
    first, second = draws(1), draws(2)
    got = [next(first), next(first)]
    with pytest.raises(ScopeError, match="suspended inside"):
        next(second)
    first.close()
    assert untouched(before)
    third = draws(1)
    assert [next(third), next(third)] == got
    third.close()
    assert untouched(before)


def test_scopes_in_each_other_by_other_means(stream):
    """A scope in a @contextmanager, in an ExitStack, behind yield from, in an awaited coroutine, or
    under one that a generator left open, is a scope inside another."""

    @contextlib.contextmanager
    def managed(position):
        with stream.scope(position):
            yield

    def inner():
        with stream.scope(3):
            yield torch.rand(1).item()

    def outer():
        with stream.scope(2):
            yield from inner()

    async def awaited():
        with stream.scope(5):
            await asyncio.sleep(0)
            return torch.rand(1).item()

    async def waits():
        with stream.scope(4):
            return await awaited()

    before = rng.fingerprint()
    expected = {}
    for position in range(6):
        with stream.scope(position):
            expected[position] = torch.rand(1).item()
    with managed(0), stream.scope(1), managed(2):
        assert torch.rand(1).item() == expected[2]
    with contextlib.ExitStack() as stack:
        stack.enter_context(managed(1))
        stack.enter_context(stream.scope(2))
        assert next(outer()) == expected[3]
        assert asyncio.run(waits()) == expected[5]
    left_open = inner()
    next(left_open)
    with stream.scope(1):
        assert torch.rand(1).item() == expected[1]
    left_open.close()
    assert untouched(before)


# --- interrupts -----------------------------------------------------------------------------------


def interrupt_at(step, function):
    """Call a function with an interrupt before the n-th bytecode that it runs in the library's rng
    package; return whether there was one."""
    count = [0]

    def trace(frame, event, argument):
        if os.path.join("seedregistry", "rng") not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        count[0] += event == "opcode"
        if count[0] == step:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("is_nested", [False, True])
def test_an_interrupt_at_any_bytecode(stream, is_nested):
    """Ctrl-C at every single bytecode of entering and leaving: after the next scope at the latest
    every default generator is as it was, to the byte, and no scope is open."""

    def body():
        with stream.scope(0):
            if is_nested:
                with stream.scope(1):
                    np.random.randn()
            torch.rand(1)

    before = rng.fingerprint()
    with stream.scope(7):
        expected = draw_all()
    step, left_open = 0, 0
    while True:
        step += 1
        if not interrupt_at(step, body):
            break
        left_open += rng.in_scope()
        with stream.scope(7):
            assert draw_all() == expected
        assert not rng.in_scope(), step
        assert untouched(before), step
    assert step > 400
    assert left_open <= 0.02 * step


def test_an_interrupt_that_is_being_handled(stream):
    """While the interrupt of an __exit__ is handled a scope draws as always, and the state is given
    back there already."""
    before = rng.fingerprint()
    with stream.scope(7):
        expected = draw_all()
    code = type(stream.scope(0)).__exit__.__code__

    def trace(frame, event, argument):
        if frame.f_code is code:
            sys.settrace(None)
            raise KeyboardInterrupt

    tracer = sys.gettrace()
    try:
        with stream.scope(0):
            sys.settrace(trace)
    except KeyboardInterrupt:
        assert rng.in_scope()  # the first bytecode of __exit__ cannot be protected
        with stream.scope(7):
            assert draw_all() == expected
        assert untouched(before)
        assert not rng.in_scope()
    finally:
        sys.settrace(tracer)


def test_another_thread_takes_over_from_a_scope_that_nobody_can_leave(stream):
    """A scope whose __exit__ was interrupted does not make other threads wait."""
    before = rng.fingerprint()
    stream.scope(0).__enter__()  # nobody holds it
    drew = []

    def work():
        with stream.scope(1, timeout_s=5):
            drew.append(draw_all())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(drew) == 1
    assert untouched(before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # weakref callbacks
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timer signals")
def test_signals_at_random_moments():
    """Timer signals over scopes, builds and loaders leave every default generator as it was."""
    registry = SeedRegistry(42)
    stream = registry.stream("dropout")
    loader = registry.dataloader(Augmented(8), instance_id="a", batch_size=4)

    def nested(number):
        with stream.scope(0, number), stream.scope(1, number, torch_only=True):
            torch.rand(1)

    works = [
        nested,
        lambda number: SeedRegistry(1).model(torch.nn.Linear, 2, 2),
        lambda number: loader.batch(0, number % 2),
    ]
    interrupts = 0
    is_armed = False

    def interrupt(*_):
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    moments = random.Random(5)
    before = rng.fingerprint()
    try:
        for number in range(600):
            work = works[number % len(works)]
            started = time.perf_counter()
            work(number)
            elapsed_s = time.perf_counter() - started
            try:
                is_armed = True
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + moments.random() * elapsed_s)
                work(number)
                is_armed = False
            except KeyboardInterrupt:
                interrupts += 1
                # torch's own: no_grad, in which layers are initialised, may stay on.
                torch.set_grad_enabled(True)
            with stream.scope(2):
                pass
            assert untouched(before)
            assert not rng.in_scope()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert interrupts > 200
