"""Recomputation in the backward of a block, which only keeps its input and the results of its scans.

Bands, projections and step sizes are cheap to compute but large, (B, L, M, ...); the results of a scan are expensive
but small, (B, L, D) and sparse states. Memory therefore hardly depends on the number of levels, and no scan runs twice.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from functools import partial, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from msssm.transforms import transformed

P = ParamSpec("P")
Results = tuple[Tensor, ...]
Run = Callable[[], Results]

# Runs a `kept` scan, or replays its results.
_keeper: ContextVar[Callable[[Run], Results]] = ContextVar("keeper", default=lambda run: run())
# The operators whose results compiled code keeps.
_SCANS = ("msssm::selective", "msssm::lti", "msssm::triton_selective", "msssm::triton_lti")


def recomputed(run: Callable[..., Any], *args: Any) -> Any:
    """Computes run(*args), whose backward keeps `args` and the results of `kept` scans, and runs the rest again.

    Outputs and gradients equal those of run(*args) bit by bit, including dropout and autocast, however often a graph is
    traversed. Side effects of `run` occur twice.
    """
    contexts = _compiled_contexts if torch.compiler.is_compiling() else _contexts
    return checkpoint(run, *args, use_reentrant=False, context_fn=contexts)


def kept(scan: Callable[P, Results]) -> Callable[P, Results]:
    """Makes a scan return its first results when `recomputed` runs it again."""

    @wraps(scan)
    def run(*args: P.args, **kwargs: P.kwargs) -> Results:
        if torch.compiler.is_compiling():  # there `_policy` says what is kept
            return scan(*args, **kwargs)
        return _keeper.get()(lambda: scan(*args, **kwargs))

    return run


def recomputable(*modules: nn.Module) -> bool:
    """Whether the backward can call the modules a second time without a difference.

    Transforms of `torch.func` refuse it, hooks would notice it, buffers may count or average the calls (spectral norm,
    observers), and compiled parts may overwrite what is kept.
    """
    if not torch.is_grad_enabled() or transformed() or _has_any_global_hook():
        return False
    return not any(
        m._forward_hooks or m._forward_pre_hooks or m._buffers or m._compiled_call_impl or "forward" in vars(m)
        for module in modules
        for m in module.modules()
    )


class _Keeping(AbstractContextManager[None]):
    """Sets where `kept` scans take their results from. A second backward through the same graph enters it again."""

    def __init__(self, keeper: Callable[[], Callable[[Run], Results]]) -> None:
        self.keeper = keeper
        self.tokens: list[Token[Any]] = []

    def __enter__(self) -> None:
        self.tokens.append(_keeper.set(self.keeper()))

    def __exit__(self, *exception: object) -> None:
        _keeper.reset(self.tokens.pop())


def _contexts() -> tuple[_Keeping, _Keeping]:
    """Contexts of the first and of the second computation."""
    results: list[Results] = []

    def note(run: Run) -> Results:
        results.append(run())
        return tuple(x.detach() for x in results[-1])

    def replay() -> Callable[[Run], Results]:
        noted = iter(results)
        return lambda run: tuple(x.detach() for x in next(noted))

    return _Keeping(lambda: note), _Keeping(replay)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    scan = getattr(operator, "_schema", None) is not None and operator._schema.name in _SCANS
    return CheckpointPolicy.MUST_SAVE if scan else CheckpointPolicy.PREFER_RECOMPUTE


_compiled_contexts = partial(create_selective_checkpoint_contexts, _policy)
