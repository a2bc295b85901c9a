"""The `msssm` command. Lightning is imported only by the commands that need it."""

import sys

import msssm

USAGE = """usage: msssm COMMAND ...

  fit, validate, test, predict   run a recipe: msssm fit --config configs/listops.yaml [--option value ...]
  table                          gather complete runs into a table and plots: msssm table results/quick
  --version

`msssm fit --help` lists the options of a recipe."""


def main(args: list[str] | None = None) -> None:
    """Runs one command; `args` as `sys.argv[1:]`, which is the default."""
    words = sys.argv[1:] if args is None else args
    command = words[0] if words else "--help"
    if command == "--version":
        print(msssm.__version__)
    elif command == "table":
        from tasks.table import main as table

        table(words[1:])
    elif command in ("fit", "validate", "test", "predict"):
        from tasks.cli import MsssmCLI

        MsssmCLI(args)  # None reads sys.argv, which relaunched DDP processes need
    elif command in ("-h", "--help"):
        print(USAGE)
    else:
        print(f"msssm: no command {command!r}\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
