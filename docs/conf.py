"""Sphinx: MyST pages, furo, and a reference from the docstrings.

Built by ``nox -s docs``, offline, warnings as errors.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import seedregistry

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "seedregistry"
author = "the seedregistry authors"
project_copyright = author
version = release = seedregistry.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# No intersphinx: the build needs no network.

root_doc = "index"
exclude_patterns = ["_build", "examples"]

myst_enable_extensions = ["deflist", "fieldlist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Types stand beside the Args of a docstring, not instead of them.
autodoc_typehints_description_target = "documented"
autodoc_mock_imports = ["accelerate"]  # named in the integration's signatures, and large

napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes in a class docstring and the properties themselves are not two descriptions.
napoleon_use_ivar = True

# What is outside this project has nothing to resolve to without intersphinx: modules, and names
# that signatures use without their module. Type variables and aliases are explained by the text
# beside them, and the loader's sampler is behind the door.
_MODULES = (
    "abc accelerate attr attrs builtins collections concurrent contextlib enum fractions functools "
    "hashlib itertools logging nn np numpy os pathlib pytest python random sys threading torch "
    "types typing"
)
_NAMES = (
    "Accelerator Any Callable DataLoader Dataset Generator Iterable Iterator Mapping None Path "
    "PathLike Random Sequence Subset TracebackType _Model _Optimizer bool bytes callable dict "
    "float int list object optional str tuple type"
)
_ALIASES = (
    "AnyGenerator Coordinate Cursor Entry Indices InstanceId LateSeed MasterSeed Measurement "
    "NotGiven Order P Pair Progress ProgressOption SeedSource Shard StreamHost T Value "
    "data.sampler.EpochSampler"
)


def _any_of(names: str) -> str:
    return f"({'|'.join(names.split())})"


nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", rf"{_any_of(_MODULES)}\..*"),
    (r"py:(class|exc|obj)", _any_of(_NAMES)),
    (r"py:exc", r"[A-Z][A-Za-z]*(Error|Warning|Interrupt)"),
    (r"py:(class|obj|data)", rf"(seedregistry(\.\w+)*\.)?({_any_of(_ALIASES)}|_?[A-Z]\w*T)"),
    # Underscored names are private and stay out of the reference.
    (r"py:.*", r"seedregistry(\.\w+)*\._\w+"),
]

html_theme = "furo"
html_title = f"seedregistry {release}"
html_copy_source = False


def keep_sentences(
    _app: Sphinx, what: str, _name: str, obj: object, _options: object, lines: list[str]
) -> None:
    """Keep the first sentence of a property whole, and leave out what a builtin type says.

    A constant has no docstring of its own; autodoc takes that of its type. An empty comment goes
    before a property's first line, since napoleon takes what stands before a colon for its type.

    Source: ``GoogleDocstring._consume_inline_attribute`` splits the first line at its colon.
    """
    if what == "data" and lines[:1] == (inspect.getdoc(type(obj)) or "").splitlines()[:1]:
        lines.clear()
    if what in ("property", "attribute", "data"):
        lines[:0] = ["..", ""]


def find_at_door(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Resolve the name of a thing behind a door to the door's name for it.

    Signatures and docstrings know where a thing is made, as in
    ``seedregistry.attribution.recipe.Recipe``; the reference knows it as
    ``seedregistry.attribution.Recipe``.
    """
    if node.get("refdomain") != "py":
        return None

    module, name = node.get("py:module") or "", node["reftarget"]
    parts = (name if name.startswith("seedregistry.") else f"{module}.{name}").split(".")
    domain = env.get_domain("py")

    for end in range(len(parts) - 1, 0, -1):
        for start in range(end + 1, len(parts)):
            shorter = ".".join(parts[:end] + parts[start:])
            found = domain.resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], shorter, node, content
            )
            if found is not None:
                return found
    return None


def setup(app: Sphinx) -> None:
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)
    app.connect("missing-reference", find_at_door)
