"""Export of a sequence layer's streaming step as a separate program: `torch.export`, and ONNX."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msssm.errors import InputError
from msssm.layer import SequenceLayer, State
from msssm.ssm import S4


class _Step(nn.Module):
    def __init__(self, layer: SequenceLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.layer.step(x, state)


def exported_step(layer: SequenceLayer, batch_size: int = 1) -> torch.export.ExportedProgram:
    """Captures the step (x (B, D), state) -> (y (B, D), state) of a layer or a backbone with `torch.export`.

    On a CPU the program calls msssm's operators, so `msssm` must be imported before it is loaded.

    Args:
        layer: with batch norm, in `eval()`.
        batch_size: B, fixed in the program.

    Raises:
        ValueError: the layer's state grows with every step.
    """
    x, state = _example(layer, batch_size)
    with torch.no_grad():
        return torch.export.export(_Step(layer).eval(), (x, state))


def step_to_onnx(layer: SequenceLayer, path: str | Path, batch_size: int = 1) -> None:
    """Writes the step as ONNX: inputs "x", "state_0", ..; outputs "y", "next_state_0", .. in the same order.

    It contains the standard operators of the sequential reference, which for a single position is no slower. ONNX
    cannot express a complex diagonal, nor msssm's scans over whole sequences.

    Raises:
        ValueError: the layer's state grows, or its diagonal is complex.
        ModuleNotFoundError: without `pip install msssm[onnx]`.
    """
    if any(isinstance(module, S4) and module.frequency is not None for module in layer.modules()):
        raise InputError("ONNX has no complex exponential: export a layer with diagonal='real'")
    x, state = _example(layer, batch_size)
    count = len(_leaves(state))
    with torch.no_grad(), _reference_backend():
        torch.onnx.export(
            _Step(layer).eval(),
            (x, state),
            str(path),
            input_names=["x", *(f"state_{i}" for i in range(count))],
            output_names=["y", *(f"next_state_{i}" for i in range(count))],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _example(layer: SequenceLayer, batch_size: int) -> tuple[Tensor, State]:
    """An input and the initial state, after a check that a step keeps the state's shapes."""
    parameter = next(layer.parameters())
    x, state = parameter.new_zeros(batch_size, layer.d_model), layer.initial_state(batch_size)
    with torch.no_grad():
        _, following = layer.step(x, state)
    if [leaf.shape for leaf in _leaves(state)] != [leaf.shape for leaf in _leaves(following)]:
        raise InputError(f"{type(layer).__name__} has a state that grows with every step (attention): no fixed program")
    return x, state


def _leaves(state: State) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(state) if leaf is not None]


@contextmanager
def _reference_backend() -> Iterator[None]:
    before = os.environ.get("MSSSM_BACKEND")
    os.environ["MSSSM_BACKEND"] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MSSSM_BACKEND"]
        else:
            os.environ["MSSSM_BACKEND"] = before
