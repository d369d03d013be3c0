"""The demonstration on real data: train, attribute, retrain on subsets, score, write it down.

Everything random comes from one registry. Run twice, with whatever number of processes, it gives
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
from seedregistry.common.options import check_choice
from seedregistry.determinism import torch_threads
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
    """Measures how long each step of the demonstration takes, in seconds."""

    def __init__(self) -> None:
        self.seconds: Dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - started, 3)
        return result


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
        workers: number of processes that retrain, or an executor, as for ``retrain``.
        bridges: score dattri's influence function and traker's TRAK too. Their streams are in the
            ledger, and so in its digest.
        device: where it trains, such as ``"cuda"``; None is where the plan says.
        progress: told what is being done, how much of it is done, and how much there is.

    Returns:
        What came out, as the files have it.

    Raises:
        ImportError: matplotlib or jinja2 is not installed.
        RecipeError: dattri or traker is asked for and not installed.
        InvalidOptionError: no plan goes by that name, or ``workers`` is no number of processes.
    """
    # Before the work: what the report needs may not be installed.
    importlib.import_module("seedregistry.attribution.demo.report")
    plans: Dict[str, Callable[[SeedRegistry], Plan]] = {
        "digits": digits_plan,
        "cifar10": lambda registry: cifar10_plan(registry, root),
    }
    if not callable(plan):
        check_choice(plan, "plan", plans, hint=", or a function from a registry to a Plan")
        plan = plans[plan]
    check_workers(workers)
    if bridges:
        require()

    folder = Path(out)
    unfinished = folder / "progress"
    unfinished.mkdir(parents=True, exist_ok=True)
    registry = SeedRegistry(seed)
    task = plan(registry)
    if device is not None:
        task = attrs.evolve(task, recipe=attrs.evolve(task.recipe, device=device))

    with contextlib.ExitStack() as stack:
        if isinstance(workers, int) and workers > 1:
            # The same pool for all retrainings: processes are slow to start.
            workers = stack.enter_context(process_pool(workers))
        tell: Progress = progress or _tell_nobody
        demo = _carry_out(registry, task, unfinished, workers, tell, bridges=bridges)
    _write(demo, folder)
    shutil.rmtree(unfinished)
    return demo


def _carry_out(
    registry: SeedRegistry,
    plan: Plan,
    unfinished: Path,
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
            resume=unfinished / "magic.pt",
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
            store=unfinished / "retrain",
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
        "ablation", lambda: _ablate(training, measurement, plan, unfinished, workers, tell)
    )
    compared = {
        "weights": tuple(each for each in retrainings if each.fraction in plan.ablation_fractions),
        **wrong,
    }

    with torch.no_grad(), torch_threads(plan.recipe.threads):
        outputs = training.outputs(final, plan.test[0]).cpu()
    return Demo(
        registry=registry,
        plan=plan,
        attribution=attribution,
        scores={
            # Only MAGIC's has an interval: the stream of its draws has the fraction's name alone.
            name: tuple(
                score(each, values, registry=registry if name == "MAGIC" else None)
                for each in retrainings
            )
            for name, values in scores.items()
        },
        retrainings=retrainings,
        wrong=wrong,
        ablation={
            name: tuple(score(each, attribution.scores) for each in group)
            for name, group in compared.items()
        },
        smoothness=clock.time(
            "metasmoothness", lambda: metasmoothness(training, measurement, progress=False)
        ),
        test_accuracy=float((outputs.argmax(1) == plan.test[1]).to(torch.float64).mean()),
        seconds=clock.seconds,
    )


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
    unfinished: Path,
    workers: Union[int, concurrent.futures.Executor],
    tell: Progress,
) -> Dict[str, Tuple[Retrainings, ...]]:
    """Retrain with one wrong seed, for each protocol that has one."""
    wrong = {}
    for protocol in _ABLATION:
        wrong[protocol] = retrain(
            training,
            measurement,
            fractions=plan.ablation_fractions,
            subsets=plan.ablation_subsets,
            protocol=protocol,
            workers=workers,
            store=unfinished / "retrain",
            progress=lambda done, total, protocol=protocol: tell(
                f"retrain ({protocol})", done, total
            ),  # type: ignore[misc]
        )
    return wrong


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
        "fingerprint": np.array(demo.attribution.fingerprint),
        "measurement": np.array(demo.attribution.measurement),
    }
    for each in demo.retrainings:
        arrays[f"dropped_{each.fraction!r}"] = each.dropped.numpy()
        arrays[f"retrained_{each.fraction!r}"] = each.values.numpy()
    np.savez(folder / "scores.npz", **arrays)  # type: ignore[arg-type]
    (folder / "wrong_seeds.png").write_bytes(report.wrong_seeds(demo))
    (folder / "report.html").write_text(report.render(demo), encoding="utf-8")
