"""`msssm profile`: memory and time of one multi-scale block over levels and lengths, and the fitted law."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from msssm import MultiScaleSSM
from msssm.block import Block
from msssm.diagnostics import PowerLaw, fit_power_law, measure_cost, measure_kept
from msssm.errors import InputError
from tasks.cli.parser import CommandParser
from tasks.paths import make_folder, path_option
from tasks.reports.diagnosis_plots import profile_plot
from tasks.reports.markdown import table
from tasks.run.provenance import provenance, write_json

# Whether its bands, step sizes and projections are computed again in the backward, see `msssm.recompute`.
PARTS = {"block": True, "block that keeps everything": False}
TRUSTED = 0.15  # largest relative residual of a law that is reported without a warning


class BlockCost(NamedTuple):
    """Cost of one forward + backward: time, peak memory, and the bytes kept for the backward, including its output."""

    seconds: float
    peak: int
    kept: int


def main(args: list[str]) -> None:
    """Measures the time and memory of one block, forward and backward, over levels and lengths.

    The block is measured as it is and keeping everything for its backward. Through the points goes the law
    value = factor * bands^a * length^b, with bands = levels + 2. Writes profile.json, .md and .png.
    """
    parser = CommandParser("profile", main, "msssm profile --levels 0 1 3 --lengths 512 2048 --output runs/profile")
    parser.add_argument(
        "--output", type=path_option, default=Path("runs/profile"), metavar="FOLDER", help="where to write"
    )
    for name, values, text in (
        ("levels", [0, 1, 2, 3, 4, 5, 6], "S, each with each of the lengths"),
        ("lengths", [512, 1024, 2048, 4096], "L"),
    ):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values, metavar="N", help=text)
    for name, default, text in (
        ("d_model", 128, "D, channels"),
        ("state_size", 16, "N, states of each band"),
        ("kernel_size", 4, "K, taps of a filter"),
        ("batch_size", 4, "B"),
        ("rounds", 3, "over all points; the shortest time of each counts"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    options = parser.parse_args(args)
    if options.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {options.rounds}")
    origin = provenance()  # of the code as it was loaded
    try:
        device = torch.empty(0, device=options.device).device
    except (RuntimeError, AssertionError) as error:  # no such kind, or none of it here
        raise InputError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from error
    costs: dict[tuple[str, int, int], list[BlockCost]] = {}
    # In rounds over all points, so that a slow period of the machine does not affect one of them alone.
    for _ in range(options.rounds):
        for levels in options.levels:
            for name, recompute in PARTS.items():
                block = Block(MultiScaleSSM(options.d_model, levels, options.kernel_size, options.state_size))
                block.recompute = recompute
                for length in options.lengths:
                    cost = training_cost(block.to(device), (options.batch_size, length, options.d_model), device)
                    costs.setdefault((name, levels, length), []).append(cost)
    points = [
        {"part": name, "levels": levels, "length": length, **best(found)._asdict()}
        for (name, levels, length), found in costs.items()
    ]
    laws = {name: {value: law(points, name, value) for value in BlockCost._fields} for name in PARTS}
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    make_folder(options.output)
    written = {name: {value: fit and fit._asdict() for value, fit in each.items()} for name, each in laws.items()}
    content = {"settings": settings, "points": points, "laws": written, **origin}
    write_json(options.output / "profile.json", content)
    (options.output / "profile.md").write_text(as_markdown(content, laws))
    profile_plot(options.output / "profile.png", points, laws)
    for name, each in laws.items():
        for value, fit in each.items():
            print(f"{name}, {value}: {describe(fit)}")
    print(options.output / "profile.png")


def training_cost(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> BlockCost:
    """Measures forward and backward, with gradients of input and parameters; without the input itself."""
    x = torch.randn(shape, device=device, requires_grad=True)
    # Without levels the filters are empty, and no gradient reaches them.
    leaves = [x, *(parameter for parameter in module.parameters() if parameter.numel())]

    def run() -> object:
        return torch.autograd.grad(module(x).sum(), leaves, allow_unused=True)

    return BlockCost(*measure_cost(run, device), measure_kept(lambda: module(x), device))


def best(costs: list[BlockCost]) -> BlockCost:
    """Combines the rounds of one point: the shortest time, since others only add to it, and the median memory."""
    seconds, peaks, kept = zip(*costs, strict=True)
    return BlockCost(min(seconds), int(statistics.median(peaks)), int(statistics.median(kept)))


def law(points: list[dict[str, Any]], part: str, value: str) -> PowerLaw | None:
    """Fits a law to the points of one part; None if they do not determine it, or memory cannot be measured."""
    chosen = [point for point in points if point["part"] == part]
    bands, lengths = [point["levels"] + 2 for point in chosen], [point["length"] for point in chosen]
    values = [point[value] for point in chosen]
    if min(values) <= 0 or len(set(bands)) < 2 or len(set(lengths)) < 2:
        return None
    return fit_power_law(bands, lengths, values)


def describe(fit: PowerLaw | None) -> str:
    """Describes a law in words."""
    if fit is None:
        return "not determined by these points"
    text = f"{fit.factor:.3g} * bands^{fit.bands_exponent:.2f} * length^{fit.length_exponent:.2f}"
    residual = f"residual {100 * fit.residual:.0f} %"
    return f"{text}, {residual}" if fit.residual <= TRUSTED else f"{text}, not trustworthy: {residual}"


def as_markdown(content: dict[str, Any], laws: dict[str, dict[str, PowerLaw | None]]) -> str:
    """Formats the laws, and the memory of every point."""
    settings, commit = content["settings"], (content["commit"] or "none")[:12]
    processor = " + ".join(content["hardware"]["gpus"]) if settings["device"] != "cpu" else None
    lines = [
        f"# Memory and time of a multi-scale block on {processor or content['hardware']['processor']}",
        "",
        f"Forward + backward, D = {settings['d_model']}, N = {settings['state_size']} per band, "
        f"K = {settings['kernel_size']}, {settings['batch_size']} rows; a block is layer, GLU, residual and norm. "
        f"Commit {commit}{' with uncommitted changes' if content['dirty'] else ''}. Bands are S + 2. "
        "Other programs affect the times, but not the memory.",
        "",
        *(f"- {name}, {value}: {describe(fit)}" for name, each in laws.items() for value, fit in each.items()),
    ]
    lengths = sorted({point["length"] for point in content["points"]})
    inputs = {n: settings["batch_size"] * n * settings["d_model"] * 4 for n in lengths}
    tables = [(part, value, title) for part in laws for value, title in (("kept", "Kept"), ("peak", "Peak memory"))]
    for part, value, title in tables:
        unit = "times its input" if value == "kept" else "MiB"
        rows = [["S", *(f"L = {n}" for n in lengths)]]
        for levels in sorted({point["levels"] for point in content["points"]}):
            row = {p["length"]: p[value] for p in content["points"] if (p["part"], p["levels"]) == (part, levels)}
            cells = (row[n] / (inputs[n] if value == "kept" else 2**20) for n in lengths)
            rows.append([str(levels), *(f"{cell:.1f}" for cell in cells)])
        lines += ["", f"## {title} of the {part}, {unit}", "", *table(rows, left=0)]
    return "\n".join(lines) + "\n"
