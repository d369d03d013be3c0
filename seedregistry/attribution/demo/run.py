"""The demonstration on real data.

Train, attribute, retrain on subsets, score, and write down what was found.

Everything random comes from one registry; run twice, with whatever number of processes, it gives
the same numbers and one digest.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional, Tuple, Union

import attrs
import numpy as np
import torch

from seedregistry.attribution import baselines
from seedregistry.attribution.bridges import dattri_influence, require, traker_trak
from seedregistry.attribution.demo.plans import Plan, cifar10_plan, digits_plan
from seedregistry.attribution.demo.results import Demo
from seedregistry.attribution.jobs import check_workers, process_pool
from seedregistry.attribution.measurements import losses_of
from seedregistry.attribution.metagradients import Attribution, magic
from seedregistry.attribution.retraining import Retrainings, retrain
from seedregistry.attribution.scoring import score
from seedregistry.attribution.smoothness import metasmoothness
from seedregistry.attribution.training import Training
from seedregistry.determinism import torch_threads
from seedregistry.errors import InvalidOptionError
from seedregistry.registry import SeedRegistry

if TYPE_CHECKING:
    import concurrent.futures
    import os

    from seedregistry.attribution.states import State

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

_ABLATION = ("own-order", "subset", "own-init")


def _tell_nobody(what: str, done: int, total: int) -> None:
    del what, done, total


class _Clock:
    """Measures the parts of the job."""

    def __init__(self) -> None:
        self.seconds: Dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = work()
        self.seconds[name] = round(time.perf_counter() - started, 3)
        return found


def run_demo(
    out: Union[str, os.PathLike[str]],
    *,
    seed: int = 42,
    plan: Union[str, Callable[[SeedRegistry], Plan]] = "digits",
    root: Union[str, os.PathLike[str]] = "data",
    workers: Union[int, concurrent.futures.Executor] = 1,
    bridges: bool = False,
    device: Optional[str] = None,
    progress: Optional[Progress] = None,
) -> Demo:
    """Train, attribute, retrain and score; write ledger, table, scores, results and report.

    The files are ``ledger.jsonl``, ``ledger.tex``, ``scores.npz``, ``results.json``,
    ``report.html`` and ``wrong_seeds.png``, the picture of the first page.

    Killed and run again with the same folder, it goes on.

    Args:
        out: folder to write to, made when it is not there.
        seed: master seed.
        plan: ``"digits"``, ``"cifar10"``, or a function from a registry to a ``Plan``.
        root: where CIFAR-10 is.
        workers: as for ``retrain``.
        bridges: score dattri's influence function and traker's TRAK too. Their streams are in the
            ledger, and so in its digest.
        device: where it trains, such as ``"cuda"``; None is where the plan says.
        progress: told what is being done.

    Raises:
        RecipeError: dattri or traker is asked for and not installed.
        InvalidOptionError: no plan goes by that name, or ``workers`` is no number of processes.
    """
    importlib.import_module("seedregistry.attribution.demo.report")  # its packages may be missing

    plans: Dict[str, Callable[[SeedRegistry], Plan]] = {
        "digits": digits_plan,
        "cifar10": lambda registry: cifar10_plan(registry, root),
    }
    make = plans.get(plan) if isinstance(plan, str) else plan
    if make is None:
        raise InvalidOptionError(
            f"The plan must be one of {', '.join(map(repr, plans))}; got {plan!r}."
        )
    check_workers(workers)
    if bridges:
        require()
    folder = Path(out)
    kept = folder / "progress"
    kept.mkdir(parents=True, exist_ok=True)
    tell: Progress = progress or _tell_nobody
    registry = SeedRegistry(seed)
    made = make(registry)
    if device is not None:
        made = attrs.evolve(made, recipe=attrs.evolve(made.recipe, device=device))
    with contextlib.ExitStack() as stack:
        if isinstance(workers, int) and workers > 1:
            workers = stack.enter_context(
                process_pool(workers)
            )  # one for all parts: processes are slow to start
        demo = _carry_out(registry, made, kept, workers, tell, bridges=bridges)
    _write(demo, folder)
    shutil.rmtree(kept)
    return demo


def _carry_out(
    registry: SeedRegistry,
    plan: Plan,
    kept: Path,
    workers: Union[int, concurrent.futures.Executor],
    tell: Progress,
    *,
    bridges: bool,
) -> Demo:
    clock = _Clock()
    training = Training(registry, plan.recipe)
    targets = slice(0, plan.targets)
    measurement = losses_of(plan.test[0][targets], plan.test[1][targets])
    with registry.audit():
        final = clock.time(
            "train", lambda: training.train(progress=lambda done, total: tell("train", done, total))
        )
    attribution: Attribution = clock.time(
        "magic",
        lambda: magic(
            training,
            measurement,
            resume=kept / "magic.pt",
            progress=lambda done, total: tell("attribute", done, total),
        ),
    )
    retrainings = clock.time(
        "retrain",
        lambda: retrain(
            training,
            measurement,
            fractions=plan.fractions,
            subsets=plan.subsets,
            workers=workers,
            store=kept / "retrain",
            progress=lambda done, total: tell("retrain", done, total),
        ),
    )
    scores = {
        "MAGIC": attribution.scores,
        **clock.time("baselines", lambda: dict(_baselines(training, measurement, plan))),
        **(
            clock.time("bridges", lambda: dict(_bridge_scores(training, plan, final)))
            if bridges
            else {}
        ),
    }
    wrong = clock.time(
        "ablation", lambda: _ablate(training, measurement, plan, kept, workers, tell)
    )
    shared = tuple(one for one in retrainings if one.fraction in plan.ablation_fractions)
    with torch.no_grad(), torch_threads(plan.recipe.threads):
        outputs = training.outputs(final, plan.test[0]).cpu()
    return Demo(
        registry=registry,
        plan=plan,
        attribution=attribution,
        scores={
            name: tuple(
                score(one, given, registry=_if_magic(registry, name)) for one in retrainings
            )
            for name, given in scores.items()
        },
        retrainings=retrainings,
        wrong=wrong,
        ablation={
            "weights": tuple(score(one, attribution.scores) for one in shared),
            **{
                name: tuple(score(one, attribution.scores) for one in found)
                for name, found in wrong.items()
            },
        },
        smoothness=clock.time(
            "metasmoothness", lambda: metasmoothness(training, measurement, progress=False)
        ),
        test_accuracy=float((outputs.argmax(1) == plan.test[1]).to(torch.float64).mean()),
        seconds=clock.seconds,
    )


def _if_magic(registry: SeedRegistry, name: str) -> Optional[SeedRegistry]:
    return registry if name == "MAGIC" else None


def _baselines(
    training: Training, measurement: Any, plan: Plan
) -> Iterator[Tuple[str, torch.Tensor]]:
    states = [training.initial_state()]
    with torch_threads(training.recipe.threads):
        for epoch in range(1, training.recipe.epochs + 1):
            states.append(
                training.advance(states[-1], epoch * training.steps // training.recipe.epochs)
            )
    influence = baselines.influence_function(
        training, measurement, states[-1], iterations=plan.influence_iterations
    )
    yield "influence function (Gauss-Newton, CG)", influence
    yield "TracIn (every epoch)", baselines.tracin(training, measurement, states[1:])
    yield "gradient dot product", baselines.gradient_dot_product(training, measurement, states[-1])
    yield "random", baselines.random_scores(training, plan.targets)


def _bridge_scores(
    training: Training, plan: Plan, final: State
) -> Iterator[Tuple[str, torch.Tensor]]:
    examples = plan.test[0][: plan.targets], plan.test[1][: plan.targets]
    yield "influence function (dattri, CG)", dattri_influence(training, examples, final)
    yield "TRAK (traker, one model)", traker_trak(training, examples, final)


def _ablate(
    training: Training,
    measurement: Any,
    plan: Plan,
    kept: Path,
    workers: Union[int, concurrent.futures.Executor],
    tell: Progress,
) -> Dict[str, Tuple[Retrainings, ...]]:
    """Retrain with one wrong seed each."""
    found = {}
    for protocol in _ABLATION:
        found[protocol] = retrain(
            training,
            measurement,
            fractions=plan.ablation_fractions,
            subsets=plan.ablation_subsets,
            protocol=protocol,
            workers=workers,
            store=kept / "retrain",
            progress=lambda done, total, protocol=protocol: tell(
                f"retrain ({protocol})", done, total
            ),  # type: ignore[misc]
        )
    return found


def _write(demo: Demo, folder: Path) -> None:
    from seedregistry.attribution.demo import report

    ledger = demo.registry.ledger
    ledger.save(folder / "ledger.jsonl")
    (folder / "ledger.tex").write_text(ledger.to_latex(), encoding="utf-8")
    (folder / "results.json").write_text(
        json.dumps(demo.results(), indent=2) + "\n", encoding="utf-8"
    )
    arrays: Dict[str, np.ndarray] = {
        "scores": demo.attribution.scores.numpy(),
        "values": demo.attribution.values.numpy(),
    }
    for one in demo.retrainings:
        arrays[f"dropped_{one.fraction!r}"] = one.dropped.numpy()
        arrays[f"retrained_{one.fraction!r}"] = one.values.numpy()
    np.savez(folder / "scores.npz", **arrays)  # type: ignore[arg-type]
    (folder / "wrong_seeds.png").write_bytes(report.wrong_seeds(demo))
    (folder / "report.html").write_text(report.render(demo), encoding="utf-8")
