"""The block is its formula; dropout and stochastic depth."""

import math

import pytest
import torch
from torch import Tensor

from msssm import Backbone
from msssm.baselines import S4D, MultiresConv
from msssm.block import Block
from tests.support.layers import D, build, multi, signal, tensors
from tests.support.tolerances import OUTPUT, allowed, assert_near


@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize("prenorm", [True, False])
@torch.no_grad()
def test_block_is_its_formula(prenorm: bool, glu: bool) -> None:
    block = build(lambda d: Block(MultiresConv(d, 2, 2), "layer", prenorm, glu))
    x = signal(9)

    def norm(v: Tensor) -> Tensor:
        centred = v - v.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return scaled * block.norm.inner.weight + block.norm.inner.bias

    inner = block.layer(norm(x) if prenorm else x)
    if glu:
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        value, gate = (gelu @ block.glu.weight.T + block.glu.bias).split(D, -1)
        inner = value / (1 + torch.exp(-gate))
    assert_near(block(x), x + inner if prenorm else norm(x + inner), OUTPUT[torch.float64])


@torch.no_grad()
def test_dropout_drops_whole_channels_of_a_row_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = Block(MultiresConv(50, 1, 2), "layer", prenorm=True, dropout=0.25).double().train()
    x = torch.randn(40, 3, 50, dtype=torch.float64)
    kept = (block(x) - x).abs().amax(1) > 0
    dropped_fraction = 1 - kept.float().mean().item()
    assert dropped_fraction == pytest.approx(
        0.25, abs=allowed(5 * math.sqrt(0.25 * 0.75 / kept.numel()), "5 standard errors")
    )
    full = block.eval()(x) - x
    some = block.train()(x) - x
    assert_near(some, torch.where(some == 0, 0, full * 4 / 3), OUTPUT[torch.float64])


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_stochastic_depth_drops_the_branch_of_whole_rows_and_keeps_its_mean(prenorm: bool, compiled: bool) -> None:
    """In training every row is x or x + f(x) / (1 - p), before the norm of a post-norm block; in evaluation nothing."""
    torch.manual_seed(0)
    rows = 2000
    block = Block(MultiresConv(D, 1, 2), "layer", prenorm, drop_path=0.25).double()
    x = signal(5, batch=1)
    f = block.glu(torch.nn.functional.gelu(block.layer(block.norm(x) if prenorm else x)))  # type: ignore[misc]
    f = torch.nn.functional.glu(f, dim=-1)
    after = (lambda y: y) if prenorm else block.norm
    assert_near(block.eval()(x), after(x + f), OUTPUT[torch.float64])
    run = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
    y = run.train()(x.expand(rows, -1, -1))
    dropped = (y == after(x)).flatten(1).all(1)
    assert_near(y, torch.where(dropped.view(-1, 1, 1), after(x), after(x + f * 4 / 3)), OUTPUT[torch.float64])
    error = 5 * math.sqrt(0.25 * 0.75 / rows)
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=allowed(error, "5 standard errors"))
    if prenorm:
        assert_near(y.mean(0), (x + f)[0], allowed(error * 4 / 3, "5 standard errors of the branch"))


@torch.no_grad()
def test_stochastic_depth_leaves_lengths_and_state() -> None:
    """A row that is dropped still moves the layer's state; its padding changes nothing."""
    torch.manual_seed(0)
    block = Block(multi()(D), "layer", prenorm=True, drop_path=0.5).double()
    x, lengths = signal(9, batch=16), torch.tensor([9, 4] * 8)
    whole, state = block.eval()(x, lengths, return_state=True)
    y, trained = block.train()(x, lengths, return_state=True)
    for one, other in zip(tensors(trained), tensors(state), strict=True):
        assert torch.equal(one, other)
    kept = [not torch.equal(y[row, : lengths[row]], x[row, : lengths[row]]) for row in range(16)]
    assert 0 < sum(kept) < 16
    for row, length in enumerate(lengths.tolist()):
        expected = x + 2 * kept[row] * (whole - x)
        assert_near(y[row, :length], expected[row, :length], OUTPUT[torch.float64])
    stepped, _ = block.step(x[:, 0], block.initial_state(16))
    once = (stepped == x[:, 0]).all(1)
    assert 0 < once.sum() < 16
    assert_near(stepped[~once], (2 * whole - x)[~once, 0], OUTPUT[torch.float64])
    assert_near(block.eval().step(x[:, 0], block.initial_state(16))[0], whole[:, 0], OUTPUT[torch.float64])


def test_the_rates_of_stochastic_depth_grow_linearly() -> None:
    assert [block.drop_path for block in Backbone(S4D, 4, 5, drop_path=0.5).blocks] == [0, 0.125, 0.25, 0.375, 0.5]
    assert [block.drop_path for block in Backbone(S4D, 4, 1, drop_path=0.5).blocks] == [0]
    assert [block.drop_path for block in Backbone(S4D, 4, 2).blocks] == [0, 0]
