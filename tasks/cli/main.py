"""The `msssm` command. Lightning is imported only by the commands that need it."""

import os
import select
import signal
import sys
from importlib import import_module
from importlib.metadata import version

from tasks.cli.pages import SUBCOMMANDS, page
from tasks.complaints import complaint
from tasks.process import settle

USAGE = """usage: msssm COMMAND ...

use a trained model
  ecg              what it says about your ECG, at once
  finetune         an ECG model that learns labels of your own

train and ask one network
  fit              a recipe trained, and tested at its best validation
  validate, test   its weights measured again
  predict          its answers for your data
  diagnose         what it does, as plots on one page
  listops-report   its accuracy by operator, depth, length, and on longer ones
  export           a folder to share, without pickle

compare many
  recipes          the recipes and experiments there are
  experiment       every row of a table, trained and tabulated
  sweep            options of a recipe, searched
  table            complete runs as a table and plots
  compare          two runs on the same test samples

this machine
  doctor           what is installed, and what each operator runs on
  data             a data set checked or generated
  --version

One word each: --config names a recipe, --run_dir the folder of one run,
--results that of many, --output where anything else is written.

examples:
  msssm ecg recording.hea
  msssm fit --config quick/listops/msssm_s6 --run_dir runs/mine
  msssm diagnose --run_dir runs/mine
  msssm experiment quick --tasks listops

`msssm COMMAND --help` says more."""

# Each has `main(args)`.
COMMANDS = {
    "ecg": "tasks.cli.ecg",
    "finetune": "tasks.cli.finetune",
    "recipes": "tasks.cli.recipes",
    "table": "tasks.cli.table",
    "experiment": "tasks.cli.experiment",
    "sweep": "tasks.cli.sweep",
    "compare": "tasks.cli.compare",
    "doctor": "msssm.doctor",
    "diagnose": "tasks.cli.diagnose",
    "listops-report": "tasks.cli.listops_report",
    "export": "tasks.cli.export",
    "data": "tasks.cli.data",
}


def main(args: list[str] | None = None) -> None:
    """Runs one command; `args` as `sys.argv[1:]`, which is the default.

    Raises:
        SystemExit: with code 2 and a short message where the input was wrong, 130 after an interruption,
            141 where nobody reads the output any more.
    """
    # The command draws into files alone; a notebook leaves its own backend here, which nothing else can import.
    os.environ["MPLBACKEND"] = "agg"
    settle()
    try:
        _dispatch(args)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        print("msssm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = complaint(error)
        if message is None:
            raise
        print(f"msssm: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has ended, as in `msssm recipes | head`."""
    output = select.poll()
    output.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _dispatch(args: list[str] | None) -> None:
    words = sys.argv[1:] if args is None else args
    command = words[0] if words else "--help"
    if command == "--version":
        print(version("msssm"))
    elif command in COMMANDS:
        import_module(COMMANDS[command]).main(words[1:])
    elif command in SUBCOMMANDS and {"-h", "--help"} & set(words):
        print(page(command))
    elif command in SUBCOMMANDS:
        from tasks.cli.training import MsssmCLI

        MsssmCLI(args)  # None reads sys.argv, which relaunched DDP processes need
    elif command in ("-h", "--help"):
        print(USAGE)
    else:
        print(f"msssm: no command {command!r}\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
