"""MAGIC against finite differences of full retrainings, and what happens when a part of the
recursion is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import attrs
import numpy as np
import pytest
import torch
from kill import run_until
from recipes import ADAM, SIZE, VARIANTS, Noisy, held_out, mlp, mlp_with_dropout, recipe
from torch import nn

from seedregistry import SeedRegistry
from seedregistry.attribution import (
    Attribution,
    State,
    Training,
    losses_of,
    magic,
    margins_of,
    metagradients,
    metasmoothness,
    optimizers,
)
from seedregistry.errors import (
    InvalidOptionError,
    LedgerIntegrityError,
    RecipeError,
    ReplayError,
)
from seedregistry.ledger import Note

TESTS = losses_of(*held_out())
EXAMPLES = (0, 7, 23, 41, 59)
STEP = 1e-4


def differences(training: Training, measurement=TESTS) -> torch.Tensor:
    """Central finite differences of full retrainings, of fourth order: shape (targets,
    len(EXAMPLES))."""
    columns = []
    for example in EXAMPLES:
        values = {}
        for times in (-2, -1, 1, 2):
            weights = torch.ones(SIZE, dtype=torch.float64)
            weights[example] += times * STEP
            with torch.no_grad():
                values[times] = measurement(training, training.train(weights))
        columns.append((8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * STEP))
    return torch.stack(columns, dim=1)


def error(training: Training, scores: torch.Tensor, measurement=TESTS) -> float:
    """Greatest error of the scores, relative to the greatest score."""
    selected = scores[:, EXAMPLES]
    return float((selected - differences(training, measurement)).abs().max() / selected.abs().max())


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_derivatives_of_retraining(name):
    """Metagradients agree with finite differences of whole retrainings to a relative error of
    1e-6, for every recipe."""
    training = Training(SeedRegistry(42), recipe(**VARIANTS[name]))
    attribution = magic(training, TESTS)
    assert error(training, attribution.scores) < 1e-6
    assert attribution.state.fingerprint() == training.train().fingerprint()


def test_margins_and_measurements_of_ones_own():
    """Margins, and any function of the final state, are differentiated likewise."""
    training = Training(SeedRegistry(42), recipe())
    margins = margins_of(*held_out())

    def size(training: Training, state: State) -> torch.Tensor:
        return torch.stack([state.parameters[0].square().sum(), state.parameters[1].sum()])

    for measurement in (margins, size):
        attribution = magic(training, measurement)
        assert error(training, attribution.scores, measurement) < 1e-6


@pytest.mark.parametrize("keep", [0, 1, 2, 5, 100])
def test_every_budget_gives_the_same_bits(keep, tmp_path):
    """However few states are kept, in memory or in files, the scores are equal bits; the budget
    is kept, and no file stays."""
    training = Training(SeedRegistry(42), recipe(**VARIANTS["dropout"]))
    expected = magic(training, TESTS).scores
    attribution = magic(training, TESTS, keep=keep)
    assert torch.equal(attribution.scores, expected)
    assert attribution.states_kept <= keep
    spilled = magic(training, TESTS, keep=keep, spill=tmp_path)
    assert torch.equal(spilled.scores, expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["momentum and weight decay", "adamw", "dropout", "norms"])
def test_all_targets_at_once_or_one_by_one(name):
    """Differentiating for all targets at once gives the scores of one by one; layers that cannot
    are done one by one."""
    training = Training(SeedRegistry(42), recipe(**VARIANTS[name]))
    separate = magic(training, TESTS, vectorized=False).scores
    assert torch.allclose(magic(training, TESTS).scores, separate, rtol=1e-10, atol=1e-14)


# --- deliberately wrong ---------------------------------------------------------------------------


def test_a_recursion_without_momentum_is_caught(monkeypatch):
    """Leaving the momentum buffer's adjoint out of the recursion fails the test against finite
    differences."""
    training = Training(SeedRegistry(42), recipe())
    step = metagradients._Adjoint.step

    def forgetful(self, state) -> None:
        step(self, state)
        count = len(state.parameters)
        self._adjoints = (
            *self._adjoints[:count],
            *(torch.zeros_like(adjoint) for adjoint in self._adjoints[count:]),
        )

    monkeypatch.setattr(metagradients._Adjoint, "step", forgetful)
    assert error(training, magic(training, TESTS).scores) > 1e-2


def test_a_rule_that_is_not_the_optimizers_is_caught(monkeypatch):
    """A step that forgets weight decay is not the training that torch ran."""
    rule = optimizers.OPTIMIZERS[torch.optim.SGD]

    def without_decay(parameter, gradient, slots, hyper, step, eps_root):
        return rule(parameter, gradient, slots, {**hyper, "weight_decay": 0}, step, eps_root)

    honest = Training(SeedRegistry(42), recipe())
    monkeypatch.setitem(optimizers.OPTIMIZERS, torch.optim.SGD, without_decay)
    scores = magic(honest, TESTS).scores
    monkeypatch.undo()
    assert error(honest, scores) > 1e-4


@pytest.mark.parametrize("what", ["order", "dropout"])
def test_a_replay_with_another_seed_is_caught(what, monkeypatch):
    """Replaying with another order of the examples, or other dropout, fails the test against
    finite differences."""
    honest = Training(SeedRegistry(42), recipe(**VARIANTS["dropout"]))
    other = Training(
        SeedRegistry(42),
        recipe(**VARIANTS["dropout"], order_id="other" if what == "order" else None),
    )
    if what == "dropout":
        other._dropout = SeedRegistry(43).stream("dropout", "training")
    assert error(honest, magic(other, TESTS).scores) > 1e-2


def test_adam_without_a_softened_root_says_so():
    """Where a second moment is zero its root has no derivative: the error names the option that
    mends it."""

    def half_dead() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            model[0].bias.fill_(-100.0)
        return model

    adam = {"optimizer": torch.optim.Adam, "optimizer_options": {"lr": 0.02}, "model": half_dead}
    with pytest.raises(RecipeError, match="eps_root"):
        magic(Training(SeedRegistry(42), recipe(**adam)), TESTS)
    magic(Training(SeedRegistry(42), recipe(**adam, eps_root=1e-10)), TESTS)


# --- going on after a kill ------------------------------------------------------------------------

SCRIPT = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from recipes import recipe, held_out, VARIANTS
from seedregistry import SeedRegistry
from seedregistry.attribution import Training, losses_of, magic
training = Training(SeedRegistry(42), recipe(**VARIANTS["dropout"], epochs=40))
def progress(done, total):
    print(done, flush=True)
attribution = magic(training, losses_of(*held_out()), resume=sys.argv[2], progress=progress)
torch.save(attribution.scores, sys.argv[3])
"""


def test_a_walk_that_was_killed_goes_on(tmp_path):
    """Killed with signal 9 in the backward pass and run again, the walk goes on where it was and
    gives the same bits."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SCRIPT,
        os.path.dirname(__file__),
        tmp_path / "walk.pt",
        tmp_path / "scores.pt",
    ]
    run_until(command, "120")
    assert (tmp_path / "walk.pt").exists()
    assert not (tmp_path / "scores.pt").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(again.stdout.splitlines()[0]) == 101
    assert not (tmp_path / "walk.pt").exists()
    training = Training(SeedRegistry(42), recipe(**VARIANTS["dropout"], epochs=40))
    assert torch.equal(
        torch.load(tmp_path / "scores.pt", weights_only=True), magic(training, TESTS).scores
    )


def test_progress_of_another_training_is_refused(tmp_path):
    """A file of progress that belongs to another training, or another measurement, is refused
    and left alone."""
    path = tmp_path / "walk.pt"
    training = Training(SeedRegistry(42), recipe(epochs=20))

    def stop(done, total) -> None:
        if done == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        magic(training, TESTS, resume=path, progress=stop)
    before = path.read_bytes()
    for other, measurement in (
        (Training(SeedRegistry(43), recipe(epochs=20)), TESTS),
        (training, margins_of(*held_out())),
    ):
        with pytest.raises(ReplayError, match=r"another training.*fingerprint is .* in the file"):
            magic(other, measurement, resume=path)
    assert path.read_bytes() == before
    flipped = bytearray(before)
    flipped[-100] ^= 1
    for damaged in (before[: len(before) // 2], bytes(flipped), b"hello", b""):
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(ReplayError, match="damaged"):
            magic(training, TESTS, resume=tmp_path / "damaged.pt")
    assert torch.equal(magic(training, TESTS, resume=path).scores, magic(training, TESTS).scores)


def test_folders_are_made_before_the_work(tmp_path):
    """Progress and kept states may go into folders that are not there yet."""
    training = Training(SeedRegistry(42), recipe(epochs=1))
    magic(training, TESTS, resume=tmp_path / "a" / "walk.pt", spill=tmp_path / "b" / "c")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]


def test_the_ledger_notes_what_was_attributed():
    """The ledger has what the run started from, as those of retrainings have, and prints it."""
    registry = SeedRegistry(42)
    training = Training(registry, recipe(epochs=1))
    attribution = magic(training, TESTS)
    assert attribution.fingerprint == training.whole_fingerprint()
    assert f"run {training.initial_state().fingerprint()[:12]}, targets 5" in str(registry.ledger)
    assert "note training training: " in str(registry.ledger)
    digest = registry.ledger.digest
    assert len(registry.ledger.find(Note)) == 2
    magic(training, TESTS)  # again: both are there already
    assert len(registry.ledger.find(Note)) == 2
    assert registry.ledger.digest == digest


def test_a_layer_that_cannot_be_done_for_all_targets_is_said(caplog):
    """Targets are done one by one then, with a warning in the log; asked for all at once, an
    error names the way out."""
    training = Training(SeedRegistry(42), recipe(**VARIANTS["norms"], epochs=1))
    magic(training, TESTS)
    if not caplog.records:
        pytest.skip("this torch differentiates nn.GroupNorm for many targets at once")
    assert "one by one" in caplog.text
    with pytest.raises(RecipeError, match=r"attribution\.GroupNorm"):
        magic(training, TESTS, vectorized=True)


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measurement", "words"),
    [
        (lambda training, state: 3.0, "shape \\(targets,\\)"),
        (lambda training, state: state.parameters[0].sum(), "shape \\(\\)"),
        (lambda training, state: torch.zeros(3), "depends on"),
        (lambda training, state: state.parameters[0][:, 0] * float("nan"), "not finite"),
    ],
)
def test_measurements_that_are_none(measurement, words):
    """What is no vector of finite numbers of the state is refused before the walk goes on."""
    with pytest.raises(RecipeError, match=words):
        magic(Training(SeedRegistry(42), recipe(epochs=1)), measurement)


@pytest.mark.parametrize(
    "options", [{"keep": -1}, {"keep": 2.5}, {"keep": True}, {"vectorized": "yes"}]
)
def test_options_that_are_none(options):
    """A wrong option is refused before anything is computed."""
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        magic(Training(SeedRegistry(42), recipe()), TESTS, **options)


def test_predictions():
    """predict is the first order of a change of weights."""
    training = Training(SeedRegistry(42), recipe())
    attribution = magic(training, TESTS)
    weights = torch.ones(3, SIZE, dtype=torch.float64)
    weights[0, 5], weights[1, :10] = 0, 0
    predicted = attribution.predict(weights)
    assert torch.allclose(predicted[0], attribution.values - attribution.scores[:, 5])
    assert torch.allclose(predicted[1], attribution.values - attribution.scores[:, :10].sum(1))
    assert torch.equal(predicted[2], attribution.values)


def test_metasmoothness_tells_smooth_from_rough():
    """A gentle training is smooth; one with a wild learning rate is not, and gets advice."""
    smooth = metasmoothness(
        Training(SeedRegistry(42), recipe(optimizer_options={"lr": 0.05})), TESTS
    )
    assert smooth.value > 0.98
    assert smooth.advice == ""
    rough = metasmoothness(
        Training(
            SeedRegistry(42), recipe(optimizer_options={"lr": 8.0, "momentum": 0.9}, epochs=6)
        ),
        TESTS,
    )
    assert rough.value < 0.9
    assert "learning rate" in rough.advice
    for wrong in ({"step": 0}, {"direction": torch.ones(3)}):
        with pytest.raises(InvalidOptionError):
            metasmoothness(Training(SeedRegistry(42), recipe()), TESTS, **wrong)


def test_walking_moves_no_generator():
    """Attribution draws at positions alone: the default generators and the registry's streams
    are as before."""
    training = Training(SeedRegistry(42), recipe(dataset=Noisy(), model=mlp_with_dropout))
    before = training.train().fingerprint()
    magic(training, TESTS)
    assert training.train().fingerprint() == before
    assert attrs.evolve(training.initial_state(), step=1).step == 1
    assert mlp is not None
    assert ADAM


def test_targets_that_do_not_fit_into_memory(monkeypatch, caplog):
    """Where all targets at once do not fit, as many are done as do, which is said; the scores are
    the same but for rounding. Where not even one fits, the error is torch's."""
    training = Training(SeedRegistry(42), recipe())
    expected = magic(training, TESTS).scores
    most = 2
    grad = torch.autograd.grad

    def scarce(outputs, inputs, grad_outputs=None, **options):
        if options.get("is_grads_batched") and len(grad_outputs[0]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return grad(outputs, inputs, grad_outputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", scarce)
    with caplog.at_level("WARNING", logger="seedregistry"):
        scores = magic(training, TESTS).scores
    assert torch.allclose(scores, expected, rtol=1e-10, atol=1e-14)
    assert [record.getMessage()[:9] for record in caplog.records] == ["5 targets", "3 targets"]
    most = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        magic(training, TESTS)


def test_a_kept_state_of_which_a_bit_has_changed(tmp_path, monkeypatch):
    """A state that was spilled, and comes back as another, ends the walk by name."""
    training = Training(SeedRegistry(42), recipe(epochs=2))
    load = torch.load

    def damaged(path, **options):
        tensors = load(path, **options)
        tensors[0].view(-1)[0] += 1e-12
        return tensors

    monkeypatch.setattr(torch, "load", damaged)
    with pytest.raises(ReplayError, match=r"kept state.* is damaged: it holds another state"):
        magic(training, TESTS, spill=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_scores_go_through_a_file(tmp_path):
    """Scores that were written are read back with what they are of; a damaged file, one of another
    kind and one that does not say of what its scores are, are refused by name."""
    training = Training(SeedRegistry(42), recipe(epochs=1))
    attribution = magic(training, TESTS)
    path = tmp_path / "scores"
    attribution.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["scores"]
    again = Attribution.load(path)
    assert torch.equal(again.scores, attribution.scores)
    assert torch.equal(again.values, attribution.values)
    assert (again.fingerprint, again.measurement) == (
        attribution.fingerprint,
        attribution.measurement,
    )
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-30], whole[:200] + b"\x00" + whole[201:]):
        path.write_bytes(content)
        with pytest.raises(ReplayError, match="no file of scores, or damaged"):
            Attribution.load(path)
    np.savez(tmp_path / "old.npz", scores=np.zeros((5, 60)), values=np.zeros(5), run="a" * 64)
    with pytest.raises(ReplayError, match="does not say of which training"):
        Attribution.load(tmp_path / "old.npz")


def test_a_journal_of_another_attribution_refuses_before_the_work(tmp_path, monkeypatch):
    """Where a journal goes on and something else is attributed, that is said before the walk: no
    work is lost to it."""

    def attribute(measurement, progress):
        registry = SeedRegistry(42, journal=tmp_path / "journal.jsonl")
        try:
            return magic(Training(registry, recipe(epochs=1)), measurement, progress=progress)
        finally:
            registry.ledger.close()

    first = attribute(TESTS, progress=False)
    assert torch.equal(attribute(TESTS, progress=False).scores, first.scores)
    steps = []
    with pytest.raises(LedgerIntegrityError, match="magic training"):
        attribute(margins_of(*held_out()), progress=lambda done, total: steps.append(done))
    assert steps == []
