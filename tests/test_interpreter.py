"""An outcome in the process that interprets is that of its test here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.interpreter import Interpreter

MODULE = """
import os
import pytest

@pytest.fixture
def broken():
    yield
    assert "the teardown" == 3

def test_passes(): assert os.environ["TRITON_INTERPRET"] == "1"
def test_fails(): assert 3 == 4
def test_skips(): pytest.skip("no reason")
def test_breaks(broken): pass
def test_dies(): os._exit(7)
def test_follows(): pass
"""
OUTCOMES = {
    "passes": ("passed", ""),
    "fails": ("failed", "assert 3 == 4"),
    "skips": ("skipped", "no reason"),
    "breaks": ("failed", "the teardown"),
    "dies": ("failed", "ended with 7"),
    "follows": ("failed", "ended with 7"),
}


def test_outcomes_are_those_of_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_module.py").write_text(MODULE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    cleanups: list[Any] = []
    nodeids = {name: f"test_module.py::test_{name}" for name in OUTCOMES}
    config: Any = SimpleNamespace(rootpath=tmp_path, add_cleanup=cleanups.append)
    interpreter = Interpreter(list(nodeids.values()), config)
    for name, (outcome, text) in OUTCOMES.items():
        found = interpreter.outcome(nodeids[name])
        assert found[0] == outcome
        assert text in found[1]
    assert cleanups == [interpreter.process.kill]
