"""Scans of other packages, where they are installed; arguments and result as in `benchmarks.peers`."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import discretize

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def installed_scans(device: torch.device) -> dict[str, Scan]:
    """By name; mamba_ssm's only on a GPU."""
    found: dict[str, Scan] = {}
    if importlib.util.find_spec("mamba_ssm") is not None and device.type == "cuda":
        found["mamba_ssm selective_scan_fn"] = _mamba_ssm
    if importlib.util.find_spec("mambapy") is not None:
        found["mamba.py pscan"] = _mambapy
    return found


def _mamba_ssm(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, mix: Tensor) -> Tensor:
    """All bands in one call: its B and C take groups of channels."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found]

    rows = [x.flatten(2).transpose(1, 2).contiguous() for x in (u, delta)]
    weights = [x.permute(0, 2, 3, 1).contiguous() for x in (B, C)]
    y = selective_scan_fn(*rows, A.flatten(0, 1), *weights)
    return torch.einsum("bmdl,blm->bld", y.unflatten(1, u.shape[2:]), mix)


def _mambapy(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, mix: Tensor) -> Tensor:
    from mambapy.pscan import pscan  # type: ignore[import-not-found]

    decay, drive = discretize(u, delta, A, B)
    h = pscan(decay.flatten(2, 3), drive.flatten(2, 3)).unflatten(2, u.shape[2:])
    return torch.einsum("blmdn,blmn,blm->bld", h, C, mix)
