"""Nanoseconds per channel-step of a layer's scan beside its floor, per channel-step and state: where N is small, most
of the time does not depend on it.

python -m benchmarks.channels [--threads 1]
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.compare import BOTH, FORWARD
from benchmarks.floors import RANK, measure_floors
from benchmarks.timing import in_turn
from msssm.scan import multiscale_scan

BATCH, LENGTH, BANDS, CHANNELS = 16, 1000, 5, 64
STATES = (1, 4, 16, 26)


def main(args: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args(args).threads)
    device = torch.device("cpu")
    floors, elements = measure_floors(device), BATCH * LENGTH * BANDS * CHANNELS
    measured = {}
    for states in STATES:
        measured[states] = in_turn(dict(zip((FORWARD, BOTH), _scans(states), strict=True)), device)
        floors = floors.best(measure_floors(device))  # so that a slow spell of the machine does not make a high floor
    print("| N | forward, ns | floor | times | forward + backward, ns | floor | times |\n|---|---|---|---|---|---|---|")
    for states, times in measured.items():
        cells = []
        for direction in (FORWARD, BOTH):
            backward = direction == BOTH
            parts = floors.channel_ms(elements, backward), floors.arithmetic_ms(elements * states, backward)
            least = sum(part or float("nan") for part in parts)
            own = times[direction].best
            cells += [f"{1e6 * own / elements:.2f}", f"{1e6 * least / elements:.2f}", f"{own / least:.2f}"]
        print(f"| {states} | {' | '.join(cells)} |", flush=True)


def _scans(states: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward alone, and with its backward, of one layer's scan."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    varying = BATCH, LENGTH, BANDS
    gates = normal(*varying, RANK + 2 * states)
    low_rank, B, C = gates.split((RANK, states, states), -1)
    rates = -torch.arange(1.0, states + 1).repeat(BANDS, CHANNELS, 1)
    tensors = [normal(*varying, CHANNELS), low_rank, rates, B, C, normal(*varying, 1)]
    options = {"delta_weight": 0.3 * normal(BANDS, RANK, CHANNELS), "delta_bias": normal(BANDS, CHANNELS) - 4}
    leaves = [x.detach().requires_grad_() for x in (*tensors, *options.values())]
    named = dict(zip(options, leaves[6:], strict=True))
    grad = torch.ones(BATCH, LENGTH, CHANNELS)

    def forward() -> object:
        with torch.no_grad():
            return multiscale_scan(*leaves[:6], **named)  # type: ignore[arg-type]

    def both() -> object:
        y = multiscale_scan(*leaves[:6], **named)  # type: ignore[arg-type]
        return torch.autograd.grad(y, leaves, grad)  # type: ignore[arg-type]

    return forward, both


if __name__ == "__main__":
    main()
