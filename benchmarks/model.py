"""The quick ListOps network (quick/listops/msssm_s6): a training step, and one step of streaming."""

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.compare import BOTH, GRADIENT, OUTPUT, Case, Row, errors, evaluate
from benchmarks.layer import streaming
from benchmarks.timing import in_turn
from msssm import Backbone, MultiScaleSSM, SequenceClassifier, param_groups
from msssm.scan import Backend
from tasks.table.spec import row_recipe

VOCABULARY, CLASSES = 15, 10
BACKENDS: dict[str, Backend] = {"msssm": "auto", "pure torch": "torch"}


def recipe() -> dict[str, Any]:
    return row_recipe("quick/listops/msssm_s6")


def backbone(backend: Backend) -> Backbone:
    """The recipe's, with its scans on the given backend."""
    options = recipe()["model"]["init_args"]["backbone"]["init_args"]
    layer = options.pop("layer")["init_args"]
    torch.manual_seed(0)
    return Backbone(partial(MultiScaleSSM, **layer, backend=backend), **options)


def prepare(backend: Backend, device: torch.device, dtype: torch.dtype) -> tuple[Case, nn.Module]:
    """Logits of a batch of the recipe's size and lengths."""
    data = recipe()["data"]["init_args"]
    body = backbone(backend)
    network = SequenceClassifier(nn.Embedding(VOCABULARY, body.d_model), body, CLASSES).to(device, dtype)
    generator = torch.Generator().manual_seed(0)
    batch, longest = data["batch_size"], data["max_length"]
    tokens = torch.randint(VOCABULARY, (batch, longest), generator=generator).to(device)
    lengths = torch.randint(data["min_length"], longest, (batch,), generator=generator).to(device)
    return Case(lambda: network(tokens, lengths), list(network.parameters())), network


def run(device: torch.device, quick: bool) -> list[Row]:
    """The training step on "auto" and on "torch", and the streaming latency of the whole backbone."""
    expected = evaluate(prepare("reference", device, torch.float64)[0])
    rows, timed = [], {}
    for method, backend in BACKENDS.items():
        row = Row("training step", "quick ListOps, 4 x 64, batch 50", method)
        rows.append(row)
        case, network = prepare(backend, device, torch.float32)
        output, *gradients = errors(evaluate(case), expected)
        row.error = max(output, *gradients)
        # Four layers in a row amplify the rounding of each.
        if output > 10 * OUTPUT or max(gradients) > 10 * GRADIENT:
            row.note = f"REFUSED: disagrees with the reference (y {output:.1e}, gradients {max(gradients):.1e})"
            continue
        timed[method] = training_step(case, network, device)
    times = in_turn(timed, device, 0.7 if quick else 3.0)
    for row in rows:
        row.times = {BOTH: times[row.method]} if row.method in times else {}
    return [*rows, streaming(backbone("auto"), "backbone of 4 layers, D = 64, one row", device)]


def training_step(case: Case, network: nn.Module, device: torch.device) -> Any:
    """Forward, cross-entropy, backward, AdamW."""
    optimizer = torch.optim.AdamW(param_groups(network, lr=1e-4, weight_decay=0.03))
    labels = torch.arange(case.run().shape[0], device=device) % CLASSES

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(case.run(), labels).backward()
        optimizer.step()

    return step
