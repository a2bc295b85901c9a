"""Example data: short chirps in noise, with labels of every kind."""

import numpy as np

from datamodules.arrays.files import Array, Sequences
from datamodules.arrays.source import Source, Target

COUNT, SHORTEST, LONGEST = 480, 40, 100
KINDS = ("falling", "rising", "steady")


def synthetic_signals(target: Target, seed: int) -> Source:
    """Generates 480 synthetic sequences of 2 channels, 40 to 100 steps long; nothing is stored.

    In each, a chirp sounds for 25 to 35 steps: its frequency falls, rises or stays. The second channel has it a quarter
    of a period later, on a drifting baseline. The label is the kind of the chirp; whether it falls and whether it is
    loud; the frequency at its start, in periods per step; or whether it sounds at each step.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
    sequences: list[Array] = []
    sounds: list[Array] = []
    kinds, loud, frequency = [], [], []
    for _ in range(COUNT):
        length, width = int(generator.integers(SHORTEST, LONGEST + 1)), int(generator.integers(25, 36))
        start, kind = int(generator.integers(length - width + 1)), int(generator.integers(3))
        amplitude, first = generator.choice([1.0, 2.0]), generator.uniform(0.2, 0.3)
        time = np.arange(width)
        phase = 2 * np.pi * time * (first + 0.003 * (-1, 1, 0)[kind] * time)
        x = 0.3 * generator.standard_normal((length, 2))
        begin, end = generator.uniform(-1, 1, size=2)
        x[:, 1] += np.linspace(begin, end, length)
        x[start : start + width] += amplitude * np.stack([np.sin(phase), np.sin(phase - np.pi / 2)], axis=1)
        sequences.append(x.astype(np.float32))
        sounding = np.zeros(length, dtype=np.int64)
        sounding[start : start + width] = 1
        sounds.append(sounding)
        kinds.append(KINDS[kind])
        loud.append(int(amplitude > 1))
        frequency.append(first)
    if target == "step":
        return Source(Sequences(sequences), Sequences(sounds), ["sounding"])
    falls = [int(kind == "falling") for kind in kinds]
    labels: Array = np.array(kinds)
    if target == "labels":
        return Source(Sequences(sequences), np.stack([falls, loud], axis=1), ["falling", "loud"])
    if target == "regression":
        return Source(Sequences(sequences), np.array(frequency)[:, None], ["frequency"])
    return Source(Sequences(sequences), labels, ["kind"])
