"""Mean and standard deviation of data that are read part by part."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Moments:
    """Mean and standard deviation of columns, in float64, by the update of Chan, Golub & LeVeque (1983)."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self.count = 0
        self.mean: npt.NDArray[np.float64] = np.zeros(1)
        self.squares: npt.NDArray[np.float64] = np.zeros(1)

    def add(self, x: npt.NDArray[np.floating]) -> None:
        """Adds the rows of x (n, columns)."""
        values = x.astype(np.float64)
        mean, total = values.mean(axis=0), self.count + len(x)
        apart = mean - self.mean
        self.squares = self.squares + ((values - mean) ** 2).sum(axis=0) + apart**2 * self.count * len(x) / total
        self.mean, self.count = self.mean + apart * len(x) / total, total

    def result(self, columns: int) -> tuple[Floats, Floats]:
        """Mean and standard deviation (columns,); 0 and 1 of nothing, and 1 for what is constant."""
        std = np.sqrt(self.squares / max(1, self.count))
        scale = np.where(std > 0, std, 1.0)
        return np.full(columns, self.mean, dtype=np.float32), np.full(columns, scale, dtype=np.float32)
