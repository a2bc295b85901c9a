"""Selective scans against the recurrence written out, and against what theory says of it."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from msssm.scan import multiscale_scan, selective_scan
from msssm.scan.selective import torch as torch_form
from tests.support.tolerances import GRADIENT, OUTPUT, allowed, assert_near

BACKENDS = ("reference", "torch")
DISCRETIZATIONS = ("zoh", "euler")
# batch, length, M, D, N, heads
SHAPES = [
    (2, 1, 1, 1, 1, 1),
    (1, 2, 2, 3, 1, 3),
    (3, 17, 3, 5, 3, 1),
    (2, 17, 1, 7, 5, 7),
    (2, 200, 5, 6, 3, 2),
]

Arguments = dict[str, Tensor]


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 0.3
) -> Arguments:
    batch, length, M, D, N, heads = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "bands": normal(batch, length, M, D),
        "delta": scale * normal(batch, length, M, D).abs(),
        "A": -4 * torch.rand(M, D, N, generator=generator, dtype=torch.float64).to(dtype) - 0.1,
        "B": normal(batch, length, M, N),
        "C": normal(batch, length, M, N),
        "mix": normal(batch, length, M, heads),
        "D": normal(M, D),
        "initial_state": normal(batch, M, D, N),
    }


def recurrence(given: Arguments, discretization: str) -> tuple[Tensor, Tensor]:
    """h = exp(delta A) h + Bbar u;  y = sum_s E[s] (sum_n C h + D u): one number at a time, in float64."""
    u, delta, A, B, C, mix, D, h = (x.double().numpy() for x in given.values())
    batch, length, M, channels = u.shape
    h, y = h.copy(), torch.zeros(batch, length, channels, dtype=torch.float64)
    group = channels // mix.shape[-1]
    for b in range(batch):
        for t in range(length):
            for m in range(M):
                for d in range(channels):
                    out = D[m, d] * u[b, t, m, d]
                    for n in range(A.shape[-1]):
                        x = delta[b, t, m, d] * A[m, d, n]
                        gain = math.expm1(x) / A[m, d, n] if discretization == "zoh" else delta[b, t, m, d]
                        h[b, m, d, n] = math.exp(x) * h[b, m, d, n] + gain * B[b, t, m, n] * u[b, t, m, d]
                        out += C[b, t, m, n] * h[b, m, d, n]
                    y[b, t, d] += mix[b, t, m, d // group] * out
    return y, torch.from_numpy(h)


def gradients(given: Arguments, backend: str, discretization: str) -> list[Tensor]:
    """Gradients of a fixed random weighting of outputs and last state, with respect to every argument."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y, h = multiscale_scan(**leaves, return_state=True, discretization=discretization, backend=backend)
    generator = torch.Generator().manual_seed(99)
    wide = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in (y, h)]
    weights = [weight.to(out.dtype) for weight, out in zip(wide, (y, h), strict=True)]
    return list(torch.autograd.grad((y, h), list(leaves.values()), weights))


@pytest.fixture(params=[None, 4, 7], ids=["default-blocks", "blocks-of-4", "blocks-of-7"])
def block_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(torch_form, "TILE_ELEMENTS", 1)
        monkeypatch.setattr(torch_form, "MIN_TILE", request.param)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_recurrence_written_out(shape: tuple[int, ...], backend: str, discretization: str) -> None:
    given = arguments(shape)
    y, h = multiscale_scan(**given, return_state=True, discretization=discretization, backend=backend)
    expected_y, expected_h = recurrence(given, discretization)
    assert_near(y, expected_y, OUTPUT[torch.float64])
    assert_near(h, expected_h, OUTPUT[torch.float64])


@pytest.mark.usefixtures("block_length")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocked_equals_reference(shape: tuple[int, ...], discretization: str, dtype: torch.dtype) -> None:
    """Outputs, last state and the gradient of every argument; the reference computes in float64."""
    given = arguments(shape, dtype)
    wide = {name: x.double() for name, x in given.items()}
    results = multiscale_scan(**given, return_state=True, discretization=discretization, backend="torch")
    truth = multiscale_scan(**wide, return_state=True, discretization=discretization, backend="reference")
    for actual, expected in zip(results, truth, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, expected, OUTPUT[dtype])
    grads = gradients(given, "torch", discretization)
    for actual, expected in zip(grads, gradients(wide, "reference", discretization), strict=True):
        assert actual.dtype == dtype
        assert_near(actual, expected, GRADIENT[dtype])


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_multiscale_gradients_equal_finite_differences(
    backend: str, discretization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_form, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(torch_form, "MIN_TILE", 2)
    given = arguments((2, 3, 2, 2, 2, 2))

    def scan(*values: Tensor) -> Any:
        named = dict(zip(given, values, strict=True))
        return multiscale_scan(**named, return_state=True, discretization=discretization, backend=backend)

    assert torch.autograd.gradcheck(scan, [x.requires_grad_() for x in given.values()])


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_selective_gradients_equal_finite_differences(backend: str, discretization: str) -> None:
    given = one_band(arguments((2, 3, 1, 2, 2, 1)))

    def scan(*values: Tensor) -> Any:
        named = dict(zip(given, values, strict=True))
        return selective_scan(**named, return_state=True, discretization=discretization, backend=backend)

    assert torch.autograd.gradcheck(scan, [x.requires_grad_() for x in given.values()])


def one_band(given: Arguments) -> Arguments:
    """Arguments of `selective_scan`, out of those of a `multiscale_scan` with one band."""
    band_axis = {"bands": 2, "delta": 2, "A": 0, "B": 2, "C": 2, "D": 0, "initial_state": 1}
    return {("u" if name == "bands" else name): given[name].squeeze(axis) for name, axis in band_axis.items()}


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_selective_scan_is_the_multiscale_scan_of_one_band(backend: str, discretization: str) -> None:
    given = arguments((2, 17, 1, 5, 3, 1))
    options: dict[str, Any] = {"return_state": True, "discretization": discretization, "backend": backend}
    y, h = selective_scan(**one_band(given), **options)
    y_multi, h_multi = multiscale_scan(**given | {"mix": torch.ones_like(given["mix"])}, **options)
    assert torch.equal(y, y_multi)
    assert torch.equal(h, h_multi.squeeze(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_absent_arguments_are_neutral(backend: str) -> None:
    """No skip, no initial state: zeros. Mixer weights without a head axis: one head."""
    given = arguments((2, 17, 3, 4, 2, 1))
    zeros = {name: torch.zeros_like(given[name]) for name in ("D", "initial_state")}
    few = {name: x for name, x in given.items() if name not in zeros} | {"mix": given["mix"].squeeze(-1)}
    expected = multiscale_scan(**given | zeros, backend=backend)
    assert torch.equal(multiscale_scan(**few, backend=backend), expected)


@pytest.mark.usefixtures("block_length")
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 8, 16])
def test_a_scan_in_two_parts_is_one_scan(cut: int, backend: str, discretization: str) -> None:
    given = arguments((2, 17, 3, 4, 2, 2))
    options: dict[str, Any] = {"return_state": True, "discretization": discretization, "backend": backend}
    timed = ("bands", "delta", "B", "C", "mix")
    y_1, h = multiscale_scan(**given | {name: given[name][:, :cut] for name in timed}, **options)
    rest = given | {name: given[name][:, cut:] for name in timed} | {"initial_state": h}
    y_2, h = multiscale_scan(**rest, **options)
    y, h_whole = multiscale_scan(**given, **options)
    assert_near(torch.cat((y_1, y_2), 1), y, OUTPUT[torch.float64])
    assert_near(h, h_whole, OUTPUT[torch.float64])


def at_rest(length: int, delta: float) -> Arguments:
    """float32 arguments with steps in [delta / 2, 3 delta / 2], no skip, and nothing in the state."""
    given = arguments((2, length, 2, 3, 4, 1), torch.float32)
    uniform = torch.rand(given["delta"].shape, generator=torch.Generator().manual_seed(1))
    nothing = {name: torch.zeros_like(given[name]) for name in ("D", "initial_state")}
    return given | nothing | {"delta": delta * (0.5 + uniform)}


@pytest.mark.parametrize("delta", [1e-6, 1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_loses_nothing_at_any_step_size(backend: str, discretization: str, delta: float) -> None:
    """(exp(delta A) - 1) / A computed as written would be wrong by eps / (delta |A|)."""
    given = at_rest(40, delta)
    y, h = multiscale_scan(**given, return_state=True, discretization=discretization, backend=backend)
    expected_y, expected_h = recurrence(given, discretization)
    assert_near(y, expected_y, OUTPUT[torch.float32])
    assert_near(h, expected_h, OUTPUT[torch.float32])


@pytest.mark.parametrize("delta", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_float32_gradients_at_any_step_size(discretization: str, delta: float) -> None:
    given = at_rest(200, delta)
    wide = {name: x.double() for name, x in given.items()}
    truth = gradients(wide, "reference", discretization)
    for actual, expected in zip(gradients(given, "torch", discretization), truth, strict=True):
        assert_near(actual, expected, GRADIENT[torch.float32])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zoh_and_euler_meet_at_first_order(backend: str) -> None:
    """Halving the step halves their relative difference (a convergence order of 1)."""
    given = arguments((1, 9, 2, 3, 2, 1)) | {"initial_state": torch.zeros(1, 2, 3, 2, dtype=torch.float64)}
    given["D"] = torch.zeros_like(given["D"])

    def difference(step: float) -> float:
        scaled = given | {"delta": given["delta"] * step}
        zoh, euler = (multiscale_scan(**scaled, discretization=d, backend=backend) for d in DISCRETIZATIONS)
        return ((zoh - euler).abs().max() / zoh.abs().max()).item()

    errors = [difference(2.0**-k) for k in range(6, 10)]
    orders = [math.log2(first / second) for first, second in itertools.pairwise(errors)]
    assert orders == pytest.approx([1.0] * 3, abs=allowed(0.02, "the second order, at the largest of these steps"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zoh_is_exact_for_piecewise_constant_input(backend: str) -> None:
    """h' = A h + B u, u held: however finely a piece is cut, h <- e^{A tau} h + (e^{A tau} - 1) / A B u."""
    A = -torch.tensor([[0.3, 1.0, 9.0]], dtype=torch.float64)
    B = torch.tensor([0.7, -1.1, 2.0], dtype=torch.float64)
    h = torch.zeros(3, dtype=torch.float64)
    inputs, steps = [], []
    for tau, u, cuts in ((0.4, 1.0, 5), (1.3, -2.0, 40), (0.02, 30.0, 3)):
        h = torch.exp(A[0] * tau) * h + (torch.exp(A[0] * tau) - 1) / A[0] * B * u
        inputs += [u] * cuts
        steps += [tau / cuts] * cuts
    u_fine, delta = (torch.tensor(x, dtype=torch.float64).view(1, -1, 1) for x in (inputs, steps))
    B_fine = B.expand(1, len(steps), 3)
    options: dict[str, Any] = {"return_state": True, "backend": backend}
    _, zoh = selective_scan(u_fine, delta, A, B_fine, B_fine, **options)
    assert_near(zoh[0, 0], h, OUTPUT[torch.float64])
    _, euler = selective_scan(u_fine, delta, A, B_fine, B_fine, discretization="euler", **options)
    assert (euler[0, 0] - h).abs().max() > 1e-3 * h.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_zero_leaves_the_state(backend: str, discretization: str, dtype: torch.dtype) -> None:
    """Bit for bit, whatever the inputs of that step."""
    given = arguments((2, 17, 3, 5, 3, 1), dtype)
    options: dict[str, Any] = {"return_state": True, "discretization": discretization, "backend": backend}
    _, h = multiscale_scan(**given | {"delta": torch.zeros_like(given["delta"])}, **options)
    assert torch.equal(h, given["initial_state"])
    given["delta"][:, 11:] = 0
    frozen = torch.arange(11, 17)
    louder = given | {name: given[name].index_fill(1, frozen, 7.0) for name in ("bands", "B", "C")}
    assert torch.equal(multiscale_scan(**given, **options)[1], multiscale_scan(**louder, **options)[1])


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_in_and_out_with_states_in_float32(backend: str, discretization: str) -> None:
    """The result is the float32 result, rounded once."""
    given = arguments((2, 50, 2, 4, 3, 1), torch.bfloat16)
    options: dict[str, Any] = {"return_state": True, "discretization": discretization, "backend": backend}
    y, h = multiscale_scan(**given, **options)
    y_float, h_float = multiscale_scan(**{name: x.float() for name, x in given.items()}, **options)
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, y_float.bfloat16())
    assert torch.equal(h, h_float)


def test_autocast_does_not_reach_the_recurrence() -> None:
    given = arguments((2, 50, 2, 4, 3, 1), torch.float32)
    expected = multiscale_scan(**given, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(multiscale_scan(**given, backend="torch"), expected)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bit_equal(backend: str, discretization: str) -> None:
    given = arguments((3, 64, 5, 8, 4, 2), torch.float32)
    first, second = (gradients(given, backend, discretization) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_the_blocked_scan_keeps_no_states_for_backward(discretization: str) -> None:
    """What autograd saves, all together, is far below one (B, L, M, D, N) tensor."""
    shape = batch, length, M, D, N, _ = (2, 512, 3, 16, 16, 1)
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    leaves = {name: x.requires_grad_() for name, x in arguments(shape, torch.float32).items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        multiscale_scan(**leaves, discretization=discretization, backend="torch").sum()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() // 4 for x in saved}
    assert storages
    assert sum(storages.values()) < batch * length * M * D * N / 2


@pytest.mark.parametrize(
    ("scan", "name", "asked"),
    [
        (multiscale_scan, "delta", (2, 5, 3, 4)),
        (multiscale_scan, "A", (3, 4, 2)),
        (multiscale_scan, "B", (2, 5, 3, 2)),
        (multiscale_scan, "C", (2, 5, 3, 2)),
        (multiscale_scan, "D", (3, 4)),
        (multiscale_scan, "initial_state", (2, 3, 4, 2)),
        (multiscale_scan, "mix", (2, 5, 3)),
        (selective_scan, "delta", (2, 5, 4)),
        (selective_scan, "A", (4, 2)),
        (selective_scan, "B", (2, 5, 2)),
        (selective_scan, "C", (2, 5, 2)),
        (selective_scan, "D", (4,)),
        (selective_scan, "initial_state", (2, 4, 2)),
    ],
)
def test_a_wrong_shape_is_named_with_what_was_asked_and_what_came(
    scan: Callable[..., Any], name: str, asked: tuple[int, ...]
) -> None:
    multi = scan is multiscale_scan
    given = arguments((2, 5, 3 if multi else 1, 4, 2, 1))
    given = given if multi else one_band(given)
    wrong = (given[name].shape[0] + 6, *given[name].shape[1:])
    with pytest.raises(ValueError, match=f"{name} must") as error:
        scan(**given | {name: torch.zeros(wrong)})
    assert str(asked) in str(error.value)
    assert str(wrong) in str(error.value)


@pytest.mark.parametrize(("scan", "name"), [(multiscale_scan, "bands"), (selective_scan, "u")])
def test_a_wrong_rank_is_named(scan: Callable[..., Any], name: str) -> None:
    given = arguments((2, 5, 1, 4, 2, 1))
    given = given if scan is multiscale_scan else one_band(given)
    with pytest.raises(ValueError, match=rf"{name} must have \d dimensions, got shape \(2, 5\)"):
        scan(**given | {name: torch.zeros(2, 5)})


def test_heads_that_do_not_divide_the_channels_are_named() -> None:
    given = arguments((2, 5, 3, 4, 2, 1)) | {"mix": torch.zeros(2, 5, 3, 3)}
    with pytest.raises(ValueError, match=r"H a divisor of 4, got \(2, 5, 3, 3\)"):
        multiscale_scan(**given)


@pytest.mark.parametrize("option", ["discretization", "backend"])
def test_an_unknown_option_is_named_with_the_known_ones(option: str) -> None:
    given: dict[str, Any] = {**arguments((1, 2, 1, 1, 1, 1)), option: "bilinear"}
    known = {"discretization": "'zoh' or 'euler'", "backend": "reference, torch"}[option]
    with pytest.raises(ValueError, match=f"{option} must be .*{known}.*'bilinear'"):
        multiscale_scan(**given)
