"""The `msssm` command. Lightning is imported only by the commands that need it."""

import os
import sys
from importlib import import_module
from importlib.metadata import version

from tasks.complaints import complaint
from tasks.process import settle

USAGE = """usage: msssm COMMAND ...

use a trained model
  ecg              what it says about your ECG, at once: msssm ecg recording.hea

train and ask one network
  fit              train a recipe: msssm fit --config listops [--option value ...]
  validate, test   its weights again: msssm test --config runs/mine/config.yaml
  predict          answers for your data: msssm predict --config runs/mine/config.yaml --record ecg.csv
  diagnose         what it does, as plots on one page: msssm diagnose --run_dir runs/mine
  listops-report   its accuracy by operator, depth and length, and beyond the trained lengths
  export           a folder to share, without pickle: msssm export --run_dir runs/mine --output my_model

compare many
  recipes          the recipes and experiments there are: msssm recipes listops
  experiment       every row of a table, trained and tabulated: msssm experiment quick --tasks listops
  sweep            options of a recipe, searched: msssm sweep --config listops --results results/lr --vary ...
  table            complete runs as a table and plots: msssm table results/quick
  compare          two runs on the same test samples: msssm compare runs/a runs/b

this machine
  doctor           what is installed, what each operator runs on, and whether it could be faster
  profile          memory and time of a block over levels and lengths
  data             check or generate a data set: msssm data verify ptbxl
  --version

One word each: --config a recipe or its name, --run_dir the folder of one run, --results that of many, --output
where anything else is written. `msssm COMMAND --help` says more."""

# Each has `main(args)`.
COMMANDS = {
    "ecg": "tasks.commands.ecg",
    "recipes": "tasks.commands.recipes",
    "table": "tasks.commands.table",
    "experiment": "tasks.commands.experiment",
    "sweep": "tasks.commands.sweep",
    "compare": "tasks.commands.compare",
    "doctor": "msssm.doctor",
    "diagnose": "tasks.commands.diagnose",
    "listops-report": "tasks.commands.listops_report",
    "profile": "tasks.commands.profile",
    "export": "tasks.commands.export",
    "data": "tasks.commands.data",
}


def main(args: list[str] | None = None) -> None:
    """Runs one command; `args` as `sys.argv[1:]`, which is the default.

    Raises:
        SystemExit: with code 2 and a short message where the input was wrong, 130 after an interruption.
    """
    # The command draws into files alone; a notebook leaves its own backend here, which nothing else can import.
    os.environ["MPLBACKEND"] = "agg"
    settle()
    try:
        _dispatch(args)
    except KeyboardInterrupt:
        print("msssm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = complaint(error)
        if message is None:
            raise
        print(f"msssm: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _dispatch(args: list[str] | None) -> None:
    words = sys.argv[1:] if args is None else args
    command = words[0] if words else "--help"
    if command == "--version":
        print(version("msssm"))
    elif command in COMMANDS:
        import_module(COMMANDS[command]).main(words[1:])
    elif command in ("fit", "validate", "test", "predict"):
        from tasks.commands.cli import MsssmCLI

        MsssmCLI(args)  # None reads sys.argv, which relaunched DDP processes need
    elif command in ("-h", "--help"):
        print(USAGE)
    else:
        print(f"msssm: no command {command!r}\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
