"""`make docs` builds the site, and fails at what it promises to find."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SOURCES = [
    "Makefile",
    "mkdocs.yml",
    "pyproject.toml",
    "README.md",
    "SECURITY.md",
    "docs",
    "msssm",
    "datamodules",
    "tasks",
]


def build(folder: Path) -> str:
    """Builds with the tools of the checkout; what it says, or nothing where it succeeds."""
    shutil.rmtree(folder / "site", ignore_errors=True)
    run = subprocess.run(["make", "docs"], cwd=folder, capture_output=True, text=True, check=False)
    return "" if run.returncode == 0 else run.stdout + run.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in SOURCES:
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy
        copy(name, tmp_path / name)
    subprocess.run(["make", ".tools/docs/.ready"], check=True)
    (tmp_path / ".tools").symlink_to(Path(".tools").resolve())
    (tmp_path / ".tools/docs/.ready").touch()  # newer than the copied list of the tools
    return tmp_path


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_the_site_is_built_without_the_megabytes_of_the_results(checkout: Path) -> None:
    assert build(checkout) == ""
    site = checkout / "site"
    assert (site / "index.html").exists()
    assert 'id="msssm.MultiScaleSSM"' in (site / "api/msssm/index.html").read_text()
    assert (site / "results/medium/listops_curves.png").exists()
    assert not [*site.rglob("*.csv")]
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 12e6


@pytest.mark.parametrize(
    ("page", "text", "complaint"),
    [
        ("docs/index.md", "\n[x](no_such_page.md)\n", "no_such_page.md"),
        ("docs/index.md", "\n[x](training.md#no-such-heading)\n", "no-such-heading"),
        ("docs/results.md", "\n[x](results/no_such/table.csv)\n", "no_such/table.csv"),
        ("docs/index.md", "\n[x](../NO_SUCH_FILE)\n", "NO_SUCH_FILE"),
        ("docs/training.md", "\n[x][msssm.NoSuchLayer]\n", "msssm.NoSuchLayer"),
        ("docs/api/msssm.md", "\n::: msssm.no_such_module\n", "no_such_module"),
        ("msssm/__init__.py", '\n\ndef unsaid(): ...\n\n\n__all__ += ["unsaid"]\n', "msssm.unsaid is public"),
        ("tasks/paths.py", '\n__all__ = ["path_option"]\n', "path_option is public and on no page"),
        (
            "tasks/run/bad_batches.py",
            "\n    def unsaid(self) -> None: ...\n",
            "unsaid is public and has no docstring",
        ),
    ],
)
def test_a_fault_ends_the_build(checkout: Path, page: str, text: str, complaint: str) -> None:
    append(checkout / page, text)
    assert complaint in build(checkout)
