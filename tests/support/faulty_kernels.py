"""Kernels with planted faults, for the tests of their check: each spoils a scan of `msssm.scan.triton`."""

import inspect
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from msssm.padding import mask_padding, position_mask
from msssm.scan import multiscale_scan, reference, triton
from msssm.scan.mixing import mix_bands

Scan = Callable[..., tuple[Tensor, Tensor]]
Fault = Callable[[Scan, dict[str, Any]], tuple[Tensor, Tensor]]

SCANS = {"selective": "multiscale_scan", "lti": "lti_scan"}
ARGUMENTS = {name: list(inspect.signature(getattr(triton, scan)).parameters) for name, scan in SCANS.items()}
DIFFERENTIABLE = {
    name: [a for a in arguments if a not in ("lengths", "discretization")] for name, arguments in ARGUMENTS.items()
}


def plant(kernels: str, scan: Scan, fault: Fault) -> Scan:
    """The scan with a fault, which sees its arguments by name."""

    def spoiled(*args: Any) -> tuple[Tensor, Tensor]:
        return fault(scan, dict(zip(ARGUMENTS[kernels], args, strict=True)))

    return spoiled


def right_selective(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, mix: Tensor, D: Tensor | None,
                    delta_bias: Tensor | None, lengths: Tensor | None, initial_state: Tensor | None,
                    discretization: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Stands for the Triton kernels: the reference in float32."""
    wide = [x.float() for x in (u, delta, A, B, C, mix)]
    y, state = multiscale_scan(
        *wide, D, delta_bias=delta_bias, lengths=lengths, initial_state=initial_state, return_state=True,
        discretization=discretization, backend="reference",  # type: ignore[arg-type]
    )  # fmt: skip
    return y.to(u.dtype), state


def right_lti(u: Tensor, decay: Tensor, weight: Tensor, mix: Tensor, D: Tensor | None, lengths: Tensor | None,
              initial_state: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide, mask = mask_padding(u.float(), lengths), None if lengths is None else position_mask(lengths, u.shape[1])
    start = decay.new_zeros(len(u), *decay.shape) if initial_state is None else initial_state
    bands, state = reference.banded_lti(wide, decay, weight, mask, start)
    y = mix_bands(bands if D is None else bands + D * wide, mask_padding(mix.float(), lengths))
    return y.to(u.dtype), state


RIGHT: dict[str, Scan] = {"selective": right_selective, "lti": right_lti}


def wrong_gradient(of: str, by: float = 1e-3) -> Fault:
    def fault(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        x = given[of]
        if x is not None:
            given[of] = x.detach() + (1 - by) * (x - x.detach())
        return scan(**given)

    return fault


def wrong_output(when: Callable[[dict[str, Any]], bool] = lambda given: True, by: float = 1e-3) -> Fault:
    def fault(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        y, state = scan(**given)
        return y * (1 + by * when(given)), state

    return fault


def wrong_state(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    y, state = scan(**given)
    return y, state * 1.001


def output_in_padding(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    y, state = scan(**given)
    if given["lengths"] is None:
        return y, state
    return torch.where(position_mask(given["lengths"], y.shape[1]).unsqueeze(-1), y, y.new_tensor(0.5)), state


def one_step_too_far(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Past a row's length, the first step has an input of 0.125 instead of what the check put there."""
    if (lengths := given["lengths"]) is not None:
        given["lengths"] = (lengths + 1).clamp(max=given["u"].shape[1])
        for name in ("u", "delta", "B", "C", "mix"):
            if name in given:
                given[name] = torch.where(given[name].isnan(), 0.125, given[name])
    return scan(**given)


def without(name: str) -> Fault:
    def fault(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return scan(**given | {name: given[name] * 0 if isinstance(given[name], Tensor) else None})

    return fault


def unsteady() -> Fault:
    """Every second result differs in its last bits."""
    calls = count()

    def fault(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        y, state = scan(**given)
        return y, state * (1 + 2**-22 * (next(calls) % 2))

    return fault


def raising(error: Exception) -> Fault:
    def fault(scan: Scan, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise error

    return fault
