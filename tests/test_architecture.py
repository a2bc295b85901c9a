"""Who may import whom: every module has its place in one table, and imports only what stands below it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The floors of each package, from the ground up, with their rooms: a module, or a folder with all that is in it and not
# named by itself; with a dot at its end, nothing but the folder's front, its __init__.py. A room imports rooms of lower
# floors only, at any depth of its code.
FLOORS: dict[str, list[str]] = {
    "msssm": [
        "errors minimal param_groups transforms untouched scan.mixing scan.delta scan.csrc",
        "image initialization padding paths recompute scale_mixer scan.checks",
        "layer norm scan.dispatch scan.operands scan.decomposition.torch",
        "bidirectional block pretrained scan.decomposition",
        "backbone decomposition scan.selective scan.lti",
        "classifier scan.",
        "ssm",
        "baselines export fused",
        "multiscale",
        "diagnostics doctor streaming timm",
        ".",
    ],
    "datamodules": [
        "faults transfer",
        "batching disk",
        "loader",
        "base",
        "arrays images listops ptbxl",
        "synthetic",
        ".",
    ],
    "tasks": [
        "messages paths complaints process reports.html reports.markdown reports.style",
        "recipes",
        "run",
        "metrics",
        "table",
        "reports",
        "base",
        "ecg image listops signals",
        "sweep",
        "cli .",
    ],
}
HEAVY = {"lightning", "pytorch_lightning", "timm", "torchvision", "torchmetrics", "pandas", "matplotlib"}
FORBIDDEN = {"msssm": HEAVY | {"datamodules", "tasks"}, "datamodules": {"msssm", "tasks"}, "tasks": set()}
# Errors and paths are the same for all.
SHARED = {"msssm.errors", "msssm.paths"}
# On timm: who wants these models imports or names the module, and nothing of ours does.
ON_TIMM = ("msssm.timm",)


def sources(root: Path) -> dict[str, Path]:
    """Every module of the three packages, by its full name."""
    found = {}
    for package in FLOORS:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources(ROOT)


def nodes(tree: ast.AST, deep: bool) -> Iterator[ast.AST]:
    """All code that a reader or a type checker follows; or what runs when the module is loaded."""
    for node in ast.iter_child_nodes(tree):
        if not deep and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from nodes(node, deep)


def imports(module: str, found: dict[str, Path] = SOURCES, *, deep: bool = True) -> set[str]:
    """Full names of the modules that a module imports, at any depth of its code or when it is loaded."""
    path = found[module]
    package = module.split(".")[: None if path.name == "__init__.py" else -1]
    names: set[str] = set()
    for node in nodes(ast.parse(path.read_text()), deep):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = [*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])]
            base = ".".join(origin if node.level else [node.module or ""])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            names |= (inside & found.keys()) | ({base} if inside - found.keys() else set())
    return names


def own(module: str) -> set[str]:
    """Its imports from its own package."""
    return {name for name in imports(module) if name.split(".")[0] == module.split(".")[0]}


def rooms(package: str) -> dict[str, int]:
    """The floor of each room, by the room's full name."""
    return {
        f"{package}.{room}".replace("..", "."): floor
        for floor, names in enumerate(FLOORS[package])
        for room in names.split()
    }


def room(module: str) -> str | None:
    """The room of a module, the innermost that has it; None for a module that the table does not know."""
    around = [
        name for name in rooms(module.split(".")[0]) if f"{module}." == name or f"{module}.".startswith(f"{name}.")
    ]
    return max(around, key=len, default=None)


def test_imports_are_read_at_any_depth_and_under_any_name(tmp_path: Path) -> None:
    for name, text in {
        "msssm/__init__.py": "",
        "msssm/scan/__init__.py": "from . import x\nfrom .x import y",
        "msssm/scan/e.py": "",
        "msssm/scan/x.py": "import a.b\nif TYPE_CHECKING:\n    import t\ntry:\n    import u\nexcept E:\n    pass\n"
        "def f():\n    from c import d\n    from . import e, f\n    from ..tasks import g\n    import msssm.scan.e",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = sources(tmp_path)
    inner = {"c", "msssm.scan", "msssm.scan.e", "msssm.tasks"}
    assert imports("msssm.scan.x", found) == {"a.b", "t", "u"} | inner
    assert imports("msssm.scan.x", found, deep=False) == {"a.b", "u"}
    assert imports("msssm.scan", found) == {"msssm.scan.x"}


@pytest.mark.parametrize("package", FLOORS)
def test_every_module_has_a_room_and_every_room_a_module(package: str) -> None:
    found = {module: room(module) for module in SOURCES if module.split(".")[0] == package}
    lost = sorted(module for module, place in found.items() if place is None)
    assert not lost, f"give them a place in FLOORS: {', '.join(lost)}"
    assert set(found.values()) == rooms(package).keys(), "FLOORS names a room that is not there"


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_runs_back_up(package: str) -> None:
    """Imports inside of functions count."""
    floor = rooms(package)
    up = [
        f"{module} ({place}) imports {name} ({target})"
        for module in SOURCES
        if module.split(".")[0] == package and (place := room(module))
        for name in sorted(own(module))
        if (target := room(name)) not in (place, None) and floor[target] >= floor[place]
    ]
    assert not up, "\n".join(up)


def test_there_is_no_circle() -> None:
    """Neither within a room nor through a function."""
    graph = {module: own(module) for module in SOURCES}
    assert set(TopologicalSorter(graph).static_order()) >= SOURCES.keys()  # a CycleError names the circle


def test_no_package_imports_what_stands_above_it() -> None:
    for module in SOURCES:
        tops = {name.split(".")[0] for name in imports(module) - SHARED}
        above = tops & FORBIDDEN[module.split(".")[0]] - ({"timm"} if module in ON_TIMM else set())
        assert not above, f"{module} imports {above}"


def test_nothing_imports_what_stands_on_timm() -> None:
    assert [module for module in SOURCES if imports(module) & set(ON_TIMM)] == []


def test_triton_is_imported_by_the_scan_alone() -> None:
    importers = {module for module in SOURCES if "triton" in {name.split(".")[0] for name in imports(module)}}
    assert {module for module in importers if not module.startswith("msssm.scan.selective.triton_")} == set()
    assert "msssm.scan.selective.triton_common" in importers


def loaded_by(code: str) -> set[str]:
    """Names of all modules that a fresh process has loaded after `code`."""
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('LOADED', *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.rpartition("LOADED")[2].split())


def test_importing_the_library_is_lean() -> None:
    """Neither Lightning nor anything of the vision stack is loaded."""
    tops = {name.split(".")[0] for name in loaded_by("import msssm.baselines")}
    assert "msssm" in tops
    assert not tops & (HEAVY | {"datamodules", "tasks", "tensorboard"})


def test_a_shipped_model_answers_without_lightning(tmp_path: Path) -> None:
    loaded = loaded_by(f"from tasks.cli.main import main; main(['ecg', '--output', '{tmp_path}'])")
    assert "tasks.ecg.recordings.answer" in loaded
    assert not {name.split(".")[0] for name in loaded} & {"lightning", "timm", "torchvision", "torchmetrics"}


def test_tables_and_comparisons_load_no_lightning() -> None:
    """It would be a third of the time until they start."""
    loaded = loaded_by("import tasks.cli.compare, tasks.cli.experiment, tasks.cli.table")
    assert "tasks.run.predictions" in loaded
    assert not {name.split(".")[0] for name in loaded} & {"lightning", "timm", "torchvision", "torchmetrics"}


def test_the_generic_command_line_loads_no_code_of_a_task_and_draws_nothing() -> None:
    """torchmetrics loads matplotlib where it finds it: what counts is that no loaded module of ours asks for it."""
    loaded = loaded_by("from tasks.cli.main import main; main(['fit', '--help_all'])")
    ours = loaded & SOURCES.keys()
    assert "tasks.cli.training" in ours
    assert not {name for name in ours if name.startswith("datamodules") or "ecg" in name}
    assert not ours & {"tasks.image.task", "tasks.listops.tokens", "tasks.listops.task", "tasks.cli.recordings"}
    drawing = {name for name in ours if any(x.split(".")[0] == "matplotlib" for x in imports(name, deep=False))}
    assert not drawing
