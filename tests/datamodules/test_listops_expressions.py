"""The plain reference: tokens, values and lengths of hand-made expressions."""

import numpy as np
import pytest

from datamodules.listops import (
    PAD,
    VOCABULARY,
    decode,
    encode,
    evaluate,
    length,
    num_classes,
    tokenize,
    vocab_size,
)


@pytest.mark.parametrize(
    ("expression", "value", "size"),
    [
        ("7", 7, 1),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9, 9),
        ("[MIN 4 7 ]", 4, 4),
        ("[MED 1 2 ]", 1, 4),  # int(1.5)
        ("[MED 9 8 1 2 ]", 5, 6),
        ("[MED 3 9 0 ]", 3, 5),
        ("[SM 9 9 9 ]", 7, 5),
        ("[SM [SM 5 5 ] [MED 8 9 ] [MAX 0 1 ] ]", 9, 14),
        ("( ( ( [MAX 2 ) 9 ) ] )", 9, 4),
        ("[MAX 2 9]", 9, 4),
    ],
)
def test_known_expressions(expression: str, value: int, size: int) -> None:
    tokens = tokenize(expression)
    assert evaluate(tokens) == value
    assert length(tokens) == size == len(tokens)


def test_vocabulary_is_the_documented_one() -> None:
    assert (*["<pad>", "<unk>", "<eos>", "[MIN", "[MAX", "[MED", "[SM", "]"], *"0123456789") == VOCABULARY
    assert (vocab_size, num_classes, PAD) == (18, 10, 0)


def test_ids_and_tokens_are_inverse() -> None:
    tokens = tokenize("[MAX 2 9 [MIN 4 7 ] 0 ]")
    ids = encode(tokens)
    assert ids.dtype == np.uint8
    assert ids.tolist() == [4, 10, 17, 3, 12, 15, 7, 8, 7]
    assert decode(ids) == tokens


def test_depth_is_not_limited_by_python_recursion() -> None:
    depth = 20_000
    assert evaluate(["[MAX"] * depth + ["3"] + ["]"] * depth) == 3


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("[MAX 2 12 ]", "got '12' as token 3"),
        ("[AVG 2 1 ]", r"expected one of \[MIN \[MAX \[MED \[SM \] or a digit 0-9, got '\[AVG' as token 1"),
        ("( )", "got nothing"),
        ("[MAX 2 [MIN 3 4 ]", "expected 1 more ']', got the end"),
        ("2 ]", "got ']' after its end as token 2"),
        ("] 2", "expected an operator before ']'"),
        ("[MAX 2 3 ] 4", "got '4' after its end as token 5"),
        ("[MAX 1 [MIN ] ]", r"got '\[MIN' closed without any at token 4"),
    ],
)
def test_bad_expressions_say_what_is_wrong(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tokenize(expression))


@pytest.mark.parametrize(("tokens", "message"), [([], "got no tokens"), (["x"], "got 'x' as token 1")])
def test_evaluate_checks_tokens_itself(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tokens)
