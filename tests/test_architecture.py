"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"lightning", "pytorch_lightning", "timm", "torchvision", "torchmetrics", "pandas", "matplotlib"}
# The models in timm's registry; who wants them imports the module.
TIMM_REGISTRY = ROOT / "msssm" / "timm_models.py"
FORBIDDEN = {
    "msssm": HEAVY | {"datamodules", "tasks"},
    "datamodules": {"msssm", "tasks"},
}
# Inside the library: what a module may import of it.
BELOW = {
    "msssm.errors": set(),
    "msssm.minimal": set(),
    "msssm.transforms": set(),
    "msssm.operands": set(),
    "msssm.untouched": set(),
    "msssm.padding": {"msssm.transforms"},
    "msssm.initialization": set(),
    "msssm.pretrained": {"msssm.layer"},
    "msssm.export": {"msssm.layer", "msssm.ssm"},
    "msssm.diagnostics": {"msssm.diagnostics", "msssm.decomposition", "msssm.layer", "msssm.ssm"},
    "msssm.layer": {"msssm.padding"},
    "msssm.recompute": {"msssm.transforms"},
    "msssm.scan.cpu": {"msssm.scan.cpu", "msssm.operands", "msssm.recompute", "msssm.transforms", "msssm.untouched"},
    "msssm.scan": {
        "msssm.scan",
        "msssm.scan.cpu",
        "msssm.operands",
        "msssm.padding",
        "msssm.recompute",
        "msssm.transforms",
    },
    "msssm.decomposition": {
        "msssm.scan.cpu",
        "msssm.operands",
        "msssm.padding",
        "msssm.scan.dispatch",
        "msssm.transforms",
    },
    "msssm.scale_mixer": set(),
    "msssm.diagnostics.nan_guard": {"msssm.layer", "msssm.multiscale", "msssm.padding", "msssm.ssm"},
    "msssm.ssm": {"msssm.initialization", "msssm.padding", "msssm.scan", "msssm.untouched"},
    "msssm.norm": {"msssm.padding"},
    "msssm.param_groups": set(),
    "msssm.bidirectional": {"msssm.layer"},
    "msssm.image": set(),
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            found.add(".".join(part for part in (package, node.module or "") if part))
    return found


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no source files in {package}"
    return found


def test_imports_are_read_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "msssm" / "scan" / "x.py"
    source.parent.mkdir(parents=True)
    source.write_text("import a.b\ndef f():\n    from c import d\n    from . import e\n    from ..tasks import g\n")
    assert imports(source) == {"a.b", "c", "msssm.scan", "msssm.tasks"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_what_stands_above_it(package: str) -> None:
    for path in files(package):
        tops = {name.split(".")[0] for name in imports(path)}
        above = tops & FORBIDDEN[package] - ({"timm"} if path == TIMM_REGISTRY else set())
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def test_nothing_imports_the_timm_registry() -> None:
    for path in (path for package in ("msssm", "datamodules", "tasks") for path in files(package)):
        assert "msssm.integrations.timm" not in imports(path), path.relative_to(ROOT)


def test_triton_is_imported_by_the_scan_alone() -> None:
    for path in (path for package in ("msssm", "datamodules", "tasks") for path in files(package)):
        if "triton" in {name.split(".")[0] for name in imports(path)}:
            assert path.is_relative_to(ROOT / "msssm" / "scan"), path.relative_to(ROOT)


@pytest.mark.parametrize("module", BELOW)
def test_the_library_is_layered(module: str) -> None:
    """multiscale -> {decomposition, ssm, scale_mixer} -> scan, and never back."""
    location = ROOT / module.replace(".", "/")
    paths = sorted(location.rglob("*.py")) if location.is_dir() else [location.with_suffix(".py")]
    assert paths
    for path in paths:
        own = {name for name in imports(path) if name.split(".")[0] == "msssm"}
        allowed = BELOW[module] | {"msssm.errors"}
        above = {name for name in own if not any((name + ".").startswith(below + ".") for below in allowed)}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("package", ["msssm", "msssm.baselines"])
def test_importing_the_library_is_lean(package: str) -> None:
    """A fresh process that imports it has loaded neither Lightning nor anything of the vision stack."""
    code = f"import sys, {package}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & (HEAVY | {"datamodules", "tasks", "tensorboard"})
