"""95 % intervals of a row of the table."""

from collections.abc import Sequence
from statistics import mean, stdev

from scipy import stats


def wilson(proportion: float, samples: int) -> tuple[float, float]:
    """Wilson's interval of a proportion over independent test samples, without the variation between seeds."""
    low, high = stats.binomtest(round(proportion * samples), samples).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval of the mean over two or more seeds."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half
