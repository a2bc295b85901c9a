"""`msssm table`: complete runs of one experiment, gathered into table.md, table.csv, table.html and plots."""

from msssm.errors import InputError
from tasks.cli.parser import CommandParser
from tasks.paths import path_option
from tasks.table.files import experiment_files
from tasks.table.render import write_table
from tasks.table.spec import read_table


def main(args: list[str]) -> None:
    """Gathers the complete runs of a results folder into a table: prints it, and writes it with plots beside the runs.

    It writes table.md, table.csv (one line per run, with its provenance), table.html (both, with the plots, on one
    page), the plots, and TASK.yaml with the recipes of the runs. Labels, order, metric and the paper's numbers are
    those of the experiment whose rows the runs are.

    Raises:
        InputError: there is no complete run, one is damaged, or runs of one task do not belong together.
    """
    parser = CommandParser("table", main, "msssm table results/quick")
    parser.add_argument("folder", type=path_option, metavar="RESULTS", help="folder with runs/ in it")
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help="whose labels and order: an experiment, or a folder of tables of your own; by default that of the rows",
    )
    parser.add_argument("--of", metavar="NAME", help="over whose base they were trained, as of msssm experiment")
    options = parser.parse_args(args)
    known = [read_table(path) for path in experiment_files(options.experiment)] if options.experiment else []
    if options.of and not known:
        raise InputError(f"asked for --of {options.of} without an experiment; name it too: --experiment ablations")
    if options.of:
        tasks = {path.stem for path in experiment_files(options.of)}
        known = [table.of(options.of) for table in known if table.task in tasks]
    write_table(options.folder, known)
