"""`msssm diagnose`: the behaviour of a trained model on validation data of its run, as plots, numbers and one page."""

import itertools
import time
from typing import Any, cast

import torch
from torch import Tensor, nn

from msssm import Backbone, SequenceLayer
from msssm.block import Block
from msssm.decomposition import MultiScaleDecomposition
from msssm.diagnostics import (
    Call,
    band_memory,
    largest_eigenvalue,
    mixer_report,
    mixer_shares,
    mixing_distance,
    padding_error,
    receptive_field,
    shift_error,
    trace_calls,
)
from msssm.errors import InputError
from msssm.scale_mixer import ScaleMixer
from msssm.ssm import S4, S6
from tasks.cli.load import LoadedRun, find_backbone, load_run, run_arguments
from tasks.cli.parser import CommandParser
from tasks.paths import make_folder
from tasks.reports import diagnosis_plots
from tasks.reports.diagnosis_page import write_page
from tasks.run.provenance import write_json

# Largest error of a probe by rounding: of float32, and of the FFT in the time-invariant scan.
TOLERANCE = 1e-3
MAX_BATCHES = 64  # of the validation data, from which samples are taken
PROBED = 512  # steps of the probes of shift and padding


def main(args: list[str]) -> None:
    """Says what a trained model does: how far each band remembers, what the mixer weighs, and what looks wrong.

    Writes diagnostics.html (one page with its plots), diagnostics.json and the plots into the run's folder, and prints
    the alarms. Further options are those of the recipe, for example --data.root elsewhere.
    """
    parser = CommandParser("diagnose", main, "msssm diagnose --run_dir runs/mine")
    run_arguments(parser)
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="validation samples, over all batches")
    parser.add_argument("--channels", type=int, default=8, metavar="N", help="output channels of each Jacobian")
    options, overrides = parser.parse_known_args(args)
    start = time.monotonic()
    run = load_run(options, overrides)
    result, arrays = diagnose(run, options.samples, options.channels)
    result["seconds"] = time.monotonic() - start
    make_folder(run.folder)
    write_json(run.folder / "diagnostics.json", result)
    plots = diagnosis_plots.write_all(run.folder, result["layers"], arrays)
    write_page(run.folder / "diagnostics.html", result, plots)
    for alarm in result["alarms"]:
        print(f"ALARM {alarm}")
    print(f"{run.folder / 'diagnostics.html'}: {len(result['layers'])} layers, {len(result['alarms'])} alarms")


def diagnose(run: LoadedRun, rows: int, channels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Computes the content of diagnostics.json, and arrays for the plots.

    Raises:
        ValueError: rows or channels are below 1, the task has no `msssm.Backbone`, or a parameter is not finite.
    """
    if rows < 1 or channels < 1:
        raise InputError(f"--samples and --channels must be at least 1, got {rows} and {channels}")
    for name, parameter in run.task.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(
                f"{name} is not finite in {run.checkpoint}: diagnose an earlier checkpoint, or train again"
            )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = cast(nn.Module, run.task.model).to(device)
    _, backbone = find_backbone(network)
    samples = validation_rows(run, rows, device)
    calls: list[list[Call]] = []
    for sample in samples:
        with torch.no_grad(), trace_calls(network, SequenceLayer, S4, S6, ScaleMixer) as recorded:
            network(sample)
        calls.append(recorded)
    longest = max(calls, key=lambda recorded: recorded[-1].output.shape[1])
    layers: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for call in longest:
        if not isinstance(call.module, SequenceLayer) or isinstance(call.module, Block | Backbone):
            continue
        same = [each for recorded in calls for each in recorded if each.path.startswith(f"{call.path}.")]
        layer, arrays[call.path] = _layer(call, same, channels)
        layers.append(layer)
    [whole] = [call for call in longest if call.module is backbone]
    inputs = whole.args[0]
    result: dict[str, Any] = {
        "checkpoint": None if run.checkpoint is None else str(run.checkpoint),
        "network": type(run.task).__name__,
        "parameters": sum(p.numel() for p in run.task.parameters()),
        "lengths": [recorded[-1].output.shape[1] for recorded in calls],
        "backbone": {
            "mixing_distance": _mixing(backbone, inputs, max(1, channels // 2))[0],
            "padding_error": _padding_error(backbone, inputs),
        },
        "layers": layers,
    }
    result["mean_mixing_distance"] = sum(layer["mixing_distance"] for layer in layers) / len(layers)
    result["alarms"] = alarms(result)
    return result, arrays


def validation_rows(run: LoadedRun, rows: int, device: torch.device) -> list[Tensor]:
    """Unpadded inputs (1, L, ...) of samples spread over the validation batches, which may be sorted by length."""
    run.datamodule.prepare_data()
    run.datamodule.setup("validate")
    loader = run.datamodule.val_dataloader()
    places = torch.linspace(0, min(len(loader), MAX_BATCHES) - 1, rows).round().int().tolist()
    samples = []
    for place, given in enumerate(itertools.islice(loader, places[-1] + 1)):
        batch = run.datamodule.on_after_batch_transfer(given, 0)  # images come as bytes
        count = min(places.count(place), len(batch.x))
        for row in torch.linspace(0, len(batch.x) - 1, count).round().int().tolist():
            length = int(batch.lengths[row]) if len(batch.lengths) == len(batch.x) else None
            # An image (B, C, H, W) has more positions than channels, and stays whole.
            samples.append(batch.x[row : row + 1, :length].to(device))
    return samples


def _padding_error(layer: SequenceLayer, x: Tensor) -> float:
    probed = x[:, :PROBED]
    # A finite padding, so that a leak has a size.
    return padding_error(layer, probed, max(1, probed.shape[1] * 2 // 3), padding=1e3)


def _mixing(layer: SequenceLayer, x: Tensor, channels: int) -> tuple[float, Tensor]:
    """Mean mixing distance over evenly spaced output channels, and the profile."""
    chosen = torch.linspace(0, layer.d_model - 1, min(channels, layer.d_model)).round().int().tolist()
    mixing = mixing_distance(layer, x[0], channels=chosen)
    return mixing.distance.mean().item(), mixing.profile


@torch.no_grad()
def _layer(call: Call, within: list[Call], channels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers for the file and arrays for the plots of one layer; `within` are the calls inside it, of all rows."""
    layer, x = cast(SequenceLayer, call.module), call.args[0]
    distance, profile = _mixing(layer, x, channels)
    numbers: dict[str, Any] = {
        "path": call.path,
        "layer": type(layer).__name__,
        "mixing_distance": distance,
        "shift_error": shift_error(layer, x[:, :PROBED], 5),
        "padding_error": _padding_error(layer, x),
    }
    arrays: dict[str, Any] = {"profile": profile.cpu().numpy()}
    for module in layer.modules():
        if isinstance(module, MultiScaleDecomposition):
            numbers["receptive_field"] = receptive_field(module).tolist()
    gates = [each.args[0] for each in within if isinstance(each.module, S4 | S6)]
    if gates:
        ssm = next(each.module for each in within if isinstance(each.module, S4 | S6))
        memories = [band_memory(ssm, x_row) for x_row in gates]
        numbers["memory"] = {
            name: torch.stack([getattr(memory, name) for memory in memories]).mean(0).tolist()
            for name in memories[0]._fields
        }
        largest = torch.stack([largest_eigenvalue(ssm, x_row) for x_row in gates]).amax(0)
        numbers["largest_eigenvalue"] = largest.tolist()
        numbers["stability_margin"] = 1 - largest.max().item()
    weights = [each.output[0] for each in within if isinstance(each.module, ScaleMixer)]
    if weights:
        report = mixer_report(torch.cat(weights))
        numbers["mixer"] = report._asdict() | {"mean": report.mean.tolist(), "spread": report.spread.tolist()}
        arrays["shares"] = mixer_shares(max(weights, key=len)).mean(2).cpu().numpy()
    return numbers, arrays


def alarms(result: dict[str, Any]) -> list[str]:
    """Failure signs named in the paper that this run shows, in words; empty if there are none."""
    found = []
    for layer in result["layers"]:
        name, mixer = layer["path"], layer.get("mixer")
        if layer.get("stability_margin", 1) <= 0:
            found.append(f"{name}: |Abar| reaches 1, the recurrence does not contract")
        if mixer and mixer["collapsed"]:
            found.append(f"{name}: the mixer collapsed to {mixer['effective_bands']:.2f} bands in effect")
        if mixer and mixer["uniform"]:
            found.append(f"{name}: the mixer is uniform, it does not select scales")
        if layer["shift_error"] > TOLERANCE and mixer:
            found.append(f"{name}: a shifted input changes the output by {layer['shift_error']:.1e}")
        if layer["padding_error"] > TOLERANCE:
            found.append(f"{name}: padding changes the output by {layer['padding_error']:.1e}")
    if result["backbone"]["padding_error"] > TOLERANCE:
        found.append(f"backbone: padding changes the output by {result['backbone']['padding_error']:.1e}")
    return found
