"""Random numbers of augmentation as a function of a seed, without effect on those of the model."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's global generators, and restores them afterwards.

    timm's augmentation draws from all three. If Lightning runs it in the main process, the model's dropout must not
    depend on it.

    Args:
        seed: 0 .. 2^32 - 1.
        device: whose generator is included, besides the CPU's.
    """
    python, numpy = random.getstate(), np.random.get_state()
    cuda = device if device is not None and device.type == "cuda" else None
    with torch.random.fork_rng(devices=[] if cuda is None else [cuda]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        if cuda is not None:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
