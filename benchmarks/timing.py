"""Quiet times: methods in turn, the best and the median of several runs, after runs that do not count."""

import statistics
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
CHEAP = 0.1  # seconds; what takes less is repeated within a turn


class Timing(NamedTuple):
    """Milliseconds of some runs."""

    best: float
    median: float
    runs: int


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turn(methods: dict[K, Callable[[], object]], device: torch.device, budget: float = 0.7) -> dict[K, Timing]:
    """Times of each method, measured round by round so that a slow spell of the machine meets all alike.

    Each round begins a cheap method with one run that does not count: threads of the method before may still spin.

    Args:
        methods: functions without arguments.
        device: where they compute.
        budget: seconds for each; at least one counted run, at most 30.
    """
    first = {key: seconds(function, device) for key, function in methods.items()}
    samples: dict[K, list[float]] = {key: [] for key in methods}
    spent = dict.fromkeys(methods, 0.0)
    while True:
        waiting = [k for k, runs in samples.items() if not runs or (spent[k] < budget and len(runs) < 30)]
        if not waiting:
            break
        for key in waiting:
            cheap = first[key] < CHEAP or min(samples[key], default=CHEAP) < CHEAP
            if cheap:
                seconds(methods[key], device)
            for _ in range(3 if cheap else 1):
                samples[key].append(seconds(methods[key], device))
                spent[key] += samples[key][-1]
    return {key: Timing(1e3 * min(s), 1e3 * statistics.median(s), len(s)) for key, s in samples.items()}
