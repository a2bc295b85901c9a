"""What reaches native code: lengths of any integer kind, tensors of any layout, nothing past a tensor's end."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msssm import Backbone, Bidirectional, MultiScaleSSM, SequenceClassifier
from msssm.baselines import S4D, CausalAttention, Mamba, MultiresConv
from msssm.classifier import Pooling
from msssm.errors import InputError
from msssm.norm import SequenceNorm
from msssm.scan import selective_scan
from msssm.scan.csrc.library import library
from tests.support.tolerances import FLOAT32, HALF_LAYER, assert_near

D, L = 4, 9
LENGTHS = [9, 4, 0]


def multi(**options: Any) -> Callable[[], nn.Module]:
    return lambda: MultiScaleSSM(D, levels=2, kernel_size=3, state_size=4, **options)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "s6": multi(),
    "s6-gates": multi(selective_input="band"),
    "s4": multi(ssm="s4"),
    "s4-complex": multi(ssm="s4", diagonal="complex"),
    "none": multi(ssm="none"),
    "conv": multi(decomposition="conv"),
    "S4D": lambda: S4D(D, 4),
    "Mamba": lambda: Mamba(D, 4),
    "MultiresConv": lambda: MultiresConv(D, 2, 3),
    "CausalAttention": lambda: CausalAttention(D, 2),
    "Bidirectional": lambda: Bidirectional(D, lambda d: MultiScaleSSM(d, 1, 2, 2)),
    "Backbone": lambda: Backbone(lambda d: MultiScaleSSM(d, 1, 2, 2), D, 2, norm="batch"),
    "classifier": lambda: SequenceClassifier(nn.Linear(D, D), Backbone(lambda d: MultiScaleSSM(d, 1, 2, 2), D, 1), 3),
    "layer norm": lambda: SequenceNorm(D, "layer"),
    "batch norm": lambda: SequenceNorm(D, "batch"),
}
STATEFUL = [name for name in MODULES if name not in ("Bidirectional", "layer norm", "batch norm")]
TABLE = torch.tensor([[n, 77] for n in LENGTHS])
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
KINDS: dict[str, Tensor] = {
    **{str(dtype).removeprefix("torch."): torch.tensor(LENGTHS).to(dtype) for dtype in INTEGERS},
    "column": TABLE[:, 0],
    "int32 column": TABLE.to(torch.int32)[:, 0],
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name]().eval()


def signal(batch: int = 3) -> Tensor:
    return torch.randn(batch, L, D, generator=torch.Generator().manual_seed(1))


def true_values(y: Tensor) -> Tensor:
    """Zero past the lengths, where what an output holds is not said."""
    return y if y.ndim == 2 else y * (torch.arange(L) < torch.tensor(LENGTHS).unsqueeze(1)).unsqueeze(2)


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map_only(Tensor, change, state)


def same(actual: Any, expected: Any, tolerance: float = FLOAT32) -> None:
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    for x, y in pairs:
        if y is not None:
            assert_near(x.to(y.dtype), y, tolerance)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_lengths_of_any_integer_kind(name: str) -> None:
    module, x = build(name), signal()
    rows = [module(x[b : b + 1, :n]) for b, n in enumerate(LENGTHS) if n]  # each alone
    expected = module(x, torch.tensor(LENGTHS))
    for row, alone in enumerate(rows):
        assert_near(
            expected[row : row + 1, : LENGTHS[row]] if alone.ndim == 3 else expected[row : row + 1], alone, FLOAT32
        )
    for lengths in KINDS.values():
        assert torch.equal(true_values(module(x, lengths)), true_values(expected))
    same(module(x, torch.tensor(4, dtype=torch.int8).expand(3)), module(x, torch.tensor([4, 4, 4])), 0)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([9.0, 4.0, 0.0]), "whole numbers, one per row, got torch.float32"),
        (torch.tensor([True, True, False]), "got torch.bool"),
        (torch.tensor(4), r"got torch.int64 of shape \(\)"),
        (torch.tensor([9, 4]), r"of shape \(2,\)"),
        ([9, 4, 0], "must be a tensor of 3 whole numbers, got list"),
        (torch.tensor([9, 4, 10], dtype=torch.uint8), r"lie in 0\.\.9, got 4\.\.10"),
        (torch.tensor([9, -4, 0], dtype=torch.int16), r"lie in 0\.\.9, got -4\.\.9"),
        (torch.tensor([9, 4, 2**63], dtype=torch.uint64), r"lie in 0\.\.9"),
    ],
    ids=str,
)
def test_other_lengths_are_refused(name: str, lengths: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name)(signal(), lengths)


@pytest.mark.parametrize("name", ["s6", "s4-complex", "none"])
def test_compiled_code_clamps_lengths(name: str) -> None:
    """It cannot read them; what lies beyond is as long as can be, what is negative is 0."""
    module, x = build(name), signal().requires_grad_()
    compiled = torch.compile(module, backend="aot_eager")
    results = [
        torch.autograd.grad((true_values(y) ** 2).sum(), x)[0]
        for y in (
            compiled(x, torch.tensor([10**12, 4, -7])),
            module(x, torch.tensor(LENGTHS)),
            compiled(x, torch.stack((torch.tensor(LENGTHS), torch.arange(3)), 1)[:, 0]),
        )
    ]
    assert_near(results[0], results[1], FLOAT32)
    assert_near(results[2], results[1], FLOAT32)


@pytest.mark.skipif(library() is None, reason="the native kernels are not built")
def test_native_code_clamps_lengths_itself() -> None:
    """Whoever calls the operators: forward and backward stay within their tensors."""
    inputs = {
        "selective": (torch.randn(2, 5, 1, 3), torch.rand(2, 5, 1, 3), -torch.rand(1, 2, 3), torch.randn(2, 5, 1, 2),
                      torch.randn(2, 5, 1, 2), torch.randn(2, 5, 1, 1), None, None, None),
        "lti": (torch.randn(2, 5, 1, 3), torch.randn(2, 5, 1, 1), torch.rand(1, 2, 3), None, torch.randn(1, 2, 3), None,
                None, None, None),
        "decomposition": (torch.randn(2, 5, 3), torch.randn(2, 3, 3), torch.randn(2, 3, 3), None),
    }  # fmt: skip
    behind = {"selective": (None, None, None, None, True, True, True), "lti": (), "decomposition": ()}
    for name, given in inputs.items():
        operator = getattr(torch.ops.msssm, name)
        results = []
        for lengths in (torch.tensor([10**12, -(10**12)]), torch.tensor([5, 0])):
            first = given[0].clone().requires_grad_()
            y, state, *_ = operator(first, *given[1:], lengths, *behind[name])
            (grad,) = torch.autograd.grad(y.sum() + state.sum(), first)
            results.append((y, state, grad))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(library() is None, reason="the native kernels are not built")
def test_operators_read_any_layout_and_refuse_what_they_would_misread() -> None:
    """As a program from torch.export may call them, whose guards know shapes alone."""
    x, taps = torch.randn(2, 5, 3), torch.randn(2, 3, 3)
    expected, _ = torch.ops.msssm.decomposition(x, taps, taps, None, None)
    column = x.transpose(1, 2).contiguous().transpose(1, 2)
    turned = taps.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(torch.ops.msssm.decomposition(column, turned, taps, None, None)[0], expected)
    wrong = (
        (x.double(), taps, taps, None, None),
        (x, taps.half(), taps, None, None),
        (x, taps, taps[:1], None, None),
        (x, taps, taps, torch.zeros(2, 5, 3), None),
        (x, taps, taps, None, torch.tensor([5, 5], dtype=torch.int32)),
        (x, taps, taps, None, torch.tensor([5])),
    )
    for arguments in wrong:
        with pytest.raises(InputError, match="a kernel takes torch"):
            torch.ops.msssm.decomposition(*arguments)


@pytest.mark.parametrize("name", STATEFUL)
@torch.no_grad()
def test_any_layout_and_precision_of_inputs_states_and_weights(name: str) -> None:
    module, x = build(name), signal()
    _, state = module(x, return_state=True)
    expected, step = module(x, state=state, return_state=True), module.step(x[:, 0], state)
    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "every other": lambda t: torch.stack((t, t), -1)[..., 0],
        "turned": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        "negated view": lambda t: torch.complex(t, -t).conj().imag if t.dtype == torch.float32 else t,
    }
    for change in layouts.values():
        for given, own in ((x, mapped(state, change)), (change(x), state)):
            same(module(given, state=own, return_state=True), expected)
            same(module.step(given[:, 0], own), step)
    wide = mapped(state, lambda t: t.double() if t.dtype == torch.float32 else t)
    same(module(x, state=wide, return_state=True), expected)
    same(module.step(x[:, 0], wide), step)
    half = mapped(state, lambda t: t.bfloat16() if t.dtype == torch.float32 else t)
    rounded = mapped(half, lambda t: t.float() if t.dtype == torch.bfloat16 else t)
    same(module(x, state=half), module(x, state=rounded))
    same(module.step(x[:, 0], half)[0], module.step(x[:, 0], rounded)[0])
    for change in (layouts["every other"], layouts["turned"]):
        for part in module.modules():
            part._parameters.update(
                {key: nn.Parameter(change(p.detach())) for key, p in part._parameters.items() if p is not None}
            )
        same(module(x, state=state, return_state=True), expected)
        same(module.step(x[:, 0], state), step)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_modules_in_half_precision(name: str) -> None:
    """Their weights too, as `module.bfloat16()` makes them: complex numbers, which have no such form, are wider."""
    module, x = build(name), signal()
    expected = true_values(module(x, torch.tensor(LENGTHS)))
    for dtype, tolerance in HALF_LAYER.items():
        y = build(name).to(dtype)(x.to(dtype), torch.tensor(LENGTHS))
        assert y.dtype == dtype
        assert_near(true_values(y.float()), expected, tolerance)


@pytest.mark.parametrize("name", STATEFUL)
@torch.no_grad()
def test_a_state_of_another_batch_or_size_is_refused(name: str) -> None:
    """By a message, and not by reading past its end."""
    module, x = build(name), signal()
    _, state = module(x, return_state=True)
    for wrong in (lambda t: t[:1], lambda t: torch.cat((t, t)), lambda t: t.to("meta")):
        for call in (lambda: module(x, state=mapped(state, wrong)), lambda: module.step(x[:, 0], mapped(state, wrong))):  # noqa: B023
            with pytest.raises((ValueError, RuntimeError), match=r"must|[Ss]ize|device"):
                call()


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_nothing_in_gives_nothing(name: str) -> None:
    module, x = build(name), signal()
    assert module(x[:0], torch.zeros(0, dtype=torch.int32)).shape[0] == 0
    assert module(x[:0]).shape[0] == 0
    if name != "classifier":
        assert module(x[:, :0], torch.zeros(3, dtype=torch.uint8)).shape == (3, 0, D)
        assert module(x[:, :0]).shape == (3, 0, D)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_rows_without_positions_give_the_bias(pooling: Pooling) -> None:
    model = SequenceClassifier(nn.Linear(D, D), Backbone(lambda d: MultiScaleSSM(d, 1, 2, 2), D, 1), 3, pooling)
    for lengths in (None, torch.zeros(3, dtype=torch.int64)):
        assert torch.equal(model(signal()[:, :0], lengths), model.head.bias.expand(3, -1))


def test_every_argument_of_a_scan_is_judged() -> None:
    u, A, B = torch.randn(2, 5, 3), -torch.rand(3, 4), torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match=r"A must be on cpu, where the input is, got it on meta"):
        selective_scan(u, u.abs(), A.to("meta"), B, B)
    with pytest.raises(ValueError, match=r"B must be floating, got torch.int64"):
        selective_scan(u, u.abs(), A, B.long(), B)
    with pytest.raises(ValueError, match=r"initial_state must be floating, got torch.complex64"):
        selective_scan(u, u.abs(), A, B, B, initial_state=torch.zeros(2, 3, 4, dtype=torch.complex64))
