"""Tests of modules marked `interpreted`, each an item of its own that runs in a process where Triton interprets.

Triton reads TRITON_INTERPRET once, at its first import, and a worker of the suite has imported it for others. The first
item of a module starts one process for all of them, which sends each outcome as it comes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

VARIABLE, DESCRIPTOR = "TRITON_INTERPRET", "MSSSM_OUTCOMES"


class InterpretedError(Exception):
    """What the other process printed of a test that failed."""


class Interpreted(pytest.Item):
    """Stands for a test function of such a module, under its name and marks."""

    def __init__(self, *, function: pytest.Item, **options: Any) -> None:
        super().__init__(**options)
        self.own_markers, self.function = function.own_markers, function

    def runtest(self) -> None:
        interpreter = self.config.stash.setdefault(RUNNING, {}).get(self.path)
        if interpreter is None:
            chosen = [item.nodeid for item in self.session.items if item.path == self.path]
            interpreter = self.config.stash[RUNNING][self.path] = Interpreter(chosen, self.config)
        outcome, text = interpreter.outcome(self.nodeid)
        if outcome == "skipped":
            pytest.skip(text)
        if outcome == "failed":
            raise InterpretedError(text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return (
            str(excinfo.value) if isinstance(excinfo.value, InterpretedError) else super().repr_failure(excinfo, style)
        )

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.function.reportinfo()


class Interpreter:
    """The process of one module, and the outcomes that it has sent so far."""

    def __init__(self, nodeids: list[str], config: pytest.Config) -> None:
        receive, send = os.pipe()
        self.output = TemporaryFile("w+")  # noqa: SIM115 -- as long as the process
        self.outcomes: dict[str, tuple[str, str]] = {}
        environment = os.environ | {VARIABLE: "1", DESCRIPTOR: str(send), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-p", __name__, *nodeids]
        self.process = subprocess.Popen(
            command, cwd=config.rootpath, env=environment, pass_fds=[send], stdout=self.output, stderr=subprocess.STDOUT
        )
        os.close(send)
        self.reports = os.fdopen(receive)
        config.add_cleanup(self.process.kill)

    def outcome(self, nodeid: str) -> tuple[str, str]:
        """ "passed", "skipped" or "failed", and what was printed of it; waits until the test is over."""
        while nodeid not in self.outcomes:
            line = self.reports.readline()
            if not line:
                self.process.wait()
                self.output.seek(0)
                return "failed", f"its process ended with {self.process.returncode}:\n{self.output.read()[-20000:]}"
            name, *outcome = json.loads(line)
            self.outcomes[name] = outcome[0], outcome[1]
        return self.outcomes[nodeid]


RUNNING = pytest.StashKey[dict[Path, Interpreter]]()


def interpreted_apart(items: list[pytest.Item]) -> None:
    """Puts an `Interpreted` in the place of each test so marked, unless this is the process that interprets."""
    for i, item in enumerate(items):
        if item.get_closest_marker("interpreted") and os.environ.get(VARIABLE) != "1":
            assert item.parent is not None
            items[i] = Interpreted.from_parent(item.parent, name=item.name, function=item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """In the process that interprets, whose plugin this module is: sends the outcome of a test at its end."""
    reports: list[pytest.TestReport] = []
    item.stash[REPORTS] = reports
    result = yield
    worst = next((r for kind in ("failed", "skipped") for r in reports if r.outcome == kind), reports[-1])
    text = worst.longrepr[2] if isinstance(worst.longrepr, tuple) else f"{worst.longreprtext}\n{worst.capstdout}"
    os.write(int(os.environ[DESCRIPTOR]), (json.dumps((item.nodeid, worst.outcome, text)) + "\n").encode())
    return result


REPORTS = pytest.StashKey[list[pytest.TestReport]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    item.stash[REPORTS].append(report)
    return report
