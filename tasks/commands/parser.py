"""The parser of a subcommand: its help is a page with examples, and an option's earlier name is told its new one."""

import argparse
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from msssm.errors import InputError


class CommandParser(argparse.ArgumentParser):
    """Parser of `msssm COMMAND`, described by the docstring of its `main`.

    Args:
        command: as it is typed, such as "data verify".
        main: whose docstring describes the command, up to what it raises.
        examples: command lines at the end of the help.
        renamed: options of earlier versions, and the words that replace them.
    """

    def __init__(
        self,
        command: str,
        main: Callable[..., Any],
        examples: str = "",
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """Has no options yet but --help."""
        description = textwrap.dedent(f"    {main.__doc__ or ''}").partition("\n\nRaises:")[0]
        super().__init__(
            prog=f"msssm {command}",
            description=description,
            epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}" if examples else None,
            formatter_class=_Page,
            allow_abbrev=False,
        )
        self.renamed = renamed or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses what belongs to the command, and returns the rest.

        Raises:
            InputError: an option has another name now.
        """
        for word in args or ():
            option = word.partition("=")[0]
            if option in self.renamed:
                raise InputError(f"{option} is called {self.renamed[option]} now")
        return super().parse_known_args(args, namespace)

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
        told = action.default in (None, argparse.SUPPRESS, False, []) or "default" in text
        return text if told or not action.option_strings else f"{text} (default: %(default)s)"
