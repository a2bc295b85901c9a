"""What the Makefile's targets write, git ignores; only `make publish` writes among what is tracked."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.cli.experiment import _results
from tasks.run.provenance import _git
from tasks.table.files import experiment_files
from tasks.table.spec import read_table

TARGETS = ["reproduce-table", "ablations", "choices", "listops-report", "bench", "soak", "fuzz", "dashboard"]
WRITES = r"(?:--run_dir|--results|--output|mkdir -p|msssm table|2>>|--target)[ =]([\w./-]+)"


def make(*words: str, folder: Path = Path()) -> str:
    """What make prints; the make that may run these tests hands it neither its flags nor its depth."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    command = ["make", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout


def results_folder(experiment: str, of: str | None) -> str:
    [first, *_] = experiment_files(experiment)
    return str(_results(read_table(first), of))


def outputs() -> set[str]:
    """Paths that the recipes of the targets name, and the defaults of the programs that they run."""
    named = set()
    for profile in ("quick", "medium", "small", "paper"):
        commands = make("-n", *TARGETS, f"PROFILE={profile}", "TASKS=ptbxl")
        named |= set(re.findall(WRITES, commands))
        for words in re.findall(r"msssm experiment (.*)", commands):
            experiment, *_ = words.split()
            named.add(results_folder(experiment, profile if f"--of {profile}" in words else None))
    sources = [*Path("benchmarks").glob("*.py"), *Path("tasks").rglob("*.py"), Path("tests/robustness/soak.py")]
    options = r"\"--(?:output|results)\".*default=Path\(\"([\w./-]+)\"\)"
    return (
        named
        | {path for source in sources for path in re.findall(options, source.read_text())}
        | {".fuzz", ".tools", "site"}
    )


@pytest.mark.skipif(_git("rev-parse", "HEAD") is None, reason="not a checkout")
def test_targets_write_only_what_git_ignores() -> None:
    paths = outputs()
    assert {"results/quick", "results/medium-ablations", "results/choices", "results/bench", "results/soak"} <= paths
    for path in sorted(paths):
        ignored = subprocess.run(["git", "check-ignore", "-q", f"{path}/table.md"], check=False).returncode == 0
        assert ignored, f"{path} is not ignored"
        assert not _git("ls-files", "--", f":(top){path}"), f"tracked files lie below {path}"


@pytest.mark.skipif(_git("rev-parse", "HEAD") is None, reason="not a checkout")
def test_git_ignores_nothing_that_it_tracks() -> None:
    """What git ignores, the linter does not see and `git add` leaves out."""
    assert not _git("ls-files", "--cached", "--ignored", "--exclude-standard")


def test_what_is_asked_of_make_is_asked_of_the_command() -> None:
    words = ["PROFILE=small", "TASKS=ptbxl", "SEEDS=0 1", "JOBS=2", "DATA=/d", "OPTIONS=--x y"]
    asked = make("-n", "reproduce-table", *words)
    expected = "experiment small --tasks ptbxl --results results/small --seeds 0 1 --jobs 2 --data.root /d --x y"
    assert asked.strip().splitlines()[-1].endswith(expected)
    plain = make("-n", "reproduce-table").strip().splitlines()[-1]
    assert plain.endswith("quick --tasks listops --results results/quick")
    assert "experiment ablations --of medium" in " ".join(make("-n", "ablations", "PROFILE=medium").split())


def test_only_publish_writes_where_results_are_tracked() -> None:
    assert "docs/" not in make("-n", *TARGETS)
    assert "docs/results/quick" in make("-n", "publish")


def test_publish_copies_all_but_the_runs_and_the_page(tmp_path: Path) -> None:
    shutil.copy("Makefile", tmp_path)
    for name in ("results/x/table.md", "results/x/a.yaml", "results/x/table.html", "results/x/runs/a/metrics.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    make("publish", "RESULTS=results/x", folder=tmp_path)
    copied = {str(path.relative_to(tmp_path / "docs")) for path in (tmp_path / "docs").rglob("*") if path.is_file()}
    assert copied == {"results/x/table.md", "results/x/a.yaml"}
