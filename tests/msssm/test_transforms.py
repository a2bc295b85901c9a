"""Function transforms, forward mode and second derivatives of layers on their fast path: those of the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils import _pytree as pytree

from msssm import Backbone, Bidirectional, MultiScaleSSM
from msssm.baselines import S4D, CausalAttention, Mamba, MultiresConv
from msssm.errors import InputError
from msssm.layer import SequenceLayer
from msssm.padding import mask_padding
from msssm.scan import Backend, lti_scan, multiscale_scan
from tests.support.tolerances import GRADIENT

D, L = 4, 6
Make = Callable[[Backend], SequenceLayer]


def multi(**options: Any) -> Make:
    return lambda backend: MultiScaleSSM(D, levels=2, kernel_size=3, state_size=4, backend=backend, **options)


LAYERS: dict[str, Make] = {
    "s6": multi(skip=True),
    "s6-euler-gates": multi(discretization="euler", selective_input="band"),
    "s4": multi(ssm="s4"),
    "s4-complex": multi(ssm="s4", diagonal="complex", skip=True),
    "none": multi(ssm="none"),
    "conv": multi(decomposition="conv", mixer="softmax"),
    "S4D": lambda _: S4D(D, 4),
    "Mamba": lambda backend: Mamba(D, 4, backend=backend),
    "MultiresConv": lambda _: MultiresConv(D, 2, 3),
    "CausalAttention": lambda _: CausalAttention(D, 2),
    "Bidirectional": lambda backend: Bidirectional(D, lambda d: MultiScaleSSM(d, 1, 2, 2, backend=backend)),
    "Backbone": lambda backend: Backbone(lambda d: MultiScaleSSM(d, 1, 2, 2, backend=backend), D, 1, prenorm=True),
}
LENGTHS = torch.tensor([6, 2, 0])


def call(layer: nn.Module, parameters: dict[str, Tensor], x: Tensor, lengths: Tensor | None = None) -> Tensor:
    y: Tensor = functional_call(layer, parameters, (x, lengths))
    return mask_padding(y, lengths)


def results(layer: SequenceLayer, dtype: torch.dtype) -> dict[str, Any]:
    """Every way to a derivative, by name."""
    g = torch.Generator().manual_seed(1)
    x, v, w = (torch.randn(3, L, D, generator=g).to(dtype) for _ in range(3))
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}

    def sample_loss(p: dict[str, Tensor], x: Tensor, w: Tensor, length: Tensor) -> Tensor:
        return (call(layer, p, x[None], length[None])[0] * w).sum()

    def pooled(x: Tensor) -> Tensor:
        return layer(x).sum((0, 1))

    found: dict[str, Any] = {
        "jvp": jvp(lambda p, x: call(layer, p, x, LENGTHS), (parameters, x), (ones, v)),
        "grad": grad(lambda p: (call(layer, p, x, LENGTHS) * w).sum())(parameters),
        "per-sample gradients": vmap(grad(sample_loss), (None, 0, 0, 0))(parameters, x, w, LENGTHS),
        "jacrev": jacrev(pooled)(x),
        "jacfwd": jacfwd(pooled)(x[:2, :2]),
        "hessian": hessian(lambda x: (layer(x) * w[:1, :2]).pow(2).sum())(x[:1, :2]),
        "vectorized jacobian": torch.autograd.functional.jacobian(pooled, x, vectorize=True),
    }
    stacked = {name: torch.stack((p, 1.1 * p)).requires_grad_() for name, p in parameters.items()}
    y = vmap(lambda p: call(layer, p, x))(stacked)
    found["ensemble"] = y, torch.autograd.grad((y * w).sum(), list(stacked.values()), allow_unused=True)
    with forward_ad.dual_level(), torch.no_grad():
        dual = forward_ad.make_dual(x, v)
        found["forward mode"] = forward_ad.unpack_dual(layer(dual)).tangent
        if not isinstance(layer, Bidirectional):
            y, _ = layer.step(dual[:, 0], layer.initial_state(3))
            found["forward mode of a step"] = forward_ad.unpack_dual(y).tangent
    leaf, own = x.clone().requires_grad_(), list(layer.parameters())
    (first,) = torch.autograd.grad(
        (mask_padding(layer(leaf, LENGTHS), LENGTHS) * w).pow(2).sum(), leaf, create_graph=True
    )
    found["double backward"] = first, torch.autograd.grad((first * v).sum(), [leaf, *own], allow_unused=True)
    return found


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented")
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_the_reference(name: str) -> None:
    """In float32 on the native kernels, in float64 on those in torch."""
    torch.manual_seed(0)
    expected = results(reference := LAYERS[name]("reference").double().eval(), torch.float64)
    for dtype, tolerance in GRADIENT.items():
        fast = LAYERS[name]("auto").to(dtype).eval()
        fast.load_state_dict(reference.state_dict())
        for way, values in results(fast, dtype).items():
            pairs = list(zip(pytree.tree_leaves(values), pytree.tree_leaves(expected[way]), strict=True))
            assert any(y is not None and y.abs().max() > 0 for _, y in pairs)
            for x, y in pairs:
                assert (x is None) == (y is None)
                if y is not None:
                    error, scale = (x.double() - y).abs().max().item(), y.abs().max().item()
                    assert error <= tolerance * max(scale, 1), f"{way}: {error:.2g} of {scale:.2g}"


def test_a_backend_without_rules_is_refused() -> None:
    bands, rates = torch.randn(2, 5, 1, 3), -torch.rand(1, 3, 4)
    B, mix = torch.randn(2, 5, 1, 4), torch.randn(2, 5, 1)
    for backend in ("cpu", "torch", "triton"):
        with pytest.raises(InputError, match=f"backend '{backend}' has a gradient, but no rules for .* or 'reference'"):
            grad(lambda u, b=backend: multiscale_scan(u, bands.abs(), rates, B, B, mix, backend=b).sum())(bands)
    with pytest.raises(InputError, match=r"use 'auto' or 'torch'"):
        grad(lambda u: lti_scan(u, -rates[..., 0], rates, rates, mix, backend="cpu").sum())(bands)
