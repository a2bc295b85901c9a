"""Pictures of the table say what its numbers say."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from matplotlib import pyplot as plt

from tasks.reports import style
from tasks.table.plots import band, finding
from tasks.table.rows import Section


def row(label: str, mean: float, low: float, high: float) -> Any:
    return SimpleNamespace(label=label, mean=mean, interval=lambda: (low, high))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("A", 0.9, 0.8, 1.0)], "Best: A, 0.90"),
        ([row("A", 0.9, 0.8, 1.0), row("B", 0.5, 0.4, 0.6)], "Best: A, 0.90, above all others"),
        (
            [row("A", 0.9, 0.8, 1.0), row("B", 0.85, 0.7, 0.99), row("C", 0.5, 0.4, 0.79), row("D", 0.5, 0.4, 0.8)],
            "Best: A, 0.90; 2 of 3 others within the intervals",
        ),
    ],
)
def test_the_title_counts_the_rows_that_the_interval_of_the_best_meets(rows: list[Any], says: str) -> None:
    section = SimpleNamespace(rows=rows[::-1], benchmark=SimpleNamespace(show=lambda value: f"{value:.2f}"))
    assert finding(cast(Section, section)) == says


def test_the_band_goes_from_the_lowest_to_the_highest_seed() -> None:
    steps, *values = band([([10, 20, 30], [1.0, 2.0, 3.0]), ([10, 20, 25, 30], [3.0, 1.0, 9.0, 3.0])])
    assert steps == [10, 20, 30]
    assert [list(each) for each in values] == [[1.0, 1.0, 3.0], [2.0, 1.5, 3.0], [3.0, 2.0, 3.0]]
    steps, *values = band([([], [])])
    assert (steps, [list(each) for each in values]) == ([], [[], [], []]), "a run without events"
    steps, *values = band([([], []), ([10], [1.0])])
    assert (steps, [list(each) for each in values]) == ([10], [[1.0], [1.0], [1.0]]), "is left out beside others"


def test_the_style_is_of_our_own_figures_alone() -> None:
    before = dict(plt.rcParams)
    styled = style.styled(lambda: plt.rcParams["axes.titlelocation"])
    assert [styled(), styled()] == ["left", "left"]
    assert dict(plt.rcParams) == before
