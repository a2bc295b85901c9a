"""`msssm data`: check a data set on disk, or generate one. Neither needs a recipe."""

from pathlib import Path

from tasks.cli.parser import CommandParser
from tasks.paths import path_option


def main(args: list[str]) -> None:
    """Checks a data set on disk (verify), or writes a synthetic one in its format (generate). Neither needs a recipe.

    Raises:
        SystemExit: something is missing or corrupt (code 1).
    """
    actions = {"verify": verify, "generate": generate}
    if args and args[0] in actions:
        actions[args[0]](args[1:])
        return
    examples = """
        msssm data verify ptbxl
        msssm data generate ptbxl --count 600
    """
    parser = CommandParser("data", main, examples)
    parser.add_argument("action", choices=actions, help="each has a --help of its own")
    parser.parse_args(args)


def generate(args: list[str]) -> None:
    """Writes synthetic records in the data set's own format, with labels that follow from how each record was made."""
    parser = CommandParser("data generate", generate, "msssm data generate ptbxl --root data --count 600")
    _data_set(parser, ["ptbxl"])
    parser.add_argument("--count", type=int, default=400, metavar="N", help="records")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random")
    parser.add_argument(
        "--sampling_rates", type=int, nargs="+", default=[100], metavar="HZ", help="100, 500, or both: 100 500"
    )
    options = parser.parse_args(args)
    from datamodules import ptbxl

    rates = tuple(options.sampling_rates)
    print(ptbxl.generate(options.root, options.count, seed=options.seed, sampling_rates=rates, progress=True))


def _data_set(parser: CommandParser, choices: list[str]) -> None:
    parser.add_argument("dataset", choices=choices, metavar="NAME", help=" or ".join(choices))
    parser.add_argument("--root", type=path_option, default=Path("data"), metavar="FOLDER", help="of all data sets")


def verify(args: list[str]) -> None:
    """Names what is missing or corrupt in a data set: files, digests, records, and what was converted from them.

    Raises:
        SystemExit: with code 1 if anything is.
    """
    examples = """
        msssm data verify ptbxl
        msssm data verify cifar10 --source cifar-10-python.tar.gz
    """
    parser = CommandParser("data verify", verify, examples)
    _data_set(parser, ["ptbxl", "cifar10"])
    parser.add_argument(
        "--source", type=path_option, metavar="PATH", help="folder or archive of the data set; ROOT/NAME by default"
    )
    parser.add_argument("--verbose", action="store_true", help="every fault, where a folder has many")
    options = parser.parse_args(args)
    from datamodules.faults import summary

    folder = options.root / options.dataset
    converted = sorted(folder.glob("converted-*"))
    if options.dataset == "ptbxl":
        from datamodules import ptbxl

        source = ptbxl.files.find(options.source or folder)
        faults = ptbxl.verify(source, converted)
    else:
        from datamodules.images import cifar10_files

        source = cifar10_files.find(options.source or folder)
        faults = cifar10_files.verify(source, converted)
    lines = [str(fault) for fault in faults]
    short = lines if options.verbose else summary(faults)
    print(*short, sep="\n", end="\n" if short else "")
    hint = " (--verbose lists them all)" if len(short) < len(lines) else ""
    print(f"{source}: {len(faults)} fault{'s' * (len(faults) > 1)}{hint}" if faults else f"{source}: whole")
    if faults:
        raise SystemExit(1)
