"""Logits of a recording of any length: at once in bounded memory, or sample by sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.ptbxl.recording import Recording
from datamodules.ptbxl.windows import window_starts
from msssm import SequenceClassifier, StreamingClassifier
from msssm.errors import InputError

WINDOWS, POSITIONS = 32, 4096  # at a time, so that memory does not grow with the recording


@dataclass(frozen=True)
class Windows:
    """Windows of a recording: `crop` samples every `stride` samples, or (None) all of it."""

    crop: int | None
    stride: int
    aggregation: str

    def starts(self, length: int) -> tuple[int, list[int]]:
        """Samples per window, and the starts of a recording's windows, the last of which ends with it."""
        window = length if self.crop is None else self.crop
        if length < window:
            raise InputError(
                f"the recording has {length} samples at the model's rate, fewer than its window of {window}; "
                "give a longer recording"
            )
        return window, window_starts(length, window, self.stride if self.crop else window)


def aggregate(logits: Tensor, how: str) -> Tensor:
    """Combines the logits (B, W, K) of windows to those of records, (B, K).

    The result is the logit of the largest ("max") or mean ("mean") probability.
    """
    if how == "max" or logits.shape[1] == 1:
        return logits.amax(1)
    sigmoid = nn.functional.logsigmoid
    return sigmoid(logits).logsumexp(1) - sigmoid(-logits).logsumexp(1)


def standardised(recording: Recording, mean: float, std: float) -> Tensor:
    """Standardises a recording to (L, 12) float32 as in training; missing samples become the mean."""
    x = np.where(recording.missing, 0.0, (recording.signal - mean) / std)
    return torch.from_numpy(x.astype(np.float32))


@torch.inference_mode()
def offline(model: SequenceClassifier, x: Tensor, windows: Windows) -> Tensor:
    """Computes the logits (K,) of a recording x (L, 12), in chunks of windows and of positions."""
    window, starts = windows.starts(len(x))
    logits = []
    for first in range(0, len(starts), WINDOWS):
        rows = torch.stack([x[start : start + window] for start in starts[first : first + WINDOWS]])
        state = model.initial_state(len(rows))
        for chunk in rows.split(POSITIONS, dim=1):
            part, state = model(chunk, state=state, return_state=True)
        logits.append(part)
    return aggregate(torch.cat(logits).float().unsqueeze(0), windows.aggregation)[0]


def stream(model: SequenceClassifier, x: Tensor, windows: Windows) -> Iterator[Tensor]:
    """Yields logits (K,) after each sample of x (L, 12): those of the full windows, or of the first while it fills.

    It keeps one running state for each window that contains the sample, at most crop / stride and one more for the
    last, which ends with the recording, and the logits of the full windows.
    """
    stepper = StreamingClassifier(model)
    window, starts = windows.starts(len(x))
    begin = set(starts)
    live: dict[int, Any] = {}
    full: list[Tensor] = []
    for t, sample in enumerate(x.unsqueeze(1)):
        if t in begin:
            live[t] = stepper.initial_state(1)
        for start in list(live):
            logits, live[start] = stepper.step(sample, live[start])
            if not full and start == 0:
                now = logits[0]
            if t + 1 - start == window:
                full.append(logits.float())
                now = aggregate(torch.stack(full, 1), windows.aggregation)[0]
                del live[start]
        yield now
