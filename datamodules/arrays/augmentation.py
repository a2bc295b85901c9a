"""Augmentation of signals, as the field uses it: every change a function of its random generator alone."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from msssm.errors import InputError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training sequence; amplitudes are relative to the channels' mean and scale.

    Attributes:
        shift: rotation in time by up to this many steps, either way; what leaves at one end enters at the other.
        scaling: deviations from the mean are multiplied by a factor of 1 - scaling to 1 + scaling.
        noise: standard deviation of white noise, in units of each channel's scale.
        mask: one stretch of up to this many steps is replaced by the mean.
        drop: probability with which each channel is replaced by its mean.
        mean: (C,) of the channels.
        scale: (C,) of the channels.
    """

    shift: int = 0
    scaling: float = 0.0
    noise: float = 0.0
    mask: int = 0
    drop: float = 0.0
    mean: Floats = field(default_factory=lambda: np.zeros(1, dtype=np.float32), repr=False)
    scale: Floats = field(default_factory=lambda: np.ones(1, dtype=np.float32), repr=False)

    def __post_init__(self) -> None:
        """Raises InputError for an option out of its range."""
        if min(self.shift, self.noise, self.mask) < 0 or not (0 <= self.scaling <= 1 and 0 <= self.drop < 1):
            raise InputError(
                f"asked for {self}; shift, noise and mask must be at least 0, scaling in 0..1, drop at least 0 and "
                "below 1"
            )

    def __call__(self, x: Floats, steps: Ints, generator: np.random.Generator) -> tuple[Floats, Ints]:
        """Changes a sequence x (L, C) and the labels of its steps (L,), or none (0,); the arguments stay."""
        x = x.copy()
        if self.shift:
            by = int(generator.integers(-self.shift, self.shift + 1))
            x, steps = np.roll(x, by, axis=0), np.roll(steps, by)
        if self.scaling:
            x = self.mean + (x - self.mean) * np.float32(1 + generator.uniform(-self.scaling, self.scaling))
        if self.noise:
            x += np.float32(self.noise) * self.scale * generator.standard_normal(x.shape, dtype=np.float32)
        if self.mask:
            width = int(generator.integers(min(self.mask, len(x)) + 1))
            start = int(generator.integers(len(x) - width + 1))
            x[start : start + width] = self.mean
        if self.drop:
            dropped = generator.random(x.shape[1]) < self.drop
            x[:, dropped] = np.broadcast_to(self.mean, x.shape[1:])[dropped]
        return x, steps
