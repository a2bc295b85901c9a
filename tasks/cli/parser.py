"""The parser of a subcommand, whose help is a page with examples."""

import argparse
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """Parser of `msssm COMMAND`, described by the docstring of its `main`.

    Args:
        command: as it is typed, such as "data verify".
        main: whose docstring describes the command, up to what it raises.
        examples: command lines at the end of the help.
    """

    def __init__(self, command: str, main: Callable[..., Any], examples: str) -> None:
        """Has no options yet but --help."""
        super().__init__(
            prog=f"msssm {command}",
            description=(inspect.getdoc(main) or "").partition("\n\nRaises:")[0],
            epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
            formatter_class=_Page,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Ends with one line, as wrong options of a recipe do, and code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Page(argparse.HelpFormatter):
    """Paragraphs stay paragraphs, indented lines stay as they are, and defaults are told."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            paragraph if "\n  " in paragraph else super(_Page, self)._fill_text(paragraph, width, indent)
            for paragraph in text.split("\n\n")
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        untold = any(action.default is each for each in (None, False, argparse.SUPPRESS)) or action.default == []
        if untold or "default" in text or not action.option_strings:
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{text} (default: {default})"
