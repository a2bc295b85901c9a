"""`msssm sweep`: options of a recipe, searched by Optuna on the validation metric alone."""

from msssm.errors import InputError
from tasks.cli.load import build
from tasks.cli.parser import CommandParser
from tasks.paths import path_option
from tasks.table.cluster import place, place_arguments

EXAMPLES = """
msssm sweep --config quick/listops/msssm_s6 --results results/lr \\
    --vary model.lr=log:1e-4..1e-2 --trials 10 --trainer.max_steps 400
"""
OWN = {"run_dir", "config", "ckpt_path", "skip_test"}


def main(args: list[str]) -> None:
    """Searches options of a recipe: each trial is an `msssm fit` in its own folder, validated and never tested.

    Options that are not of the sweep are passed on to every `msssm fit`. The same command resumes an interrupted sweep:
    unfinished trials from their checkpoints, finished ones as they are; with a larger --trials it adds some. Values of
    --vary:

        model.lr=log:1e-4..1e-2                     log-uniform
        model.backbone.dropout=0..0.3               uniform
        model.backbone.n_layers=2..6                integers, both ends included
        model.backbone.layer.mixer=input,softmax    a choice

    Raises:
        InputError: a wrong option or range, another sweep's folder, Optuna missing, or no trial that came to its end.
        SystemExit: with code 130 at Ctrl-C and SIGTERM, after the trials have written their checkpoints.
    """
    parser = CommandParser("sweep", main, EXAMPLES)
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a recipe, or its name")
    parser.add_argument(
        "--results", type=path_option, required=True, metavar="FOLDER", help="of the study, its trials and its table"
    )
    parser.add_argument(
        "--vary", action="append", required=True, metavar="OPTION=VALUES", help="an option to search; once for each"
    )
    parser.add_argument(
        "--trials", type=int, default=20, metavar="N", help="of the whole sweep, those that are there included"
    )
    place_arguments(parser, jobs="1 on this machine")
    options, overrides = parser.parse_known_args(args)
    if options.trials < 1:
        raise InputError(f"--trials must be at least 1, got {options.trials}")
    try:
        from tasks.sweep import extremes, open_study, parse, search, write_table
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise InputError("msssm sweep needs Optuna: pip install 'msssm[sweep]'") from error
    space = dict(map(parse, options.vary))
    given = {word.removeprefix("--").split("=")[0] for word in overrides if word.startswith("--")}
    if len(space) < len(options.vary) or given & space.keys():
        raise InputError("an option is given twice; vary each once, and do not set it besides")
    if own := OWN & (given | space.keys()):
        raise InputError(f"--{own.pop()} belongs to the sweep, which sets it for each trial; leave it out")
    built = build(options.config, overrides)
    for name, values in space.items():
        for value in extremes(values):
            build(options.config, [*overrides, f"--{name}={value}"])
    checkpoint = built.config[built.subcommand].checkpoint
    question = {"recipe": built.recipe, **{f"--vary {name}": str(values) for name, values in space.items()}}
    with open_study(options.results, question, checkpoint.mode) as study:
        start, room = place(options, 1, options.results)
        words = ["--config", options.config, *overrides]
        search(study, space, options.results, words, options.trials, start, room)
        print(write_table(options.results, study, checkpoint.monitor))
