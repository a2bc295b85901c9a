"""What is published about the package agrees with itself; a wheel is whole outside of the checkout."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    [latest, *_] = re.findall(r"^## \[(\d[\d.]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert (cited["version"], str(cited["date-released"])) == latest
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]


def test_the_cited_paper_is_that_of_the_readme() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    bibtex = (ROOT / "README.md").read_text().partition("```bibtex")[2].partition("```")[0]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"{{{authors}}}" in bibtex
    assert paper["title"] in re.sub("[{}]", "", bibtex)
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_public_ci_tests_every_python_that_the_package_names() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    named = [word.rpartition(" ")[2] for word in PROJECT["classifiers"] if ":: 3." in word]
    assert jobs["test"]["strategy"]["matrix"]["python"] == named
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]["build"].split()
    assert built == [f"cp{version.replace('.', '')}-*" for version in named]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    run = {step["run"] for job in jobs.values() for step in job["steps"] if step.get("run", "").startswith("make ")}
    assert {words.split()[1] for words in run} == {"lint", "test", "docs"} <= targets


def test_hooks_lint_with_the_version_that_make_lints_with() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    [ruff] = [repo["rev"] for repo in hooks if "ruff" in repo["repo"]]
    assert f"\nruff=={ruff.removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.slow
def test_a_wheel_is_whole(tmp_path: Path) -> None:
    """Kernels, recipes and experiments, in an environment that has the dependencies and not the checkout."""
    source = tmp_path / "source"  # without what earlier builds have left
    for name in ("configs", "datamodules", "msssm", "tasks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--quiet", "-w", tmp_path], check=True)
    [wheel] = tmp_path.glob("msssm-*.whl")
    assert PROJECT["version"] in wheel.name
    files = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in files if ".dist-info" not in name} == {
        "configs", "datamodules", "msssm", "tasks"
    }  # fmt: skip
    assert {"msssm/py.typed", "configs/listops.yaml", "configs/experiments/quick/listops.yaml"} <= set(files)
    assert [name for name in files if name.startswith("msssm/scan/csrc/baseline")]

    venv.create(tmp_path / "env", with_pip=False)
    [packages] = tmp_path.glob("env/lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    run = [tmp_path / "env/bin/python", ROOT / ".ci/wheel.py"]
    said = subprocess.run(run, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert str(packages) in said, "the kernels are those of the wheel"
    recipe = subprocess.run(
        [tmp_path / "env/bin/python", "-m", "tasks.cli.main", "recipes", "quick/listops/mamba"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert yaml.safe_load(recipe)["data"]["class_path"] == "datamodules.ListOpsDataModule"
