"""Floating-point operations of one forward pass, including those that torch's counter cannot see."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msssm.baselines import Mamba, MultiresConv
from msssm.decomposition import MultiScaleDecomposition
from msssm.ssm import S4, S6, NoSSM

# Per state and step of a selective scan, by the convention of Mamba's papers: discretise, input, recurrence, output.
SELECTIVE = 9
# Per state and step with constant coefficients: h = a h + u (3 real or 10 complex operations), y += <c, h> (2 or 4).
CONSTANT_REAL, CONSTANT_COMPLEX = 5, 14


def count_flops(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Counts the operations of `model(*inputs)`, two per multiplication and addition.

    Returns:
        "matmul", what `torch.utils.flop_counter` sees: matrix products, convolutions, attention (as if not causal);
        "scan", "decomposition" and "mixer", the operations of the recurrence, the filters and the mix of bands by their
        definition, whichever backend runs; and "total". Norms and activations are left out.
    """
    stated = dict.fromkeys(("matmul", "scan", "decomposition", "mixer"), 0)
    known = [(name, m) for name, m in model.named_modules() if isinstance(m, _STATED)]

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        for part, flops in _stated(module, args).items():
            stated[part] += flops

    handles = [module.register_forward_pre_hook(count) for _, module in known]
    was_training = model.training
    try:
        # With gradients: torch's counter needs the graph of each module's result.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(*inputs)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    seen = {name: sum(operations.values()) for name, operations in counter.get_flop_counts().items()}
    for name, module in known:
        full = f"{type(model).__name__}.{name}" if name else type(model).__name__
        own = seen.get(full, 0) - sum(seen.get(f"{full}.{child}", 0) for child, _ in module.named_children())
        stated["matmul"] -= own
    stated["matmul"] += counter.get_total_flops()
    return {**stated, "total": sum(stated.values())}


_STATED = (S6, S4, NoSSM, MultiScaleDecomposition, MultiresConv, Mamba)


def _stated(module: nn.Module, args: tuple[Any, ...]) -> dict[str, int]:
    """Operations of one call: B L positions, M bands, D channels, N states, K taps, S levels."""
    positions = args[0].shape[0] * args[0].shape[1]
    if isinstance(module, MultiScaleDecomposition):
        filters = 2 * module.levels
        return {"decomposition": 2 * positions * filters * module.kernel_size * module.d_model}
    if isinstance(module, Mamba):
        return {"decomposition": 2 * positions * module.kernel_size * module.inner}
    if isinstance(module, MultiresConv):
        return {"mixer": 2 * positions * (module.decomposition.levels + 2) * module.d_model}
    bands, channels = args[1].shape[2:]
    mixing = {"mixer": 2 * positions * bands * channels}
    if isinstance(module, S6):
        step_sizes = 2 * positions * bands * module.rank * channels
        scan = SELECTIVE * positions * bands * channels * module.state_size
        return {**mixing, "matmul": step_sizes, "scan": scan}
    if isinstance(module, S4):
        per_state = CONSTANT_REAL if module.frequency is None else CONSTANT_COMPLEX
        return {**mixing, "scan": per_state * positions * module.log_rate.numel()}
    return mixing
