"""The journal: on disk when the call returns, whatever kills the process; one writer; a torn end
is cut off and said."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import codes, derivation, ledger_of, small_ledger
from torch import nn

from seedregistry import Ledger, SeedRegistry
from seedregistry.errors import (
    LedgerError,
    LedgerFormatError,
    LedgerIntegrityError,
    SeedCollisionError,
)
from seedregistry.ledger import Built, Derivation, Note, Run, Warned, records, verify_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.fixture(autouse=True)
def small_heap():
    """Let the collections that give a dropped registry's file back look at what a test made, not
    at all of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def experiment(journal=None, master=42) -> SeedRegistry:
    registry = SeedRegistry(master, journal=journal)
    registry.note(lr=0.1)
    registry.model(nn.Linear, 3, 4, instance_id="training")
    registry.split(range(10), [4, 6], instance_id="x")
    registry.generator("noise", "x")
    registry.child("fold", 0).seed("model", 1)
    return registry


def test_every_entry_is_on_disk_when_the_call_returns(path):
    """After each call the file has all entries of the ledger, and verifies; its content is that
    of a ledger in memory."""
    registry = SeedRegistry(42, journal=path)
    steps = [
        lambda: registry.seed("a"),
        lambda: registry.reserve("b", range(5)),
        lambda: registry.model(nn.Linear, 3, 4, instance_id="training"),
        lambda: registry.note(lr=0.1, epochs=3),
        lambda: registry.split(range(10), [4, 6]),
        lambda: registry.child("fold", 0).generator("noise", 1),
        registry.state_dict,
        lambda: registry.dataloader(range(8), instance_id="x", batch_size=4).batch(0, 0),
    ]
    for step in steps:
        step()
        assert list(Ledger.load(path)) == list(registry.ledger)
        assert verify_file(path).ok
    assert experiment().ledger.digest == experiment(path.with_name("b.jsonl")).ledger.digest


def test_closing_seals(path):
    """A journal is open until it is closed; a closed one has a seal and takes no more entries,
    in memory or on disk."""
    registry = experiment(path)
    assert not verify_file(path).is_sealed
    registry.ledger.close()
    registry.ledger.close()
    report = verify_file(path)
    assert report.ok
    assert report.is_sealed
    count = len(registry.ledger)
    with pytest.raises(LedgerError, match="closed"):
        registry.seed("late")
    assert ("late", None) not in registry
    assert len(registry.ledger) == count == report.entries
    Ledger().close()


def test_a_journal_goes_on(path):
    """Opened again, the chain goes on in a new session; what the run repeats counts once, what
    is new counts."""
    reference = experiment().ledger.digest
    for sessions in range(1, 4):
        registry = experiment(path)
        assert registry.ledger.digest == reference
        assert len(registry.ledger.find(Built)) == sessions
        if sessions == 2:
            registry.ledger.close()
        del registry
        gc.collect()
        assert verify_file(path).ok
        assert Ledger.load(path).digest == reference
    registry = experiment(path)
    registry.model(nn.Linear, 3, 4, instance_id="training")  # twice in one session is twice
    assert registry.ledger.digest == Ledger.load(path).digest != reference


def test_reading_a_resumed_journal_counts_once(path):
    """Tables, statements and comparisons count what was repeated after a restart once."""
    for _ in range(2):
        registry = experiment(path)
        registry.ledger.close()
    loaded, once = Ledger.load(path), experiment().ledger
    assert str(loaded) == str(once)
    assert loaded.to_csv() == once.to_csv()
    assert not loaded.diff(once)
    assert loaded.diff(once).purposes == ()


def test_the_seeds_of_a_resumed_journal_are_claimed(path):
    """A stream that would share the seed of one before the restart is refused."""
    SeedRegistry(42, journal=path).seed("model", "a_b")
    gc.collect()
    registry = SeedRegistry(42, journal=path)
    with pytest.raises(SeedCollisionError):
        registry.seed("model_a", "b")
    assert registry.seed("model", "a_b") == SeedRegistry(42).seed("model", "a_b")


# --- the same run ---------------------------------------------------------------------------------


plain = nn.Identity()
plain.weight, plain.bias = (nn.Parameter(torch.zeros(1)) for _ in range(2))


def trained(registry, lr=0.1, size=4, data=10, **notes):
    """What a training puts into its ledger."""
    registry.note(**{"lr": lr, **notes})
    model = registry.model(nn.Linear, 3, size, instance_id="training")
    registry.optimizer(torch.optim.SGD, model.parameters(), instance_id="training", lr=lr)
    registry.split(list(range(data)), [0.5, 0.5], instance_id="x")


def ended(journal, **changes) -> str:
    """The digest of a journal after a run that ended."""
    registry = SeedRegistry(42, journal=journal)
    trained(registry, **changes)
    registry.ledger.close()
    return registry.ledger.digest


@pytest.mark.parametrize(
    ("step", "which", "values"),
    [
        (lambda registry: registry.note(epochs=3, lr=0.2), "note 'lr'", ("0.1", "0.2")),
        (
            lambda registry: registry.optimizer(
                torch.optim.SGD, plain.parameters(), instance_id="training", lr=0.2
            ),
            "('optimizer', 'training')",
            ("groups lr", "0.1", "0.2"),
        ),
        (
            lambda registry: registry.optimizer(
                torch.optim.Adam, plain.parameters(), instance_id="training"
            ),
            "('optimizer', 'training')",
            ("torch.optim.sgd.SGD", "torch.optim.adam.Adam"),
        ),
        (
            lambda registry: registry.model(nn.Linear, 3, 5, instance_id="training"),
            "('model', 'training')",
            ("parameters", "16", "20"),
        ),
        (
            lambda registry: registry.split([*range(5), *range(5)], [5, 5], instance_id="x"),
            "split ('split', 'x')",
            ("indices",),
        ),
    ],
)
def test_a_journal_goes_on_with_the_same_run(path, monkeypatch, step, which, values):
    """Another value of a setting, of what is built or of a split is refused by name, with both
    values, before it is recorded; the run itself goes on."""
    digest = ended(path)
    registry = SeedRegistry(42, journal=path)
    if which.startswith("split"):
        monkeypatch.setattr(
            "seedregistry.data.split.split_dataset",
            lambda dataset, lengths, generator: ([dataset[:5], dataset[5:]], "5" * 64),
        )
    with pytest.raises(LedgerIntegrityError) as refused:
        step(registry)
    monkeypatch.undo()
    for text in (which, str(path), *values):
        assert text in str(refused.value)
    assert registry.ledger.find(Note) == (Note(name="lr", value=0.1),)
    trained(registry)
    assert registry.ledger.digest == digest
    assert registry.ledger.verify()
    assert verify_file(path).faults == ()


def test_a_run_that_says_several_values_goes_on(path):
    """A search that was killed goes on, from its beginning or from the next trial; what it says
    besides is another digest, and verify tells of a trial that only the later session has."""
    whole = SeedRegistry(42)
    for lr in (0.1, 0.2, 0.3):
        whole.note(lr=lr)
    killed = SeedRegistry(42, journal=path)
    killed.note(lr=0.1)
    killed.note(lr=0.2)
    killed.ledger.close()

    again = SeedRegistry(42, journal=path)
    for lr in (0.1, 0.2, 0.3):
        again.note(lr=lr)
    again.ledger.close()
    assert again.ledger.digest == whole.ledger.digest
    assert again.ledger.verify().faults == ()

    further = SeedRegistry(42, journal=path)
    further.note(lr=0.4)
    report = verify_file(path)
    assert report.ok
    assert [fault.code for fault in report.faults] == ["changed"]
    assert "note 'lr' is 0.4 here and 0.1, 0.2, 0.3 before" in str(report)
    assert report.faults == Ledger.load(path).verify().faults
    assert [fault.code for fault in further.ledger.verify().faults] == ["changed"]
    alone = SeedRegistry(42)
    alone.note(lr=0.4)
    assert further.ledger.digest not in {whole.ledger.digest, alone.ledger.digest}


def test_verify_tells_a_journal_of_two_runs(path):
    """A journal that an earlier version let go on with another setting does not verify."""
    trained(SeedRegistry(42, journal=path))
    gc.collect()
    registry = SeedRegistry(42, journal=path)
    registry.ledger._sessions = None  # as that version
    trained(registry, lr=0.2)
    report = verify_file(path)
    assert not report
    assert [fault.code for fault in report.faults] == ["contradiction", "contradiction"]
    assert "note 'lr' is 0.2 here and 0.1 before" in str(report)
    assert "groups lr 0.2 here and 0.1 before" in str(report)
    assert codes(registry.ledger.verify()) == codes(report)


# --- one writer -----------------------------------------------------------------------------------


@posix
def test_a_second_writer_is_refused(path):
    """While one registry writes a journal, another of this or any other process is refused;
    afterwards it may."""
    registry = SeedRegistry(42, journal=path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="being written"):
        SeedRegistry(42, journal=path)
    script = (
        "import sys; from seedregistry import SeedRegistry; SeedRegistry(42, journal=sys.argv[1])"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "LedgerError" in run.stderr
    assert "being written" in run.stderr
    with pytest.raises(LedgerError, match="name of its own"):
        registry.ledger.save(path)
    assert path.read_bytes() == before
    del registry
    gc.collect()
    subprocess.run(command, check=True)


@pytest.mark.parametrize("seed", [43, None])
def test_another_runs_journal_is_refused(path, seed):
    """A journal of another master seed or scheme is refused before anything is written, with the
    way to go on."""
    experiment(path)
    gc.collect()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"SeedRegistry\(42, scheme='sha256-31'"):
        SeedRegistry(seed, journal=path)
    with pytest.raises(LedgerError, match="sha256-256"):
        SeedRegistry(42, scheme="sha256-256", journal=path)
    assert path.read_bytes() == before


def test_what_is_no_journal_is_refused(tmp_path, path):
    """A saved ledger, another file or a folder is no journal: one clear error, and the file is
    as it was."""
    small_ledger().save(path)
    (tmp_path / "text").write_text("hello\n")
    for name, words in (("journal.jsonl", "saved ledger"), ("text", "no line of a ledger")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(LedgerFormatError, match=words):
            SeedRegistry(42, journal=tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    for bad in (tmp_path, tmp_path / "nosuch" / "x.jsonl", "a\0b", 7):
        with pytest.raises(LedgerError, match="Could not open the journal"):
            SeedRegistry(42, journal=bad)


def test_a_damaged_journal_does_not_go_on(path):
    """A journal with a changed line is kept as it is, and refused with the line."""
    experiment(path)
    gc.collect()
    changed = path.read_bytes().replace(b'"lr"', b'"lx"')
    path.write_bytes(changed)
    with pytest.raises(LedgerIntegrityError, match="line 4"):
        SeedRegistry(42, journal=path)
    assert path.read_bytes() == changed


def test_an_invalid_registry_makes_no_journal(path):
    """A registry that is refused for another argument leaves no file."""
    for wrong in ({"on_reuse": "x"}, {"purposes": "x"}, {"scheme": "x"}):
        with pytest.raises(ValueError, match="x"):
            SeedRegistry(42, journal=path, **wrong)
    assert not path.exists()


@pytest.mark.parametrize(
    ("rank", "name"), [("0", "journal.jsonl"), ("3", "journal.rank3.jsonl"), ("x", "journal.jsonl")]
)
def test_ranks_have_files_of_their_own(path, monkeypatch, rank, name):
    """Ranks above 0 write their rank before the suffix."""
    monkeypatch.setenv("RANK", rank)
    SeedRegistry(42, journal=path)
    assert [file.name for file in path.parent.iterdir()] == [name]


# --- the end of the file --------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_torn_end_is_reported_and_cut_off(tmp_path, data):
    """A journal cut off after any byte verifies up to its last whole line, says what is torn,
    and goes on."""
    path = tmp_path / "torn.jsonl"
    path.unlink(missing_ok=True)
    registry = SeedRegistry(42, journal=path)
    registry.seed("a", 'quote"')
    registry.note(x=1)
    del registry
    gc.collect()
    raw = path.read_bytes()
    first = raw.index(b"\n") + 1
    length = data.draw(st.integers(first, len(raw)))
    path.write_bytes(raw[:length])
    report = verify_file(path)
    assert report.ok
    whole = raw[:length].count(b"\n")
    is_torn = not raw[:length].endswith(b"\n")
    assert codes(report) == ([(whole + 1, "torn")] if is_torn else [])
    assert report.entries == max(whole - 2, 0)
    again = SeedRegistry(42, journal=path)
    assert again.seed("a", 'quote"') == SeedRegistry(42).seed("a", 'quote"')
    torn = again.ledger.find(Warned)
    assert [warned.category for warned in torn] == ["TornLine"] * is_torn
    del again
    gc.collect()
    assert codes(verify_file(path)) == []


@pytest.mark.parametrize("length", [0, 1, 40, 100])
def test_a_journal_whose_header_is_torn_begins_anew(path, length):
    """A process killed in its very first write leaves nothing to lose: the journal begins."""
    SeedRegistry(42, journal=path)
    gc.collect()
    path.write_bytes(path.read_bytes()[:length])
    SeedRegistry(42, journal=path).seed("a")
    gc.collect()
    report = verify_file(path)
    assert report.ok
    assert report.entries == 2


def test_lines_lost_from_the_end_are_found_against_a_printed_digest(path):
    """An open journal without its last lines verifies; its digest is not the one that was
    printed."""
    registry = experiment(path)
    printed = registry.ledger.digest
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    report = verify_file(path)
    assert report.ok
    assert not report.is_sealed
    assert report.digest != printed


@posix
@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_at_random_moments(tmp_path, rounds):
    """Killed with signal 9 at any moment, a journal has every entry that had returned, and
    verifies to its last whole line."""
    script = Path(__file__).with_name("kill_server.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(rounds)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == rounds
    counts = []
    for line in lines:
        journal, returned = line.rsplit(" ", 1)
        report = verify_file(journal)
        assert report.ok, str(report)
        assert {code for _, code in codes(report)} <= {"torn"}
        ids = [record.instance_id for record in Ledger.load(journal).find(Derivation)]
        assert ids == list(range(len(ids)))
        assert len(ids) >= int(returned)
        counts.append(len(ids))
        SeedRegistry(42, scheme="sha256-256", journal=journal)
        gc.collect()
        assert verify_file(journal).ok
    assert max(counts) > min(counts)


# --- errors in the middle -------------------------------------------------------------------------


@pytest.mark.parametrize("written", [0, 10])
def test_a_full_disk_is_one_error_and_loses_nothing(path, monkeypatch, written):
    """A write that fails, after some bytes or none, is an error for that call alone: nothing is
    derived, the file is whole."""
    registry = SeedRegistry(42, journal=path)
    registry.seed("a")
    before = path.read_bytes(), list(registry.ledger)
    write = os.write
    tries = []

    def full(descriptor, data):
        tries.append(1)
        if written and len(tries) == 1:
            return write(descriptor, bytes(data[:written]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("seedregistry.ledger.journal.os.write", full)
        with pytest.raises(LedgerError, match="No space left on device"):
            registry.seed("b")
    assert ("b", None) not in registry
    assert (path.read_bytes(), list(registry.ledger)) == before
    assert registry.seed("b") == SeedRegistry(42).seed("b")
    assert registry.model(nn.Linear, 2, 2, instance_id="x") is not None
    assert verify_file(path).ok
    assert list(Ledger.load(path)) == list(registry.ledger)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_devices_are_refused():
    """A device, which keeps nothing, is refused at once."""
    for device in ("/dev/full", "/dev/null"):
        with pytest.raises(LedgerError, match="no regular file"):
            SeedRegistry(42, journal=device)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_in_the_middle_of_a_write(path, monkeypatch, after):
    """Interrupted before or after the bytes are out, an entry is not recorded, and the next one
    follows the last whole line."""
    registry = SeedRegistry(42, journal=path)
    write = os.write

    def interrupted(descriptor, data):
        if after:
            write(descriptor, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("seedregistry.ledger.journal.os.write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            registry.seed("a")
    registry.seed("b")
    assert [record.purpose for record in Ledger.load(path).find(Derivation)] == ["b"]
    assert verify_file(path).ok


def test_an_entry_that_is_too_long_is_refused(path):
    """An entry that no reader would take is refused, and the journal goes on."""
    registry = SeedRegistry(42, journal=path)
    with pytest.raises(LedgerError, match="longer than"):
        registry.note(text="x" * (1 << 24))
    registry.note(text="x")
    assert len(registry.ledger.find(Note)) == 1
    assert verify_file(path).ok


@posix
@pytest.mark.parametrize("how", ["removed", "replaced", "renamed"])
def test_a_journal_that_leaves_its_name_is_missed(path, tmp_path, how):
    """Removed, renamed or replaced on the disk, a journal takes no more entries; the entries so
    far are in memory and can be saved, and back under its name the journal goes on."""
    registry = SeedRegistry(42, journal=path)
    registry.seed("a")
    aside = tmp_path / "aside.jsonl"
    path.rename(aside)
    if how == "removed":
        aside.unlink()
    elif how == "replaced":
        path.write_bytes(aside.read_bytes())
    digest = registry.ledger.digest
    for entry in (lambda: registry.seed("b"), lambda: registry.note(lr=0.1), registry.ledger.close):
        with pytest.raises(LedgerError, match="replaced" if how == "replaced" else "removed"):
            entry()
    assert ("b", None) not in registry
    assert registry.ledger.digest == digest
    registry.ledger.save(tmp_path / "saved.jsonl")
    assert Ledger.load(tmp_path / "saved.jsonl").digest == digest
    if how == "renamed":
        aside.rename(path)
        registry.seed("b")
        assert Ledger.load(path).digest == registry.ledger.digest != digest


def test_durable_flushes_every_entry(path, monkeypatch):
    """durable=True flushes to the disk before the call returns; without it nothing waits for the
    disk."""
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(
        "seedregistry.ledger.journal.os.fsync",
        lambda descriptor: (flushed.append(1), fsync(descriptor))[1],
    )
    registry = SeedRegistry(42, journal=path, durable=True)
    count = len(flushed)
    registry.seed("a")
    registry.seed("b")
    assert len(flushed) == count + 2
    other = SeedRegistry(42, journal=path.with_name("b.jsonl"))
    count = len(flushed)
    other.seed("a")
    assert len(flushed) == count


# --- threads and processes ------------------------------------------------------------------------


def test_threads_write_one_journal(path):
    """Eight threads at once lose nothing, write nothing twice, and the file has the order of the
    ledger in memory."""
    registry = SeedRegistry(42, scheme="sha256-256", journal=path)

    def work(worker: int) -> None:
        for i in range(100):
            registry.seed(f"own {worker}", i)
            registry.seed("shared", i)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify_file(path).ok
    assert list(Ledger.load(path)) == list(registry.ledger)
    names = [(record.purpose, record.instance_id) for record in registry.ledger.find(Derivation)]
    assert len(names) == len(set(names)) == 900


@posix
def test_a_forked_child_never_writes_its_parents_journal(path):
    """A forked child keeps its entries in memory and hands them over; the parent's file and lock
    stay the parent's."""
    registry = SeedRegistry(42, scheme="sha256-256", journal=path)
    registry.seed("parent")
    before = path.read_bytes()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        try:
            registry.seed("child")
            registry.generator("noise", 1)
            part = registry.ledger.part()
            os.write(
                writer, pickle.dumps((part, len(registry.ledger), path.read_bytes() == before))
            )
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        part, count, is_untouched = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    assert is_untouched
    assert path.read_bytes() == before
    assert count == 5
    assert [record.purpose for record in part.find(Derivation)] == ["child", "noise"]
    assert part.verify().ok
    registry.seed("parent", 2)
    registry.ledger.merge(part)
    registry.ledger.merge(part)
    registry.seed("parent", 3)
    assert list(Ledger.load(path).find(Derivation)) != []
    assert Ledger.load(path).digest == registry.ledger.digest
    assert verify_file(path).ok
    sequential = SeedRegistry(42, scheme="sha256-256")
    for words in (("parent",), ("child",), ("parent", 2), ("parent", 3)):
        sequential.seed(*words)
    sequential.generator("noise", 1)
    assert sequential.ledger.digest == registry.ledger.digest


def test_a_merge_that_fails_takes_nothing(path, monkeypatch):
    """A journal that cannot take a merged part keeps neither half of it, on disk or in memory."""
    registry = SeedRegistry(42, journal=path)
    other = ledger_of(
        [
            Run(master_seed=42, scheme="sha256-31"),
            derivation("model", "training"),
            derivation("noise", 7),
        ]
    )
    before = path.read_bytes(), list(registry.ledger)

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("seedregistry.ledger.journal.os.write", full)
        with pytest.raises(LedgerError, match="No space"):
            registry.ledger.merge(other)
    assert (path.read_bytes(), list(registry.ledger)) == before
    registry.ledger.merge(other)
    assert list(Ledger.load(path)) == list(registry.ledger)


SIGNALS = """
import signal, sys
from seedregistry.ledger import Ledger, Note
from seedregistry.errors import LedgerError
path, what = sys.argv[1:]
journal = Ledger.with_journal(path)
def handler(_, frame):
    if "/seedregistry/ledger/" not in frame.f_code.co_filename:
        return  # only in the middle of the library
    if what == "close":
        journal.close()
    elif what == "append":
        journal.append(Note(name="handler", value=1))
    else:
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
for i in range(4000):
    try:
        journal.append(Note(name="n", value=i))
    except (LedgerError, KeyboardInterrupt):
        pass
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_REAL, 0)
values = [record.value for record in Ledger.load(path)]
print(len(journal), [record.value for record in journal] == values)
journal.close()
"""


@posix
@pytest.mark.parametrize("what", ["interrupt", "append", "close"])
def test_signals_in_the_middle_of_writes(path, what):
    """Signal handlers that raise, append or close, again and again, leave a sound file that
    agrees with memory."""
    command = [sys.executable, "-W", "ignore", "-c", SIGNALS, str(path), what]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    count, agrees = run.stdout.split()
    report = verify_file(path)
    assert report.ok, str(report)
    assert report.entries == int(count)
    assert report.is_sealed
    assert agrees == "True"


@posix
def test_a_fork_while_another_thread_derives(path):
    """A child forked while another thread of the parent holds the registry's lock does not wait
    for it."""
    registry = SeedRegistry(42, scheme="sha256-256", journal=path)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with registry._shared.lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        registry.seed("a")
        os._exit(0)
    deadline = time.monotonic() + 20
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            pytest.fail("the child waits for a lock that nobody holds")
        time.sleep(0.01)
    done.set()
    thread.join()


def test_merged_seeds_are_claimed(path):
    """A stream that would share the seed of one that a worker derived is refused, and the
    journal goes on afterwards."""
    registry = SeedRegistry(42, journal=path)
    worker = pickle.loads(pickle.dumps(registry))
    worker.seed("m", "7")
    registry.ledger.merge(worker.ledger.part())
    with pytest.raises(SeedCollisionError):
        registry.seed("m", 7)
    registry.ledger.close()
    del registry, worker
    gc.collect()
    assert SeedRegistry(42, journal=path).ledger.verify().ok


def test_a_merge_takes_all_or_nothing(path):
    """Of several parts of which one cannot be written, none is taken, on disk or in memory."""
    registry = SeedRegistry(42, journal=path)
    good = ledger_of([Note(name="x", value=1)], origin="0" * 16)
    bad = ledger_of([], origin="f" * 16)
    bad._records.append(Note(name="x", value="y" * (17 << 20)))  # as earlier versions took it
    with pytest.raises(LedgerError, match="longer than"):
        registry.ledger.merge(good, bad)
    assert len(registry.ledger) == verify_file(path).entries == 1
    registry.ledger.merge(good)
    assert list(Ledger.load(path)) == list(registry.ledger)


def test_a_changed_last_byte_is_no_torn_line(path):
    """A whole line whose end was changed is damage; a line without its end is an entry that was
    never finished."""
    experiment(path).ledger.close()
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + b"x")
    assert not verify_file(path).ok
    path.write_bytes(raw[:-2])
    assert verify_file(path).ok


def test_closing_while_others_write_and_merge(path):
    """Threads that derive and merge while the journal is closed get their entry in or an error,
    and the file verifies."""
    registry = SeedRegistry(42, scheme="sha256-256", journal=path)
    part = ledger_of([Run(master_seed=42, scheme="sha256-256"), Note(name="x", value=1)])
    returned = []

    def write() -> None:
        for i in range(10_000):
            try:
                registry.seed("busy", i)
                registry.ledger.merge(part)
            except LedgerError:
                return
            returned.append(i)

    threads = [threading.Thread(target=write, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not returned:
        pass
    registry.ledger.close()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    report = verify_file(path)
    assert report.ok
    assert report.is_sealed
    assert {record.instance_id for record in Ledger.load(path).find(Derivation)} >= set(returned)


def test_copies_have_no_journal(path):
    """A pickled or copied registry goes on in memory."""
    registry = experiment(path)
    before = path.read_bytes()
    twin = pickle.loads(pickle.dumps(registry))
    twin.seed("more")
    assert path.read_bytes() == before
    # with what the run of the child is checked against
    assert [record.purpose for record in twin.ledger.part().find(Derivation)] == ["fold", "more"]


def test_every_record_of_a_registry_can_be_journalled(path):
    """Entries of circumstance go to the journal too."""
    registry = experiment(path)
    registry.record_environment(command_line=True, paths=True)
    values = dict(Ledger.load(path).find(records.EnvironmentSeen)[-1].values)
    assert "command_line" in values
    assert values["path.working_directory"] == str(Path.cwd())
    first = dict(registry.ledger.find(records.EnvironmentSeen)[0].values)
    assert not [name for name in first if name.startswith(("command_line", "path."))]
