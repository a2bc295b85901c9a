"""Pictures of the table say what its numbers say."""

from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from tasks.reports import style
from tasks.table.collect import Section
from tasks.table.plots import band, finding
from tasks.table.spec import Column


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("A", 0.9, 0.8, 1.0)], "Best: A, 90.0"),
        ([("A", 0.9, 0.8, 1.0), ("B", 0.5, 0.4, 0.6)], "Best: A, 90.0, above all others"),
        (
            [("A", 0.9, 0.8, 1.0), ("B", 0.85, 0.7, 0.99), ("C", 0.5, 0.4, 0.79), ("D", 0.5, 0.4, 0.8)],
            "Best: A, 90.0; 2 of 3 others within the intervals",
        ),
    ],
)
def test_the_title_counts_the_rows_that_the_interval_of_the_best_meets(rows: list[Any], says: str) -> None:
    frame = pd.DataFrame(rows[::-1], columns=["label", "mean", "low", "high"])
    assert finding(cast(Section, SimpleNamespace(rows=frame, column=Column()))) == says


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
