"""Space of a sweep: `model.lr=log:1e-4..1e-2`, `model.backbone.dropout=0..0.3`, `model.backbone.n_layers=2,3,4`."""

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msssm.errors import InputError
from tasks.complaints import complaint

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True)
class Option:
    """One option of a recipe: from `low` to `high`, or one of `choices`.

    Attributes:
        name: as on the command line of `msssm fit`, without the dashes.
        text: what the user wrote after the name.
        low: least value; a range of two integers has integers alone.
        high: largest value.
        log: uniform in the logarithm.
        choices: words as they are handed to `msssm fit`; empty for a range.
    """

    name: str
    text: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def suggest(self, trial: "Trial") -> str:
        """A value for this trial, or the one that it has, as a word for the command line."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(self.name, self.low, self.high, log=self.log))
        return repr(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    @property
    def extremes(self) -> tuple[str, ...]:
        """The values that a recipe must accept before anything runs."""
        return self.choices or (str(self.low), str(self.high))


def parse(text: str) -> Option:
    """Reads one --vary.

    Raises:
        ValueError: saying what is wrong with it.
    """
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--")
    if not equals or not name or not values.strip():
        raise InputError(f"--vary {text}: expected OPTION=VALUES, such as model.lr=log:1e-4..1e-2")
    if "," in values:
        choices = tuple(word.strip() for word in values.split(","))
        if "" in choices or len(set(choices)) < len(choices):
            raise InputError(f"--vary {text}: expected different values between the commas")
        return Option(name, values, choices=choices)
    log = values.startswith("log:")
    low, dots, high = values.removeprefix("log:").partition("..")
    if not dots:
        raise InputError(f"--vary {text}: expected a range low..high, log:low..high, or a choice a,b,c")
    least, largest = _number(low, text), _number(high, text)
    if not least < largest or (log and least <= 0):
        raise InputError(f"--vary {text}: expected low < high{', low > 0 for log:' if log else ''}")
    return Option(name, values, least, largest, log)


def _number(word: str, text: str) -> float:
    if re.fullmatch(r"\s*[+-]?\d+\s*", word):
        return int(word)
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(word)):
            return number
    raise InputError(f"--vary {text}: {word.strip()!r} is not a number")


def check(space: Sequence[Option], build: Callable[[str], object]) -> None:
    """Builds the recipe with each option at its extremes.

    Raises:
        ValueError: the recipe has no such option, or does not take such a value.
    """
    for option in space:
        for value in option.extremes:
            try:
                build(f"--{option.name}={value}")
            except Exception as error:
                if (message := complaint(error)) is None:
                    raise
                reason = f"{value!r} is not accepted by the recipe: {message}"
                raise InputError(f"--vary {option.name}={option.text}: {reason}") from error
