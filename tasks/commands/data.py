"""`msssm data`: check a data set on disk, or generate one. Neither needs a recipe."""

import argparse
from pathlib import Path

from tasks.paths import path_option


def main(args: list[str]) -> None:
    """Runs `verify ptbxl`, `verify cifar10` or `generate ptbxl`.

    Raises:
        SystemExit: something is missing or corrupt (code 1).
    """
    parser = argparse.ArgumentParser(prog="msssm data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("verify", help="name what is missing or corrupt; exit code 1 if anything is")
    make = commands.add_parser("generate", help="write synthetic records in the data set's own format")
    for command, choices in ((check, ["ptbxl", "cifar10"]), (make, ["ptbxl"])):
        command.add_argument("dataset", choices=choices)
        command.add_argument("--root", type=path_option, default=Path("data"), help="folder for data sets")
    check.add_argument("--verbose", action="store_true", help="every fault, where a folder has many")
    check.add_argument("--source", type=path_option, help="folder or archive of the data set, if not <root>/<dataset>")
    make.add_argument("--count", type=int, default=400, help="records")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--rates", type=int, nargs="+", default=[100], help="Hz: 100, 500")
    options = parser.parse_args(args)
    if options.command == "generate":
        _generate(options)
    else:
        _verify(options)


def _generate(options: argparse.Namespace) -> None:
    from datamodules.ptbxl import generate

    rates = tuple(options.rates)
    print(generate(options.root, options.count, seed=options.seed, sampling_rates=rates, progress=True))


def _verify(options: argparse.Namespace) -> None:
    from datamodules.faults import summary

    folder = options.root / options.dataset
    converted = sorted(folder.glob("converted-*"))
    if options.dataset == "ptbxl":
        from datamodules import ptbxl

        source = ptbxl.files.find(options.source or folder)
        faults = ptbxl.verify(source, converted)
    else:
        from datamodules import cifar10

        source = cifar10.files.find(options.source or folder)
        faults = cifar10.verify(source, converted)
    lines = [str(fault) for fault in faults]
    short = lines if options.verbose else summary(faults)
    print(*short, sep="\n", end="\n" if short else "")
    hint = " (--verbose lists them all)" if len(short) < len(lines) else ""
    print(f"{source}: {len(faults)} fault{'s' * (len(faults) > 1)}{hint}" if faults else f"{source}: whole")
    if faults:
        raise SystemExit(1)
