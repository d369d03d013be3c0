"""The architecture: imports run one way, public names have one home, tests say what they
guarantee."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import seedregistry

ROOT = Path(seedregistry.__file__).parent
TESTS = Path(__file__).parent

MAP = TESTS.parent / "docs" / "architecture.md"
ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| .+ \| (no|yes|late|in part) \|$", re.MULTILINE)
ROOMS = {
    room: (int(floor), torch) for floor, room, torch in ROW.findall(MAP.read_text(encoding="utf-8"))
}
# What `SeedRegistry(42)` needs no line of.
SLOW = {
    "seedregistry.attribution",
    "seedregistry.audit",
    "seedregistry.common.environment",
    "seedregistry.data.build",
    "seedregistry.data.loader",
    "seedregistry.functional",
    "seedregistry.ledger.diff",
    "seedregistry.ledger.export",
    "seedregistry.ledger.journal",
    "seedregistry.ledger.merging",
    "seedregistry.ledger.reader",
    "seedregistry.ledger.tables",
    "seedregistry.ledger.verification",
    "seedregistry.registry.global_state",
}
FLOOR_OF = {room: floor for room, (floor, _) in ROOMS.items()}
WITHOUT_TORCH = {room for room, (_, torch) in ROOMS.items() if torch == "no"}
# Modules that need a framework, and are not looked into where it is missing.
FRAMEWORKS = {
    "attribution/demo/report": "matplotlib",
    "cli/__init__": "click",
    "cli/app": "click",
    "cli/attribution": "click",
    "cli/derive": "click",
    "cli/ledger": "click",
    "cli/options": "click",
    "integrations/accelerate": "accelerate",
}


def modules() -> dict:
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in ROOT.rglob("*.py")}


def imports(path: Path) -> set:
    """The modules that a file imports, at run time or for types, each with its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "seedregistry":
                found |= {f"seedregistry.{alias.name}" for alias in node.names}
    return found


def unit_of(name: str) -> str:
    return name.replace("/", ".").split(".")[0]


def violations() -> list:
    wrong = []
    for name, path in modules().items():
        if name == "__init__":
            continue
        unit = unit_of(name)
        for imported in imports(path):
            if imported == "seedregistry":
                continue
            if imported.startswith("seedregistry."):
                other = unit_of(imported[len("seedregistry.") :])
                if other != unit and not FLOOR_OF[other] < FLOOR_OF[unit]:
                    wrong.append((unit, other))
    return wrong


def test_every_room_is_on_the_map():
    """Every module and package at the root stands in the table of docs/architecture.md, and the
    table names nothing else."""
    assert {unit_of(name) for name in modules()} - {"__init__"} == set(FLOOR_OF)


def test_imports_run_one_way():
    """Modules import from lower floors only, as the map says."""
    assert violations() == []


def test_a_wrong_import_is_caught(monkeypatch):
    """The check above finds an import that runs upwards."""
    monkeypatch.setitem(FLOOR_OF, "rng", 4)
    assert ("stream", "rng") in violations()


def test_no_room_imports_the_front_door():
    """No module of the package imports the package itself, which names what is above it."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert "seedregistry" not in {alias.name for alias in node.names}, name
            if isinstance(node, ast.ImportFrom) and node.module == "seedregistry":
                rooms = {alias.name for alias in node.names}
                assert rooms <= set(FLOOR_OF), f"{name}: {rooms - set(FLOOR_OF)}"


def test_the_map_names_what_is_there():
    """Every file that the map sends a reader to exists."""
    for name in re.findall(r"`(\w+/(?:\w+\.py)?)`", MAP.read_text(encoding="utf-8")):
        assert any((place / name).exists() for place in (ROOT, ROOT.parent)), name


def test_derivation_and_ledger_need_no_torch():
    """The ground of the library and its ledger import neither torch nor anything that does."""
    for name, path in modules().items():
        if unit_of(name) in WITHOUT_TORCH:
            assert not any(unit_of(imported) == "torch" for imported in imports(path)), name


def test_global_state_is_touched_in_two_places_only():
    """Outside seedregistry.rng and seedregistry.determinism the linter's ban on global state is
    never lifted."""
    for name, path in modules().items():
        if unit_of(name) not in {"rng", "determinism"}:
            text = path.read_text(encoding="utf-8")
            assert "TID251" not in text, name
            assert "default_generator" not in text, name
            assert "random.getstate" not in text, name


def lazy_names(tree: ast.Module) -> tuple:
    """What a lazy door shows to type checkers, what it imports, {name: module}, and its rooms."""
    shown, rooms = {}, set()
    for node in tree.body:
        if isinstance(node, ast.If):
            assert isinstance(node.test, ast.Name)
            assert node.test.id == "TYPE_CHECKING"
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                shown.update({alias.name: line.module for alias in line.names})
    call = next(
        (
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        ),
        None,
    )
    if call is None:
        return shown, {}, rooms
    homes = ast.literal_eval(call.args[1])
    rooms = {room for keyword in call.keywords for room in ast.literal_eval(keyword.value)}
    return shown, {name: home for home, names in homes.items() for name in names}, rooms


def test_init_files_hold_no_logic():
    """An __init__ file re-exports: docstring, imports, __all__, the functions of a lazy door."""
    for name, path in modules().items():
        if not name.endswith("__init__"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            allowed = isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr, ast.If))
            if isinstance(node, ast.Assign):
                targets = [
                    name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)
                ]
                allowed = targets in (["__all__"], ["__getattr__", "__dir__"])
            assert allowed, f"{name}: {ast.dump(node)[:80]}"


@pytest.mark.parametrize("name", [name for name in sorted(modules()) if name.endswith("__init__")])
def test_a_lazy_door_shows_what_it_opens(name):
    """What a door imports late is what editors and mypy see, and what __all__ and dir() name."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    shown, homes, rooms = lazy_names(tree)
    if not homes:
        assert not shown
        return
    package = module_name(name)
    assert {home: module for home, module in shown.items() if home not in rooms} == homes
    assert set(homes) <= set(exported_names(tree)) <= set(homes) | rooms | {"__version__"}
    module = importlib.import_module(package)
    assert set(homes) | rooms <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018 - looked up


def test_rooms_are_attributes_of_the_front_door():
    """After `import seedregistry` every documented module is an attribute, imported late."""
    rooms = [room for room in FLOOR_OF if room not in {"common", "cli", "version", "__main__"}]
    script = (
        "import sys, seedregistry\nassert 'torch' not in sys.modules\n"
        f"print(*(getattr(seedregistry, room) for room in {rooms}))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("<module 'seedregistry.") == len(rooms)


def test_importing_the_library_imports_next_to_nothing():
    """`import seedregistry` imports three modules more; a registry needs no slow room."""
    script = (
        "import sys; before = set(sys.modules); import seedregistry\n"
        "print(*sorted(set(sys.modules) - before))\n"
        "seedregistry.SeedRegistry(42)\n"
        "print(*sorted(name for name in sys.modules if name.startswith('seedregistry')))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    alone, registry = (set(line.split()) for line in run.stdout.splitlines())
    ours = {
        "seedregistry",
        "seedregistry.common",
        "seedregistry.common.lazy",
        "seedregistry.version",
    }
    assert {name for name in alone if name.startswith("seedregistry")} == ours
    assert not alone & {"torch", "numpy", "attr", "attrs"}
    assert not registry & SLOW


def is_door(name: str) -> bool:
    """Whether a file is a door: at the root, a room's __init__, or a framework's integration."""
    *rooms, file = name.split("/")
    return not rooms or (rooms != ["common"] and file == "__init__") or rooms == ["integrations"]


def exported_names(tree: ast.Module) -> list:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return None


def module_name(name: str) -> str:
    dotted = name.replace("/", ".")
    return (
        "seedregistry" if name == "__init__" else f"seedregistry.{dotted.replace('.__init__', '')}"
    )


@pytest.mark.parametrize("name", sorted(modules()))
def test_doors_say_what_is_promised(name):
    """A door has a literal and complete __all__ of names that exist; behind a door is none."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    exported = exported_names(tree)
    if not is_door(name):
        assert exported is None, "behind a door nothing is promised"
        return
    assert len(exported) == len(set(exported))
    if name in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[name])
    module = importlib.import_module(module_name(name))
    for public in exported:
        assert hasattr(module, public)
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
    }
    assert defined - set(exported) - {"fixture"} == set(), "public but not in __all__"


def test_one_public_home():
    """What is exported at top level is the same object as in its home, and errors are all there."""
    from seedregistry import errors, functional

    for name in errors.__all__:
        assert getattr(seedregistry, name) is getattr(errors, name)
    for name in set(functional.__all__) & set(seedregistry.__all__):
        assert getattr(seedregistry, name) is getattr(functional, name)
    assert seedregistry.__version__ in (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")


def test_no_module_is_left_out():
    """Every module of the package can be imported."""
    missing = {
        f"seedregistry.{name.replace('/', '.')}"
        for name, needs in FRAMEWORKS.items()
        if find_spec(needs) is None
    }
    for module in pkgutil.walk_packages([str(ROOT)], "seedregistry."):
        if module.name not in missing:
            importlib.import_module(module.name)


def test_a_missing_framework_is_named():
    """An integration whose framework is missing says so in a line, with the way out."""
    for name, needs in FRAMEWORKS.items():
        script = (
            f"import sys; sys.modules[{needs!r}] = None; import "
            f"seedregistry.{name.replace('/', '.')}"
        )
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert re.search(
            rf"ImportError: seedregistry\.[\w.]+ needs {needs}: pip install", run.stderr
        ), name


def test_importing_moves_nothing():
    """Importing the library moves no generator, sets no switch and starts no accelerator."""
    script = (
        "import random, numpy, torch; a = random.getstate(), torch.get_rng_state().tolist(), "
        "numpy.random.get_state()[2];b = torch.are_deterministic_algorithms_enabled(), "
        "torch.backends.cudnn.benchmark;import seedregistry, seedregistry.testing, "
        "seedregistry.audit;assert a == (random.getstate(), torch.get_rng_state().tolist(), "
        "numpy.random.get_state()[2]);assert b == (torch.are_deterministic_algorithms_enabled(), "
        "torch.backends.cudnn.benchmark);assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_every_test_says_what_is_guaranteed():
    """Every test has a docstring of one sentence."""
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.get_docstring(node)
                assert text, f"{path.name}: {node.name}"
                assert text.endswith((".", "?")), f"{path.name}: {node.name}"


def test_files_have_one_reason_to_exist():
    """No file of the library grows past 800 lines, and the median is a page or three."""
    sizes = sorted(
        len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()
    )
    assert sizes[-1] <= 800
    assert 60 <= sizes[len(sizes) // 2] <= 270
