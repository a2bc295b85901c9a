"""ListOps expressions: vocabulary, tokens, and the plain evaluation that tests compare all else with.

An expression is a digit or `[OP argument argument ... ]` with OP one of MIN, MAX, MED (median, truncated to
an integer) and SM (sum modulo 10): Nangia & Bowman 2018 (arXiv 1804.06028); Tay et al. 2021, Long Range
Arena (arXiv 2011.04006), drop the parentheses of the written form.

Token ids: 0 `<pad>`, 1 `<unk>`, 2 `<eos>`, 3 `[MIN`, 4 `[MAX`, 5 `[MED`, 6 `[SM`, 7 `]`, 8..17 the digits
0..9.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from msssm.errors import InputError

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),
    "[SM": lambda values: sum(values) % 10,
}
CLOSE = "]"
DIGITS = tuple("0123456789")
VOCABULARY = ("<pad>", "<unk>", "<eos>", *OPERATORS, CLOSE, *DIGITS)
TOKEN_IDS = {token: index for index, token in enumerate(VOCABULARY)}
PAD = TOKEN_IDS["<pad>"]
vocab_size = len(VOCABULARY)
num_classes = len(DIGITS)

_NAMES = np.array(VOCABULARY, dtype=object)
_WRITTEN = str.maketrans({"(": " ", ")": " ", "]": " ] "})


class Expressions(NamedTuple):
    """Expressions in three flat arrays, without a Python object per sample.

    Attributes:
        tokens: (total,) uint8 ids of all expressions, concatenated.
        offsets: (samples + 1,) int64; expression i is `tokens[offsets[i]:offsets[i + 1]]`.
        labels: (samples,) uint8 values 0..9.
    """

    tokens: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.uint8]

    @property
    def samples(self) -> int:
        """Number of expressions."""
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each expression, (samples,)."""
        return np.diff(self.offsets)

    def row(self, index: int) -> npt.NDArray[np.uint8]:
        """Token ids of one expression."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def key(self, index: int) -> bytes:
        """Digest of one expression, to recognise it."""
        return blake2b(self.row(index).tobytes(), digest_size=16).digest()

    def rows(self, start: int, stop: int) -> "Expressions":
        """Views the expressions start..stop-1."""
        first, last = self.offsets[start], self.offsets[stop]
        return Expressions(self.tokens[first:last], self.offsets[start : stop + 1] - first, self.labels[start:stop])


def join(rows: Sequence[npt.NDArray[np.uint8]], labels: Iterable[int]) -> Expressions:
    """Joins one array of ids and one label per expression."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    tokens = np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint8)
    return Expressions(tokens, offsets, np.fromiter(labels, dtype=np.uint8, count=len(rows)))


def concatenate(parts: Sequence[Expressions]) -> Expressions:
    """Expressions of several arrays, one after another."""
    if not parts:
        return join([], [])
    tokens, labels = np.concatenate([part.tokens for part in parts]), np.concatenate([part.labels for part in parts])
    return Expressions(tokens, np.concatenate([[0], np.cumsum(np.concatenate([p.lengths for p in parts]))]), labels)


def tokenize(expression: str) -> list[str]:
    """Splits a written expression into tokens; parentheses are dropped, the space before `]` may be missing.

    Raises:
        ValueError: a token is no operator, digit or `]`, or there are none.
    """
    tokens = expression.translate(_WRITTEN).split()
    if not tokens:
        raise InputError("expected an expression such as '[MAX 2 9 ]', got nothing")
    for position, token in enumerate(tokens, start=1):
        if token not in OPERATORS and token not in DIGITS and token != CLOSE:
            raise InputError(
                f"expected one of {' '.join(OPERATORS)} {CLOSE} or a digit 0-9, got {token[:40]!r} as token {position}"
            )
    return tokens


def encode(tokens: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Converts tokens to ids, (L,) uint8."""
    return np.array([TOKEN_IDS[token] for token in tokens], dtype=np.uint8)


def decode(ids: npt.NDArray[np.uint8]) -> list[str]:
    """Converts ids to tokens, the inverse of `encode`."""
    names: list[str] = _NAMES[ids].tolist()
    return names


def length(tokens: Iterable[str]) -> int:
    """Length by the generator's count: 2 per operator (with its `]`), 1 per digit."""
    return sum(2 if token in OPERATORS else token != CLOSE for token in tokens)


def evaluate(tokens: Iterable[str]) -> int:
    """Evaluates one expression to 0..9.

    Raises:
        ValueError: a token is unknown, an operator has no arguments or is never closed, `]` closes nothing, or tokens
            follow the end of the expression.
    """
    operators: list[str] = []
    arguments: list[list[int]] = [[]]
    for position, token in enumerate(tokens, start=1):
        if not operators and arguments[0]:
            raise InputError(f"expected one expression, got {token!r} after its end as token {position}")
        if token in OPERATORS:
            operators.append(token)
            arguments.append([])
        elif token in DIGITS:
            arguments[-1].append(int(token))
        elif token != CLOSE:
            raise InputError(f"expected an operator, a digit or {CLOSE!r}, got {token!r} as token {position}")
        elif not operators:
            raise InputError(f"expected an operator before {CLOSE!r}, got {CLOSE!r} as token {position}")
        elif not arguments[-1]:
            raise InputError(f"expected arguments, got {operators[-1]!r} closed without any at token {position}")
        else:
            value = OPERATORS[operators.pop()](arguments.pop())
            arguments[-1].append(value)
    if operators:
        raise InputError(f"expected {len(operators)} more {CLOSE!r}, got the end of the expression")
    if not arguments[0]:
        raise InputError("expected an expression, got no tokens")
    return arguments[0][0]
