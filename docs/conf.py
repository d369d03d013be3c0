"""Sphinx: MyST pages, furo, and a reference from the docstrings. Built by ``nox -s docs``,
offline, warnings as errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import seedregistry

if TYPE_CHECKING:
    from sphinx.application import Sphinx

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
autodoc_typehints_description_target = (
    "documented"  # types beside the Args of a docstring, not instead of them
)
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = (
    True  # attributes in a class docstring and the properties themselves are not two descriptions
)

nitpicky = True
nitpick_ignore_regex = [
    # Outside this project; without intersphinx there is nothing to resolve them to.
    (
        r"py:.*",
        r"(torch|numpy|np|random|attrs?|typing|types|collections|pathlib|concurrent|logging|os|sys|threading)\..*",
    ),
    (
        r"py:.*",
        r"(python|builtins|contextlib|abc|enum|fractions|hashlib|functools|itertools|pytest)\..*",
    ),
    # Names of the standard library that signatures use without their module.
    (
        r"py:class",
        r"(Any|Callable|Iterable|Iterator|Mapping|Sequence|Path|TracebackType|Generator|Random|Dataset|DataLoader)",
    ),
    (
        r"py:(class|exc|obj)",
        r"(None|bool|bytes|dict|float|int|list|object|optional|str|tuple|type|callable)",
    ),
    (r"py:exc", r"[A-Z][A-Za-z]*(Error|Warning|Interrupt)"),
    # Type variables and aliases are not documented on their own.
    (
        r"py:(class|obj)",
        r"(seedregistry(\.\w+)*\.)?(T|P|_?[A-Z]\w*T|MasterSeed|InstanceId|Coordinate|Value|SeedSource|LateSeed|Shard|Indices|StreamHost|Order|Pair|Progress|Measurement|Hyper|(data\.cursor\.)?Cursor)",
    ),
    # Underscored names are private and stay out of the reference.
    (r"py:.*", r"seedregistry(\.\w+)*\._\w+"),
]

html_theme = "furo"
html_title = f"seedregistry {release}"
html_copy_source = False


def _keep_sentences(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Keep napoleon from reading a property's first sentence as "type.

    Description" when it has a colon.

    Source: ``GoogleDocstring._consume_inline_attribute`` splits the first line at its colon; an
    empty comment goes before it.
    """
    if what in ("property", "attribute", "data"):
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _keep_sentences, priority=400)
