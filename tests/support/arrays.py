"""A folder of sequences with a table, as someone brings it."""

from pathlib import Path

import numpy as np
import pandas as pd

COUNT = 40


def write_folder(folder: Path, count: int = COUNT) -> Path:
    """Sequences of two channels and 20 to 40 steps, two of each patient, with labels of every kind.

    The first channel is far above 0 in class `high` and far below in `low`; its mean is the column `level`. The second
    counts the steps, as the files of the column `steps` do, modulo 3.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        length, level = int(generator.integers(20, 41)), float(generator.choice([-1, 1]) * generator.uniform(50, 100))
        x = np.stack([level + generator.standard_normal(length), np.arange(length)], axis=1)
        np.save(folder / f"x{number}.npy", x.astype(np.float32))
        np.save(folder / f"y{number}.npy", np.arange(length) % 3)
        kind, split = "high" if level > 0 else "low", ("train", "train", "val", "test")[number // 2 % 4]
        labels = {"label": kind, "high": int(level > 0), "large": int(abs(level) > 75), "level": level}
        files = {"file": f"x{number}.npy", "steps": f"y{number}.npy"}
        rows.append({**files, **labels, "patient": f"p{number // 2}", "split": split})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder
