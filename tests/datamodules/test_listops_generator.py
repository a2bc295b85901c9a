"""The generator against the plain evaluation, a plain recursive generator, and LRA's numbers."""

import random
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from datamodules.listops import Expressions, decode, evaluate, generate, generate_arrays, length, tokenize
from datamodules.listops.generator import TreeParameters, _draw_batch, _Draws
from datamodules.listops.statistics import root_operator_accuracy
from tests.support.tolerances import allowed

LRA: dict[str, Any] = {}
SHORT: dict[str, Any] = {"min_length": 10, "max_length": 64, "max_depth": 6, "max_args": 5}
SETTINGS = [
    (LRA, 300),
    (SHORT, 2000),
    ({"min_length": 0, "max_length": 30, "max_depth": 2, "max_args": 25}, 500),
    ({"min_length": 100, "max_length": 400, "max_depth": 12, "max_args": 3}, 500),
    ({"min_length": 3, "max_length": 80, "max_depth": 5, "max_args": 2}, 300),
]

GOLDEN_PAIRS = [("[MED 6 1 0 7 ]", 3), ("[SM 8 5 1 6 5 ]", 5)]
GOLDEN_SHORT = "06eec0b9cff0fbb550ceff4b91f2cbdf47c7b356da03e18ae8104aadcec0d483"
GOLDEN_LRA = "c99f66832ada62fdbc26d1682ec0a3a1da713d52e8ea3dd30c1e6ae84279a85e"


@pytest.fixture(scope="module")
def sample() -> Expressions:
    return generate_arrays(20_000, seed=2)


@pytest.mark.parametrize(("settings", "count"), SETTINGS)
def test_every_label_is_the_value_and_every_tree_within_its_limits(settings: dict[str, Any], count: int) -> None:
    limits = TreeParameters(**settings)
    for expression, label in generate(count, seed=1, **settings):
        tokens = tokenize(expression)
        assert evaluate(tokens) == label
        assert limits.min_length < length(tokens) == len(tokens) < limits.max_length
        depth, arguments, most_depth, most_arguments, least = 0, [0], 0, 0, limits.max_args
        for token in tokens:
            if token == "]":
                depth, given = depth - 1, arguments.pop()
                most_arguments, least = max(most_arguments, given), min(least, given)
                continue
            arguments[-1] += 1
            most_depth = max(most_depth, depth + 1)
            if token.startswith("["):
                depth += 1
                arguments.append(0)
        assert tokens[0].startswith("[")
        assert most_depth <= limits.max_depth
        assert 2 <= least <= most_arguments <= limits.max_args


@pytest.mark.parametrize("settings", [LRA, SHORT])
def test_a_shorter_request_is_a_prefix_of_a_longer_one(settings: dict[str, Any]) -> None:
    short, long = generate(70, seed=3, **settings), generate(3000, seed=3, **settings)
    assert long[:70] == short
    assert generate(70, seed=4, **settings) != short


def test_strings_and_arrays_are_the_same_data() -> None:
    data = generate_arrays(100, seed=5, **SHORT)
    strings = [(" ".join(decode(data.row(index))), int(data.labels[index])) for index in range(100)]
    assert strings == generate(100, seed=5, **SHORT)
    assert (data.tokens.dtype, data.offsets.dtype, data.labels.dtype) == (np.uint8, np.int64, np.uint8)


def test_expressions_are_distinct_down_to_the_last_one_there_is() -> None:
    # length 4 is an operator with two digits: 4 * 10 * 10 expressions
    data = generate(400, seed=0, min_length=3, max_length=5)
    assert len({expression for expression, _ in data}) == 400


def test_golden_digest() -> None:
    """The same on every platform and numpy version; a change needs a new GENERATOR_VERSION."""
    assert generate(2, seed=7, min_length=3, max_length=12, max_depth=6, max_args=5) == GOLDEN_PAIRS
    assert _digest(generate_arrays(200, seed=7, **SHORT)) == GOLDEN_SHORT
    assert _digest(generate_arrays(50, seed=0)) == GOLDEN_LRA


def _digest(data: Expressions) -> str:
    return sha256(data.tokens.tobytes() + data.labels.tobytes()).hexdigest()


def test_acceptance_is_a_third_of_operator_roots_and_a_twelfth_of_all_trees() -> None:
    parameters = TreeParameters()
    draws, batches = _Draws(11), 8
    trees = batches * parameters.trees_per_batch
    accepted = sum(_draw_batch(draws, parameters).samples for _ in range(batches)) / trees
    # 32,768 trees: 4 standard errors are 4 * sqrt(.331 * .669 / 32768) = .0104
    assert accepted == pytest.approx(0.331, abs=allowed(0.0104, "4 standard errors"))
    assert accepted / 4 == pytest.approx(
        0.083, abs=allowed(0.003, "4 standard errors")
    )  # a root is an operator with probability 1/4


def test_lengths_have_lra_distribution(sample: Expressions) -> None:
    lengths = sample.lengths
    # Standard deviation 395: 4 standard errors of the mean of 20,000 are 11.2. The density at the median
    # is .0008: 4 of its errors are 4 * .5 / (.0008 * sqrt(20000)) = 18. Centres: 60,000 recursive trees.
    assert lengths.mean() == pytest.approx(1036.6, abs=allowed(11.2, "4 standard errors"))
    assert np.median(lengths) == pytest.approx(956, abs=allowed(18, "4 standard errors"))


def test_labels_have_lra_distribution(sample: Expressions) -> None:
    frequencies = np.bincount(sample.labels, minlength=10) / sample.samples
    # 4 standard errors: 4 * sqrt(.169 * .831 / 20000) = .0106 for 0 and 9; .0077 at .08 for the others
    assert frequencies[[0, 9]] == pytest.approx([0.169, 0.168], abs=allowed(0.0106, "4 standard errors"))
    assert np.all((frequencies[1:9] > 0.07 - 0.0077) & (frequencies[1:9] < 0.09 + 0.0077))


def test_root_operator_alone_gives_0_36(sample: Expressions) -> None:
    # 10,000 test items: 4 * sqrt(.36 * .64 / 10000) = .0192
    bound = root_operator_accuracy(sample.rows(10_000, 20_000), sample.rows(0, 10_000))
    assert bound == pytest.approx(0.36, abs=allowed(0.0192, "4 standard errors"))


def _recursive_tree(source: random.Random, depth: int, max_depth: int, max_args: int) -> list[str]:
    """LRA's distribution in the plainest form."""
    if depth > 1 and (depth >= max_depth or source.random() >= 0.25):
        return [str(source.randrange(10))]
    arguments = [
        token
        for _ in range(source.randint(2, max_args))
        for token in _recursive_tree(source, depth + 1, max_depth, max_args)
    ]
    return [source.choice(["[MIN", "[MAX", "[MED", "[SM"]), *arguments, "]"]


@pytest.mark.parametrize(("settings", "count"), [(LRA, 600), (SHORT, 4000)])
def test_same_distribution_as_a_recursive_generator(settings: dict[str, Any], count: int) -> None:
    limits = TreeParameters(**settings)
    source, plain, trees = random.Random(0), [], 0
    while len(plain) < count:
        tree = _recursive_tree(source, 1, limits.max_depth, limits.max_args)
        trees += 1
        if limits.min_length < len(tree) < limits.max_length:
            plain.append(tree)
    draws = _Draws(6)
    fast = _draw_batch(draws, limits)

    def within(ours: Any, theirs: Any) -> None:
        """Means differ by less than 4 standard errors of their difference."""
        error = np.sqrt(np.var(ours) / len(ours) + np.var(theirs) / len(theirs))
        assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error

    within(fast.lengths, [len(tree) for tree in plain])
    within(fast.lengths.astype(float) ** 2, [float(len(tree)) ** 2 for tree in plain])
    accepted = np.arange(limits.trees_per_batch) < fast.samples
    within(accepted, np.arange(trees) < count)
    rows = [fast.row(index) for index in range(fast.samples)]
    for token_id, token in ((3, "[MIN"), (4, "[MAX"), (5, "[MED"), (6, "[SM"), (8, "0"), (17, "9")):
        ours = [float((row == token_id).mean()) for row in rows]
        within(ours, [tree.count(token) / len(tree) for tree in plain])
    for label in range(10):
        within(fast.labels == label, np.array([evaluate(tree) for tree in plain]) == label)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, r"got count=-1, seed=0; use non-negative"),
        ({"seed": -2}, r"got count=5, seed=-2; use non-negative"),
        ({"max_args": 1}, "an operator needs at least 2 of each"),
        ({"max_depth": 1}, "an operator needs at least 2 of each"),
        ({"min_length": 2000}, "asked for 2000 < length < 2000.*lower min_length"),
        ({"min_length": 50, "max_length": 51}, "asked for 50 < length < 51"),
        ({"min_length": 0, "max_length": 4}, "got trees of length 4 to"),
        ({"min_length": 500, "max_depth": 3}, r"asked for 500 < length < 2000, got trees of length 4 to 122"),
        (
            {"min_length": 5, "max_length": 7, "max_args": 2, "count": 1},
            "got 0, then none in",
        ),  # lengths 1 + 3k
        ({"min_length": 3, "max_length": 5, "count": 401}, "asked for 401 distinct .* got 400, then none in"),
    ],
)
def test_bad_parameters_say_what_to_do(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{"count": 5, "seed": 0, **arguments})


def test_nothing_asked_gives_nothing() -> None:
    assert generate(0, seed=0) == []
    assert generate_arrays(0, seed=0).offsets.tolist() == [0]
