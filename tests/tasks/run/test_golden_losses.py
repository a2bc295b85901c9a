"""The first losses of every recipe are those on file: a refactor changes no start, no draw, no default, no schedule."""

import json

import pytest

from tests.support.golden import FILE, losses, recipes
from tests.support.tolerances import GOLDEN

RECIPES = recipes()
EXPECTED: dict[str, list[float]] = json.loads(FILE.read_text())
FIRST = {tuple(values): name for name, values in reversed(EXPECTED.items())}
# Other data alone: the losses on file are those of another recipe. Or one option apart from a row of quick or paper.
ALIKE = [
    name for name in EXPECTED if FIRST[tuple(EXPECTED[name])] != name or name.startswith(("ablations/", "choices/"))
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in RECIPES]
)
@pytest.mark.filterwarnings("ignore")  # Lightning's, of few batches and of loaders without workers
def test_the_first_losses_are_those_on_file(name: str) -> None:
    """After a change that is meant to change them: python -m tests.support.golden."""
    assert losses(RECIPES[name]) == pytest.approx(EXPECTED[name], rel=GOLDEN)


def test_every_loss_on_file_is_of_a_recipe() -> None:
    assert EXPECTED.keys() == RECIPES.keys()
