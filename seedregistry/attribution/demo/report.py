"""The report of a demonstration: one self-contained HTML file, with its pictures inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import torch

from seedregistry.attribution.retraining import PROTOCOLS
from seedregistry.attribution.scoring import ranks

try:
    import jinja2
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:
    needed = str(error.name).partition(".")[0]
    message = f"seedregistry.attribution.demo needs {needed}: pip install 'seedregistry[report]'"
    raise ImportError(message, name=error.name) from error

if TYPE_CHECKING:
    from seedregistry.attribution.demo.results import Demo
    from seedregistry.attribution.retraining import Retrainings

_SHOWN_TARGETS = 4
_SHOWN_EXAMPLES = 4
_BLUE, _RED, _GREY = "#2563eb", "#dc2626", "#9ca3af"

_CAPTIONS = {
    "weights": "all seeds shared",
    "own-order": "another order",
    "subset": "the subset's own order",
    "own-init": "another initialisation",
}

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(demo: Demo) -> str:
    """Return the report as HTML that asks for nothing outside itself."""
    magic = demo.scores["MAGIC"]
    fractions = [f"{100 * score.fraction:g}%" for score in magic]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    state = demo.attribution.state
    facts: Dict[str, Any] = {
        "steps": 0 if state is None else state.step,
        "size": demo.plan.recipe.size,
        "accuracy": demo.test_accuracy,
        "retrained": sum(score.subsets for score in magic),
        "seed": demo.registry.master_seed,
        "digest": demo.registry.ledger.short_digest,
        "subsets": demo.plan.subsets,
        "targets": demo.plan.targets,
        "fractions": fractions,
        "lds": [
            (name, [f"{score.mean:.3f}" for score in scores])
            for name, scores in demo.scores.items()
        ],
        "slopes": [(fraction, score.slope) for fraction, score in zip(fractions, magic)],
        "smoothness": demo.smoothness.value,
        "advice": demo.smoothness.advice,
        "ablation_fractions": [f"{100 * fraction:g}%" for fraction in demo.plan.ablation_fractions],
        "ablation": [
            (PROTOCOLS[name], [f"{score.mean:.3f}" for score in scores])
            for name, scores in demo.ablation.items()
        ],
        "ledger": str(demo.registry.ledger),
        "statement": demo.registry.ledger.statement(),
        "scatter": _scatter(demo),
        "wrong_seeds": _address(wrong_seeds(demo), "png"),
        "examples": _examples(demo),
    }
    return template.render(facts)


def _bytes_of(figure: Figure, form: str) -> bytes:
    """Return a figure as the bytes of a file."""
    # A fixed salt and no date: an equal figure is equal bytes.
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "seedregistry"}):
        figure.savefig(
            out,
            format=form,
            bbox_inches="tight",
            dpi=120,
            metadata={"Date": None} if form == "svg" else None,
        )
    return out.getvalue()


def _address(picture: bytes, kind: str) -> str:
    """Return a picture as an address that holds its data."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _predict(demo: Demo, retrainings: Retrainings) -> torch.Tensor:
    """Return the values that are predicted for each retraining: shape (subsets, targets)."""
    weights = torch.ones(
        len(retrainings.dropped), demo.plan.recipe.size, dtype=demo.attribution.scores.dtype
    )
    return demo.attribution.predict(weights.scatter_(1, retrainings.dropped, 0.0))


def _scatter(demo: Demo) -> str:
    chosen = (
        demo.retrainings[0],
        demo.retrainings[len(demo.retrainings) // 2],
        demo.retrainings[-1],
    )
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    for axes, retrainings in zip(figure.subplots(1, 3), chosen):
        predicted = (_predict(demo, retrainings) - demo.attribution.values).flatten()
        actual = (retrainings.values - demo.attribution.values).flatten()
        axes.axline((0, 0), slope=1, color=_GREY, linewidth=1)
        axes.scatter(predicted, actual, s=4, color=_BLUE, alpha=0.4, linewidths=0, rasterized=True)
        axes.set_title(f"{100 * retrainings.fraction:g}% left out", fontsize=10)
        axes.set_xlabel("predicted change of the loss")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("actual change")
    return _address(_bytes_of(figure, "svg"), "svg+xml")


def wrong_seeds(demo: Demo) -> bytes:
    """Return a picture, PNG, of what one wrong seed costs.

    It shows, for each protocol, the ranks of predicted and actual losses. Each point is a test
    image after a retraining; both ranks are among the retrainings, for that image.
    """
    fraction = demo.plan.ablation_fractions[0]
    shared = next(each for each in demo.retrainings if each.fraction == fraction)
    panels = {"weights": shared, **{name: each[0] for name, each in demo.wrong.items()}}
    figure = Figure(figsize=(2.4 * len(panels), 2.9), layout="constrained")

    for axes, (name, retrainings) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        predicted = ranks(_predict(demo, retrainings).numpy())
        actual = ranks(retrainings.values.numpy())
        colour = _BLUE if name == "weights" else _RED
        axes.scatter(predicted, actual, s=5, color=colour, alpha=0.25, linewidths=0)
        axes.set_title(f"{demo.ablation[name][0].mean:.3f}", fontsize=20, color=colour)
        axes.set_xlabel(_CAPTIONS[name], fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal")

    figure.axes[0].set_ylabel("rank of the actual loss", fontsize=9)
    figure.supxlabel("rank of the predicted loss", fontsize=9)
    return _bytes_of(figure, "png")


def _examples(demo: Demo) -> str:
    columns = 1 + 2 * _SHOWN_EXAMPLES
    rows = min(_SHOWN_TARGETS, demo.plan.targets)
    figure = Figure(figsize=(9.5, 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)

    for row, target in enumerate(_hardest(demo, rows)):
        scores = demo.attribution.scores[target]
        helpful, harmful = (
            scores.argsort()[:_SHOWN_EXAMPLES],
            scores.argsort(descending=True)[:_SHOWN_EXAMPLES],
        )
        images: List[Tuple[torch.Tensor, int, str]] = [
            (demo.plan.test[0][target], int(demo.plan.test[1][target]), "black")
        ]
        for indices, colour in ((helpful, _BLUE), (harmful, _RED)):
            images += [
                (demo.plan.train[0][index], int(demo.plan.train[1][index]), colour)
                for index in indices.tolist()
            ]
        for axes, (image, label, colour) in zip(grid[row], images):
            # The map of colours is for images without channels; others have colours.
            axes.imshow(_as_image(image, demo.plan.image_shape), cmap="gray_r")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(str(label), fontsize=9, color=colour, pad=2)
            axes.spines[:].set_color(colour)
    grid[0][0].set_ylabel("test", fontsize=8)
    return _address(_bytes_of(figure, "png"), "png")


def _hardest(demo: Demo, count: int) -> List[int]:
    """Return the targets with the highest losses, of which there is most to explain."""
    hardest: List[int] = demo.attribution.values.argsort(descending=True)[:count].tolist()
    return hardest


def _as_image(values: torch.Tensor, shape: Tuple[int, ...]) -> Any:
    image = values.reshape(shape)
    image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    return image.permute(1, 2, 0).numpy() if len(shape) == 3 else image.numpy()  # noqa: PLR2004 - channels, height, width
