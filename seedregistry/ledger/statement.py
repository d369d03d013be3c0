"""A statement on reproducibility in words: facts of a ledger that were checked or recorded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Iterator, Sequence

from seedregistry.common import digest
from seedregistry.common.identities import QualifiedId
from seedregistry.ledger import records
from seedregistry.ledger.tables import list_with_and, plural, visible

if TYPE_CHECKING:
    from seedregistry.ledger.records import Record
    from seedregistry.ledger.verification import Verification

_NAMED = ("python", "numpy", "torch", "torch.cuda", "system", "machine")
_MODES = {
    "off": "torch's deterministic algorithms were not asked for",
    "warn": (
        "torch's deterministic algorithms were asked for, in the mode that only warns where "
        "there is none"
    ),
    "strict": "torch's deterministic algorithms were asked for, with an error where there is none",
}


def write(entries: Sequence[Record], verification: Verification) -> str:
    """Return the statement: sentences in one paragraph."""
    sentences = [
        *_seeds(entries),
        *_verdict(verification),
        *_built(entries),
        *_audits(entries),
        *_determinism(entries),
        *_warnings(entries),
        *_environment(entries),
        f"The content of the ledger has the digest {verification.digest[: digest.SHORT_LENGTH]}.",
    ]
    return visible(" ".join(sentences))


def _seeds(entries: Sequence[Record]) -> Iterator[str]:
    runs = records.select(entries, records.Run)
    streams = set(map(QualifiedId.of, records.select(entries, records.Derivation)))
    if not streams:
        yield "No stream was derived."
        return
    roots = dict.fromkeys((run.master_seed, run.scheme) for run in runs if run.parent is None)
    origin = list_with_and(
        f"master seed {master_seed} under scheme {scheme}" for master_seed, scheme in roots
    )
    purposes = sorted({stream.purpose for stream in streams})
    count = (
        f"{plural(len(streams), 'random stream')} for {plural(len(purposes), 'purpose')} "
        f"({list_with_and(purposes)})"
    )
    yield f"{count} {'was' if len(streams) == 1 else 'were'} derived from {origin}."
    children = {run.master_seed for run in runs if run.parent is not None}
    if children:
        yield (
            f"Of the registries, {len(children)} "
            f"{'is a child' if len(children) == 1 else 'are children'} of another."
        )


def _verdict(verification: Verification) -> Iterator[str]:
    if verification.ok:
        yield f"All {verification.seeds} recorded seeds were derived again, with equal results."
    else:
        first = verification.faults[0]
        faults = plural(len(verification.faults), "fault")
        where = f"line {first.line} ({first.code})"
        yield f"THE LEDGER DOES NOT VERIFY: {faults}, the first at {where}."


def _built(entries: Sequence[Record]) -> Iterator[str]:
    models = [built for built in records.select(entries, records.Built) if built.purpose == "model"]
    digests = [dict(record.description).get("digest") for record in models]
    if models and all(isinstance(value, str) for value in digests):
        distinct = len(set(digests))
        times = plural(len(models), "model")
        built = (
            "was built; its initial parameters are recorded"
            if len(models) == 1
            else "were built; initial parameters are recorded"
        )
        yield f"{times} {built} by SHA-256 ({plural(distinct, 'distinct digest')})."


def _audits(entries: Sequence[Record]) -> Iterator[str]:
    audits = records.select(entries, records.Audited)
    undeclared = sum(audit.undeclared for audit in audits)
    broken = sum(not audit.completed for audit in audits)
    completed = len(audits) - broken

    if not audits:
        yield "No audit was made, so draws outside these streams are not excluded."
    elif undeclared:
        audited = f"{plural(len(audits), 'audited block')} of the run"
        yield (
            f"In {audited}, {plural(undeclared, 'draw')} outside these streams "
            f"{'was' if undeclared == 1 else 'were'} found."
        )
    elif completed:
        audited = f"{plural(completed, 'audited block')} of the run"
        yield (
            f"In {audited}, every draw that was seen came from these streams: the audit sees "
            "operators of torch and the default generators of torch, NumPy and Python. It does "
            "not see generators that the program makes itself, the operating system's "
            "(random.SystemRandom), a seed that is set anew inside a scope or a factory, other "
            "processes, or compiled code that leaves the default generators alone."
        )
    if broken:
        yield f"{plural(broken, 'audit')} ended with an exception, and cannot tell."


def _determinism(entries: Sequence[Record]) -> Iterator[str]:
    switches = records.select(entries, records.Determinism)
    if not switches:
        yield "Torch's determinism switches were not set through the registry."
        return
    modes = dict.fromkeys(_MODES.get(record.mode, f"mode {record.mode}") for record in switches)
    yield (
        f"At its setting of the global state, {list_with_and(modes)}; how long that stood is not "
        "recorded."
    )
    ineffective = dict.fromkeys(line for record in switches for line in record.ineffective)
    if ineffective:
        yield f"Of what was asked for, this took no effect: {'; '.join(ineffective)}."


def _warnings(entries: Sequence[Record]) -> Iterator[str]:
    counts = Counter(warned.category for warned in records.select(entries, records.Warned))
    if counts:
        yield (
            "Warnings were recorded: "
            f"{list_with_and(f'{count} x {name}' for name, count in sorted(counts.items()))}."
        )


def _environment(entries: Sequence[Record]) -> Iterator[str]:
    seen = [dict(record.values) for record in records.select(entries, records.EnvironmentSeen)]
    if not seen:
        yield "The environment was not recorded."
        return
    facts = []
    for name in _NAMED:
        values = list(
            dict.fromkeys(str(values[name]) for values in seen if values.get(name) is not None)
        )
        if values:
            facts.append(f"{name} {' and '.join(values)}")
    yield f"It ran with {', '.join(facts)}." if facts else "The environment was not recorded."
