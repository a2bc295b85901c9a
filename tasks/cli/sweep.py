"""`msssm sweep`: options of a recipe, searched by Optuna on the validation metric alone."""

import argparse

from msssm.errors import InputError
from tasks.cli.load import build
from tasks.cli.parser import CommandParser
from tasks.paths import path_option
from tasks.sweep.space import Option, check, parse
from tasks.table.places import open_pool, pool_arguments, resumable

EXAMPLES = """
msssm sweep --config quick/listops/msssm_s6 --results results/lr \\
    --vary model.lr=log:1e-4..1e-2 --trials 10 --trainer.max_steps 400
"""


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
        ValueError: a wrong option or range, another sweep's folder, Optuna missing, or no trial that came to its end.
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
    pool_arguments(parser, jobs="1 on this machine")
    options, overrides = parser.parse_known_args(args)
    space = [parse(text) for text in options.vary]
    _check_numbers(options, overrides, space)
    try:
        from tasks.sweep.study import open_study
        from tasks.sweep.trials import Runner
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise InputError("msssm sweep needs Optuna: pip install 'msssm[sweep]'") from error
    from tasks.sweep.table import write_table

    recipe = build(options.config, overrides)
    check(space, lambda override: build(options.config, [*overrides, override]))
    checkpoint = recipe.config[recipe.subcommand].checkpoint
    with open_study(options.results, recipe.recipe, space, checkpoint.mode) as (study, lock):
        pool = open_pool(options, 1, options.results, lock)
        runner = Runner(study, space, options.results, ["--config", options.config, *overrides])
        with resumable():
            runner.run(options.trials, pool)
        print(write_table(options.results, study, space, checkpoint.monitor))


def _check_numbers(options: argparse.Namespace, overrides: list[str], space: list[Option]) -> None:
    if options.trials < 1:
        raise InputError(f"--trials must be at least 1, got {options.trials}")
    names = [option.name for option in space]
    given = [word.removeprefix("--").split("=")[0] for word in overrides if word.startswith("--")]
    for name in names:
        if names.count(name) > 1 or name in given:
            raise InputError(f"{name} is given twice; vary it once, and do not set it besides")
    if own := {"run_dir", "config", "ckpt_path", "skip_test"} & {*given, *names}:
        raise InputError(f"--{own.pop()} belongs to the sweep, which sets it for each trial; leave it out")
