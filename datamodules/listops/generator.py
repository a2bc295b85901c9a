"""Random ListOps expressions in the distribution of Long Range Arena, a few thousand trees at a time.

Tay et al. 2021 (arXiv 2011.04006) draw a tree recursively and keep it if its length is in range. Here a batch of trees
grows level by level; first, only the shape is drawn, on which alone the length depends. The accepted trees then get
their digits and operators, values and sizes from the leaves up, and positions from the root down.

All choices are integer arithmetic on the raw words of PCG64, whose stream numpy keeps fixed, unlike that of
`numpy.random.Generator`: the same seed gives the same data on every platform and numpy version.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from datamodules.listops.expressions import CLOSE, DIGITS, OPERATORS, TOKEN_IDS, Expressions, concatenate, decode
from msssm.errors import InputError

GENERATOR_VERSION = 1  # part of every cache key: raise it when the data of a seed changes

_NODES_PER_BATCH = 2**23  # at most; a fifth of it with LRA's parameters
_PATIENCE = 2**20  # trees in a row without a new expression before giving up
_MIN, _MAX, _MED, _SM = range(4)
_FIRST_OPERATOR, _FIRST_DIGIT = TOKEN_IDS[next(iter(OPERATORS))], TOKEN_IDS[DIGITS[0]]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TreeParameters:
    """Parameters of trees: root operator at depth 1, digits at `max_depth`, min_length < length < max_length."""

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10

    def __post_init__(self) -> None:
        """Raises ValueError for values that no tree can satisfy."""
        if self.max_depth < 2 or self.max_args < 2:
            raise InputError(
                f"asked for trees of max_depth={self.max_depth}, max_args={self.max_args}; "
                "an operator needs at least 2 of each"
            )
        operators = sum(self.max_args**level for level in range(min(self.max_depth - 1, 64)))
        longest = 1 + operators * (self.max_args + 1)
        shortest = 4
        if max(self.min_length + 1, shortest) > min(self.max_length - 1, longest):
            raise InputError(
                f"asked for {self.min_length} < length < {self.max_length}, got trees of length "
                f"{shortest} to {longest} with max_depth={self.max_depth}, max_args={self.max_args}; "
                "lower min_length, or raise max_length, max_depth or max_args"
            )

    @property
    def trees_per_batch(self) -> int:
        """Trees drawn at a time, which bounds the memory. Independent of `count`, so that the data is, too."""
        return max(16, min(4096, _NODES_PER_BATCH // self.max_length))


class _Draws:
    """Independent choices from the raw 64-bit words of PCG64."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.PCG64(seed)

    def below(self, bound: int, count: int) -> Ints:
        """Draws uniformly from 0..bound-1, from 32 bits each; the relative bias is below bound / 2**32."""
        halves = self._words.random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count]
        return ((halves.astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def quarter(self, count: int) -> Bools:
        """Draws True with probability exactly 1/4, from 8 bits each."""
        octets = self._words.random_raw((count + 7) // 8).astype("<u8").view(np.uint8)[:count]
        return octets < 64


@dataclass
class _Level:
    """Nodes of one depth, ordered by tree and, within a tree, from left to right."""

    tree: npt.NDArray[np.int32]  # (nodes,) index of the tree in its batch
    is_operator: Bools  # (nodes,)
    arguments: Ints  # (operators,) number of children, which are consecutive in the next level


def _grow(draws: _Draws, parameters: TreeParameters) -> tuple[list[_Level], Ints]:
    """Draws the shapes and lengths of one batch of trees; a tree that becomes too long is abandoned."""
    trees = parameters.trees_per_batch
    lengths = np.ones(trees, dtype=np.int64)
    levels = []
    tree, is_operator = np.arange(trees, dtype=np.int32), np.ones(trees, dtype=np.bool_)
    for depth in range(1, parameters.max_depth):
        parents = tree[is_operator]
        arguments = 2 + draws.below(parameters.max_args - 1, len(parents))
        levels.append(_Level(tree, is_operator, arguments))
        # a digit (1) becomes an operator and its `]` (2) with arguments
        lengths += np.bincount(parents, weights=arguments + 1, minlength=trees).astype(np.int64)
        growing = lengths[parents] < parameters.max_length
        tree = np.repeat(parents[growing], arguments[growing])
        is_operator = draws.quarter(len(tree)) if depth + 1 < parameters.max_depth else np.zeros(len(tree), np.bool_)
    levels.append(_Level(tree, is_operator, np.zeros(0, dtype=np.int64)))
    return levels, lengths


def _select(level: _Level, accepted: Bools) -> _Level:
    keep = accepted[level.tree]
    operators = keep[level.is_operator]
    arguments = level.arguments[operators] if len(level.arguments) else level.arguments
    return _Level(level.tree[keep], level.is_operator[keep], arguments)


def _apply(operators: Ints, arguments: Ints, children: Ints) -> Ints:
    """Evaluates operators with consecutive children: MIN, MAX and MED are order statistics, SM is a sum."""
    count = len(operators)
    owner = np.repeat(np.arange(count), arguments)
    histogram = np.bincount(owner * 10 + children, minlength=count * 10).reshape(count, 10)
    at_most = histogram.cumsum(axis=1)
    low = np.choose(operators, [np.zeros_like(arguments), arguments - 1, (arguments - 1) // 2, arguments])
    high = np.where(operators == _MED, arguments // 2, low)
    statistics = [(at_most <= rank[:, None]).sum(axis=1) for rank in (low, high)]
    return np.where(operators == _SM, histogram @ np.arange(10) % 10, sum(statistics) // 2)


def _write(draws: _Draws, levels: list[_Level], lengths: Ints) -> Expressions:
    """Draws digits and operators, evaluates the trees, and places their tokens."""
    marks: list[npt.NDArray[np.uint8]] = []
    sizes: list[Ints] = []
    values = size = np.zeros(0, dtype=np.int64)
    for level in reversed(levels):
        operators = draws.below(len(OPERATORS), len(level.arguments))
        digits = draws.below(10, len(level.is_operator) - len(operators))
        child_values, child_size = values, size
        values, size = (
            np.empty(len(level.is_operator), dtype=np.int64),
            np.ones(len(level.is_operator), dtype=np.int64),
        )
        mark = np.empty(len(level.is_operator), dtype=np.uint8)
        values[~level.is_operator], mark[~level.is_operator] = digits, digits + _FIRST_DIGIT
        if len(operators):
            first_child = np.cumsum(level.arguments) - level.arguments
            values[level.is_operator] = _apply(operators, level.arguments, child_values)
            size[level.is_operator] = 2 + np.add.reduceat(child_size, first_child)
            mark[level.is_operator] = operators + _FIRST_OPERATOR
        marks.insert(0, mark)
        sizes.insert(0, size)

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.full(offsets[-1], TOKEN_IDS[CLOSE], dtype=np.uint8)  # every position without a node is a `]`
    position = offsets[:-1]
    for depth, level in enumerate(levels):
        tokens[position] = marks[depth]
        if len(level.arguments) == 0:
            break
        first_child = np.cumsum(level.arguments) - level.arguments
        before = np.cumsum(sizes[depth + 1]) - sizes[depth + 1]
        position = before + np.repeat(position[level.is_operator] + 1 - before[first_child], level.arguments)
    return Expressions(tokens, offsets, values.astype(np.uint8))


def _draw_batch(draws: _Draws, parameters: TreeParameters) -> Expressions:
    """Draws `parameters.trees_per_batch` trees and returns the accepted ones, possibly with duplicates."""
    levels, lengths = _grow(draws, parameters)
    accepted = (lengths > parameters.min_length) & (lengths < parameters.max_length)
    return _write(draws, [_select(level, accepted) for level in levels], lengths[accepted])


def _distinct(batch: Expressions, seen: set[bytes]) -> Expressions:
    """Selects the expressions that are not yet in `seen`, and adds them to it."""
    new = np.zeros(batch.samples, dtype=np.bool_)
    for index in range(batch.samples):
        key = batch.key(index)
        new[index] = key not in seen
        seen.add(key)
    lengths = batch.lengths[new]
    tokens = batch.tokens[np.repeat(new, batch.lengths)]
    return Expressions(tokens, np.concatenate([[0], np.cumsum(lengths)]), batch.labels[new])


def generate_arrays(
    count: int,
    *,
    seed: int,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
    progress: bool = False,
) -> Expressions:
    """Generates `count` distinct random expressions as flat arrays.

    A longer request with the same seed and parameters begins with the same expressions.

    Args:
        count: number of expressions.
        seed: non-negative integer.
        min_length: expressions are longer than this; length counts 2 per operator and 1 per digit.
        max_length: expressions are shorter than this.
        max_depth: Depth of the deepest digits; the root operator has depth 1. Above it, a node is an operator with
            probability 1/4, uniform over the four, with uniformly 2 to `max_args` arguments.
        max_args: most arguments of an operator.
        progress: show a bar if it takes more than a few seconds.

    Raises:
        ValueError: no tree, or fewer than `count` distinct expressions, can satisfy the parameters.
    """
    if count < 0 or seed < 0:
        raise InputError(
            f"asked for count >= 0 and seed >= 0, got count={count}, seed={seed}; use non-negative integers"
        )
    parameters = TreeParameters(min_length, max_length, max_depth, max_args)
    draws, seen = _Draws(seed), set[bytes]()
    parts: list[Expressions] = []
    found = idle = 0
    bar: Any
    with tqdm(total=count, desc="ListOps", unit=" expressions", delay=3, disable=not progress) as bar:
        while found < count:
            part = _distinct(_draw_batch(draws, parameters), seen)
            idle = 0 if part.samples else idle + parameters.trees_per_batch
            if idle >= _PATIENCE:
                raise InputError(
                    f"asked for {count} distinct expressions with {parameters}, got {found}, then none in "
                    f"{idle} trees; ask for fewer or widen the range of lengths"
                )
            part = part.rows(0, min(part.samples, count - found))
            parts.append(part)
            found += part.samples
            bar.update(part.samples)
    return concatenate(parts)


def generate(
    count: int,
    *,
    seed: int,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
) -> list[tuple[str, int]]:
    """Generates `count` distinct pairs of an expression such as `[MAX 2 9 [MIN 4 7 ] 0 ]` and its value.

    Arguments, errors and the prefix property are those of `generate_arrays`.
    """
    data = generate_arrays(
        count, seed=seed, min_length=min_length, max_length=max_length, max_depth=max_depth, max_args=max_args
    )
    return [(" ".join(decode(data.row(index))), int(data.labels[index])) for index in range(count)]
