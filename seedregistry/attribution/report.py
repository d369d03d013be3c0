"""The report of a demonstration: one self-contained HTML file, with its pictures inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import torch

from seedregistry.attribution.lds import PROTOCOLS

try:
    import jinja2
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:
    needed = str(error.name).partition(".")[0]
    message = f"seedregistry.attribution.report needs {needed}: pip install 'seedregistry[report]'"
    raise ImportError(message, name=error.name) from error

if TYPE_CHECKING:
    from seedregistry.attribution.demo import Demo

__all__ = ["render"]

_SHOWN_TARGETS = 4
_SHOWN_EXAMPLES = 4
_BLUE, _RED, _GREY = "#2563eb", "#dc2626", "#9ca3af"

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(demo: Demo) -> str:
    """Return the report as HTML that asks for nothing outside itself."""
    fractions = [f"{100 * one.fraction:g}%" for one in demo.scores["MAGIC"]]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    facts: Dict[str, Any] = {
        "steps": demo.attribution.state.step,
        "size": demo.plan.recipe.size,
        "accuracy": demo.test_accuracy,
        "retrained": sum(one.subsets for one in demo.scores["MAGIC"]),
        "seed": demo.registry.master_seed,
        "digest": demo.registry.ledger.short_digest,
        "subsets": demo.plan.subsets,
        "targets": demo.plan.targets,
        "fractions": fractions,
        "lds": [(name, [f"{one.mean:.3f}" for one in scored]) for name, scored in demo.scores.items()],
        "slopes": [(fraction, one.slope) for fraction, one in zip(fractions, demo.scores["MAGIC"])],
        "smoothness": demo.smoothness.value,
        "advice": demo.smoothness.advice,
        "ablation_fractions": [f"{100 * fraction:g}%" for fraction in demo.plan.ablation_fractions],
        "ablation": [(PROTOCOLS[name], [f"{one.mean:.3f}" for one in scored]) for name, scored in demo.ablation.items()],
        "ledger": str(demo.registry.ledger),
        "statement": demo.registry.ledger.statement(),
        "scatter": _scatter(demo),
        "bars": _bars(demo),
        "examples": _examples(demo),
    }
    return template.render(facts)


def _picture(figure: Figure, *, is_drawing: bool = True) -> str:
    """Return a figure as the address of data: drawn lines as SVG, images as PNG."""
    out = io.BytesIO()
    # A fixed salt and no date: the same figure is the same bytes.
    with mpl.rc_context({"svg.hashsalt": "seedregistry"}):
        if is_drawing:
            figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
        else:
            figure.savefig(out, format="png", bbox_inches="tight", dpi=120)
    kind = "svg+xml" if is_drawing else "png"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _scatter(demo: Demo) -> str:
    chosen = (demo.retrainings[0], demo.retrainings[len(demo.retrainings) // 2], demo.retrainings[-1])
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    for axes, one in zip(figure.subplots(1, 3), chosen):
        weights = torch.ones(len(one.dropped), demo.plan.recipe.size, dtype=demo.attribution.scores.dtype)
        weights.scatter_(1, one.dropped, 0.0)
        predicted = (demo.attribution.predict(weights) - demo.attribution.values).flatten()
        actual = (one.values - demo.attribution.values).flatten()
        axes.axline((0, 0), slope=1, color=_GREY, linewidth=1)
        axes.scatter(predicted, actual, s=4, color=_BLUE, alpha=0.4, linewidths=0, rasterized=True)
        axes.set_title(f"{100 * one.fraction:g}% left out", fontsize=10)
        axes.set_xlabel("predicted change of the loss")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("actual change")
    return _picture(figure)


def _bars(demo: Demo) -> str:
    names = list(demo.ablation)
    figure = Figure(figsize=(7, 0.45 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    values = [demo.ablation[name][0].mean for name in names]
    axes.barh(range(len(names)), values, color=[_BLUE, *[_RED] * (len(names) - 1)])
    for index, value in enumerate(values):
        axes.text(max(value, 0) + 0.01, index, f"{value:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), ["all seeds shared", *names[1:]])
    axes.invert_yaxis()
    axes.set_xlim(min(0, *values), 1.1)
    axes.set_xlabel(f"score at {100 * demo.plan.ablation_fractions[0]:g}% left out")
    axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure)


def _examples(demo: Demo) -> str:
    columns = 1 + 2 * _SHOWN_EXAMPLES
    rows = min(_SHOWN_TARGETS, demo.plan.targets)
    figure = Figure(figsize=(9.5, 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, target in enumerate(_hardest(demo, rows)):
        scores = demo.attribution.scores[target]
        helpful, harmful = scores.argsort()[:_SHOWN_EXAMPLES], scores.argsort(descending=True)[:_SHOWN_EXAMPLES]
        images: List[Tuple[torch.Tensor, int, str]] = [(demo.plan.test[0][target], int(demo.plan.test[1][target]), "black")]
        for indices, colour in ((helpful, _BLUE), (harmful, _RED)):
            images += [(demo.plan.train[0][index], int(demo.plan.train[1][index]), colour) for index in indices.tolist()]
        for axes, (image, label, colour) in zip(grid[row], images):
            axes.imshow(_as_image(image, demo.plan.image_shape), cmap="gray_r")  # the map is for images without channels
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(str(label), fontsize=9, color=colour, pad=2)
            axes.spines[:].set_color(colour)
    grid[0][0].set_ylabel("test", fontsize=8)
    return _picture(figure, is_drawing=False)


def _hardest(demo: Demo, count: int) -> List[int]:
    """Return the targets with the highest losses: there is most to explain."""
    hardest: List[int] = demo.attribution.values.argsort(descending=True)[:count].tolist()
    return hardest


def _as_image(values: torch.Tensor, shape: Tuple[int, ...]) -> Any:
    image = values.reshape(shape)
    image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    return image.permute(1, 2, 0).numpy() if len(shape) == 3 else image.numpy()  # noqa: PLR2004 - channels, height, width
