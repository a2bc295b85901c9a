"""Every sequence layer, small: what the tests of layers share."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from msssm import Backbone, Bidirectional, MultiScaleSSM, SequenceLayer
from msssm.baselines import S4D, CausalAttention, Mamba, MultiresConv
from msssm.block import Block

D = 4
Make = Callable[[int], SequenceLayer]
multi: Callable[..., Make] = partial(partial, MultiScaleSSM, levels=2, kernel_size=3, state_size=4)

MULTI_SCALE: dict[str, Make] = {
    f"{ssm}-{mixer}-{discretization}": multi(ssm=ssm, mixer=mixer, discretization=discretization)
    for ssm, mixer, discretization in itertools.product(
        ("s6", "s4"), ("input", "fixed", "softmax", "sum"), ("zoh", "euler")
    )
}
MULTI_SCALE |= {f"none-{mixer}": multi(ssm="none", mixer=mixer) for mixer in ("input", "fixed", "softmax", "sum")}
MULTI_SCALE |= {
    "s4-complex-zoh": multi(ssm="s4", diagonal="complex"),
    "s4-complex-euler": multi(ssm="s4", diagonal="complex", discretization="euler"),
    "s6-heads-2": multi(mixer_heads=2),
    "s6-heads-D-softmax": lambda d: multi(mixer="softmax", mixer_heads=d)(d),
    "s4-heads-2": multi(ssm="s4", mixer_heads=2),
    "s6-skip": multi(skip=True),
    "s6-normed": multi(selection_norm=True),
    "s4-skip": multi(ssm="s4", skip=True),
    "s6-shared-filters": multi(shared_filters=True),
    "s6-conv": multi(decomposition="conv"),
    "s4-conv": multi(ssm="s4", decomposition="conv"),
    "s6-gates-of-band": multi(selective_input="band"),
    "s6-drive-of-input": multi(selective_input="band", ssm_input="input", skip=True),
    "s4-drive-of-input": multi(ssm="s4", ssm_input="input"),
    "s6-mamba-init-rank-2": multi(initialization="mamba", dt_rank=2),
    "s6-reference": multi(backend="reference"),
    "s6-no-levels": partial(MultiScaleSSM, levels=0, state_size=4),
    "s4-one-tap": partial(MultiScaleSSM, levels=2, kernel_size=1, state_size=4, ssm="s4"),
}
BASELINES: dict[str, Make] = {
    "S4D": partial(S4D, state_size=4),
    "S4D-euler": partial(S4D, state_size=4, discretization="euler"),
    "S4D-real": partial(S4D, state_size=4, diagonal="real"),
    "Mamba": partial(Mamba, state_size=4),
    "MultiresConv": partial(MultiresConv, levels=3, kernel_size=3),
    "CausalAttention": partial(CausalAttention, heads=2),
}
STACKS: dict[str, Make] = {
    f"{kind}-{norm}-{'pre' if prenorm else 'post'}": partial(make, norm=norm, prenorm=prenorm)
    for kind, make in (
        ("block", lambda d, **options: Block(multi(ssm="s6")(d), **options)),
        ("backbone", lambda d, **options: Backbone(multi(ssm="s6"), d, n_layers=2, **options)),
    )
    for norm in ("batch", "layer")
    for prenorm in (False, True)
}
STACKS |= {
    "backbone-s4": lambda d: Backbone(multi(ssm="s4"), d, n_layers=2),
    "backbone-multires": lambda d: Backbone(BASELINES["MultiresConv"], d, n_layers=2),
    "backbone-attention": lambda d: Backbone(BASELINES["CausalAttention"], d, n_layers=2, norm="layer"),
    "backbone-no-glu": lambda d: Backbone(BASELINES["Mamba"], d, n_layers=2, norm="layer", glu=False),
}
LAYERS = MULTI_SCALE | BASELINES | STACKS
# They see the future, so nothing about states, chunks and causality is said of them.
WHOLE: dict[str, Make] = {
    f"bidirectional-{mix}": partial(Bidirectional, layer=multi(ssm="s6"), mix=mix) for mix in ("linear", "sum")
}
# Silence in, silence out: no bias meets the signal. Attention counts the silent steps in its softmax.
SHIFTING = MULTI_SCALE | {name: BASELINES[name] for name in ("S4D", "S4D-euler", "S4D-real", "MultiresConv")}
SMALL: dict[str, Make] = {
    "s6-zoh": partial(MultiScaleSSM, levels=1, kernel_size=2, state_size=2, skip=True),
    "s6-euler-softmax": partial(
        MultiScaleSSM, levels=1, kernel_size=2, state_size=2, discretization="euler", mixer="softmax"
    ),
    "s4-zoh-heads": partial(MultiScaleSSM, levels=1, kernel_size=2, state_size=2, ssm="s4", mixer_heads=2),
    "s4-complex": partial(MultiScaleSSM, levels=0, state_size=2, ssm="s4", diagonal="complex", skip=True),
    "none-fixed": partial(MultiScaleSSM, levels=2, kernel_size=2, ssm="none", mixer="fixed"),
    "s6-conv-gates-drive": partial(
        MultiScaleSSM,
        levels=0,
        kernel_size=2,
        state_size=2,
        decomposition="conv",
        selective_input="band",
        ssm_input="input",
    ),
    "S4D": partial(S4D, state_size=2),
    "Mamba": partial(Mamba, state_size=2, kernel_size=2),
    "MultiresConv": partial(MultiresConv, levels=2, kernel_size=2),
    "CausalAttention": partial(CausalAttention, heads=1),
    "bidirectional": partial(Bidirectional, layer=partial(MultiresConv, levels=1, kernel_size=2)),
    "block-batch": lambda d: Block(MultiresConv(d, 1, 2), "batch"),
    "backbone-layer-pre": lambda d: Backbone(
        partial(MultiresConv, levels=1, kernel_size=2), d, n_layers=1, norm="layer", prenorm=True
    ),
}


def build(make: Make, width: int = D) -> SequenceLayer:
    """In float64 and in eval, with every parameter and running statistic moved off its neutral start."""
    torch.manual_seed(0)
    layer = make(width).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in layer.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand_like(buffer))
    return layer


def signal(length: int, batch: int = 2, width: int = D, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64)


def tensors(state: Any) -> list[Tensor]:
    """The leaves of a state."""
    if state is None or isinstance(state, Tensor):
        return [] if state is None else [state]
    return [leaf for part in state for leaf in tensors(part)]
