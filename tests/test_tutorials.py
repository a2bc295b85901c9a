"""The tutorials run as they are written, and the examples with fewer steps."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from tasks.cli.main import main
from tests.support.tolerances import FLOAT32

TUTORIALS = sorted(Path("docs/tutorials").glob("*.md"))
# What a tutorial trains by commands, smaller, in the slow tests; its own assertions hold for the code beside it.
SMALLER = {
    "ecg": ["--data.synthetic=200", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"],
    "own_data": [],
}


PAGES = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SMALLER else []) for page in TUTORIALS
]


@pytest.mark.parametrize("page", PAGES)
def test_tutorials_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks share their names, commands run between them; the assertions in the text are the check."""
    text = page.read_text()
    (tmp_path / "docs").symlink_to(Path("docs").resolve())
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|bash)\n(.*?)```", text, re.S)
    names: dict[str, object] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
            continue
        for command in block.replace("\\\n", "").splitlines():
            _, subcommand, *words = shlex.split(command)
            main([subcommand, *words, *(SMALLER.get(page.stem, []) if subcommand == "fit" else [])])
    assert any("assert" in block for language, block in blocks if language == "python") or page.stem in SMALLER


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, f"examples/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_streaming_example_ends_where_the_whole_signal_does() -> None:
    assert example("streaming").main(["--steps", "2"]) < FLOAT32


@pytest.mark.slow
def test_the_network_of_ones_own_learns() -> None:
    assert example("own_network").main([]) > 0.9
