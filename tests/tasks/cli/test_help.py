"""Every command's help reads as a page, in one vocabulary."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tasks.cli.main import COMMANDS, USAGE, main
from tasks.cli.pages import SUBCOMMANDS

PAGES = [[command] for command in COMMANDS] + [["data", "verify"], ["data", "generate"]]
# What names a place, and nothing else does.
PLACES = {
    "--config",
    "--run_dir",
    "--results",
    "--output",
    "--ckpt_path",
    "--root",
    "--source",
    "--records",
    "--labels",
}


def page(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_is_a_page(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(words, capsys, monkeypatch)
    assert text.startswith(f"usage: msssm {' '.join(words)} ")
    assert "Raises" not in text
    assert max(map(len, text.splitlines())) <= 80
    options = re.findall(r"^  (--\w+)(?: [^\n]*?)??(?:  +(\S.*)|\n {6,}(\S.*))$", text, re.M)
    unsaid = [name for name, beside, below in options if not beside and not below]
    assert not unsaid
    assert len(options) == len(re.findall(r"^  --\w+", text, re.M)), "each option has its text"
    places = {name for name, *_ in re.findall(r"(--\w+) (FOLDER|FILE|PATH|RUN|RECIPE)", text)}
    assert places <= PLACES
    for line in re.findall(r"^  (msssm .*)$", text.partition("examples:")[2], re.M):
        assert line.startswith(f"msssm {' '.join(words)}")


def test_the_commands_are_those_of_the_first_page() -> None:
    assert max(map(len, USAGE.splitlines())) <= 80
    listed = re.findall(r"^  ([a-z][\w, -]*?)  ", USAGE, re.M)
    named = {name for entry in listed for name in entry.split(", ")}
    assert named == {*COMMANDS, "fit", "validate", "test", "predict"}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_ended_ends_the_command_without_a_traceback(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tasks.cli.main", "recipes"]
    ended = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_help_of_a_recipe_is_one_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that it names is one: the parser prints them all under --help_all."""
    main([command, "--help"])
    screen = capsys.readouterr().out
    assert screen.startswith(f"usage: msssm {command} --config RECIPE [--OPTION VALUE ...]\n")
    assert len(screen.splitlines()) <= 50
    assert max(map(len, screen.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main([command, "--help_all"])
    everything = capsys.readouterr().out
    assert everything.startswith(f"usage: msssm {command} --config RECIPE [--OPTION VALUE ...]\n")
    assert "--trainer.max_epochs" in everything
    named = set(re.findall(r"^  (--[\w.]+)", screen, re.M)) - {"--plugins"}
    of_classes = {name for name in named if name.startswith(("--model.", "--data.")) and not name.endswith(".help")}
    assert {name for name in named - of_classes if not re.search(rf"{name}\b", everything)} == set()
