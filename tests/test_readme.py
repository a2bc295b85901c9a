"""What the README and the docs tell the reader to type exists and parses."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), *Path("docs").glob("*.md")]
BLOCKS = [
    (page.name, line.split("#")[0].strip())
    for page in PAGES
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
PYTHON = [(page.name, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize(("page", "command"), [block for block in BLOCKS if block[1].startswith("make ")])
def test_make_commands_are_targets(page: str, command: str) -> None:
    words = shlex.split(command)
    subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True)


@pytest.mark.parametrize(("page", "command"), [block for block in BLOCKS if "msssm " in block[1]])
def test_msssm_commands_name_files_that_exist(page: str, command: str) -> None:
    for path in re.findall(r"configs/\S+\.yaml", command):
        assert Path(path).exists()


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_examples_run(page: str, code: str) -> None:
    """Their own assertions are the check."""
    assert "assert" in code
    exec(compile(code, page, "exec"), {})


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 8
    assert PYTHON
