"""No test has a tolerance of its own: each is one of the table, or `allowed` with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TABLE = TESTS / "support" / "tolerances.py"
# What compares numbers, and the place of its tolerance among the arguments.
COMPARISONS = {"approx": 1, "assert_near": 2, "assert_close": 2, "assert_allclose": 2, "allclose": 2, "isclose": 2}
TOLERANCES = {"rtol", "atol", "rel", "abs", "tolerance"}
# Below this, what a difference is compared with is a tolerance.
SMALL = 1e-3


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def numbers(node: ast.AST) -> Iterator[float]:
    """Numbers written out in an expression, but for 0 and for what `allowed` gives a reason."""
    if isinstance(node, ast.Call) and called(node) == "allowed":
        return
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value:
        yield node.value
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Subscript):  # an index is none
            yield from numbers(child)


def literals(tree: ast.AST) -> dict[str, list[float]]:
    """Numbers that a name stands for, where it is assigned, looped over or a default."""
    found: dict[str, list[float]] = {}
    for node in ast.walk(tree):
        pairs: list[tuple[ast.AST, ast.AST]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.For | ast.comprehension):
            pairs = [(node.target, node.iter)]
        elif isinstance(node, ast.arguments):
            pairs = list(zip(node.args[::-1], node.defaults[::-1], strict=False))
            pairs += [(arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value]
        for target, value in pairs:
            for name in ast.walk(target):
                word = getattr(name, "id", getattr(name, "arg", None))
                if isinstance(word, str) and not isinstance(value, ast.Call):
                    found.setdefault(word, []).extend(numbers(value))
    return found


def names(node: ast.AST) -> Iterator[str]:
    """Names that an expression is made of, but for those of modules and of what `allowed` gives a reason."""
    if isinstance(node, ast.Call) and called(node) == "allowed":
        return
    if isinstance(node, ast.Name):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if not isinstance(node, ast.Attribute):
            yield from names(child)


def own_tolerances(source: str) -> list[str]:
    """Line and text of each tolerance that the source makes up."""
    tree = ast.parse(source)
    named = literals(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := called(node)) in COMPARISONS:
            given = [word.value for word in node.keywords if word.arg in TOLERANCES] + node.args[COMPARISONS[name] :]
            made_up = [n for value in given for n in (*numbers(value), *(named.get(w) for w in names(value))) if n]
            if made_up or name in ("allclose", "isclose") or (name == "assert_close" and len(given) < 2):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Compare) and isinstance(node.ops[-1], ast.Lt | ast.LtE):
            bound = node.comparators[-1]
            values = [*numbers(bound), *(n for word in names(bound) for n in named.get(word, ()))]
            if any(isinstance(n, float) and n < SMALL for n in values):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_what_a_test_makes_up_is_found() -> None:
    for line in (
        "assert x == pytest.approx(y, abs=1e-6)",
        "assert x == approx(y, 0.1)",
        "assert_near(x, y, 2 * OUTPUT[torch.float32])",
        "assert (x - y).abs().max() < 1e-6",
        "OUTPUT, GRADIENT = 1e-6, 5e-6\nassert error < GRADIENT * scale",
        "torch.testing.assert_close(x, y)",
        "assert np.allclose(x, y)",
        "for t in (1e-3, 1e-4): assert_near(x, y, t)",
        "LOOSE = 0.1\nassert_near(x, y, LOOSE)",
        "def same(x, y, tolerance=1e-5): assert_near(x, y, tolerance)",
    ):
        assert len(own_tolerances(line)) == 1, line
    for line in (
        "assert x == pytest.approx(y, abs=METRIC)",
        "assert x == pytest.approx([0.5] * 4)",
        "assert_near(x[0, 1], y, OUTPUT[torch.float32] + phase * EPS[x[0].dtype])",
        "for dtype, t in GRADIENT.items(): assert_near(x, y, t)",
        'assert x == pytest.approx(y, abs=allowed(4 * 0.1 / 8000**0.5, "4 standard errors"))',
        "torch.testing.assert_close(x, y, rtol=0, atol=METRIC)",
        "assert share < 0.05",
    ):
        assert not own_tolerances(line), line


@pytest.mark.parametrize("path", sorted(set(TESTS.rglob("*.py")) - {TABLE, Path(__file__)}), ids=lambda p: p.stem)
def test_every_tolerance_is_of_the_table_or_says_why(path: Path) -> None:
    assert not own_tolerances(path.read_text())
