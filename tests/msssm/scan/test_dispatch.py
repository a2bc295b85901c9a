"""Which backend runs: a function of the device, the dtype and what is installed."""

from types import SimpleNamespace

import pytest
import torch

from msssm.scan import dispatch
from msssm.scan.dispatch import choose

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MSSSM_BACKEND", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    dispatch._warn_once.cache_clear()


def test_float64_on_a_cpu_runs_in_torch_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    assert choose("auto", CPU, torch.float64) == "torch"
    assert not recwarn.list


def test_triton_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: name)
    assert choose("triton", GPU, torch.bfloat16) == "triton"
    monkeypatch.setenv("MSSSM_BACKEND", "triton")
    assert choose("auto", GPU, torch.float32) == "triton"


def test_triton_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'triton' needs .* tensors on a GPU, got torch\.float32 on cpu; use 'torch'"):
        choose("triton", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"got torch\.float64 on cuda"):
        choose("triton", GPU, torch.float64)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'triton' is not installed: pip install triton"):
        choose("triton", GPU, torch.float32)


def test_kernels_that_fail_their_check_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: name)
    assert choose("auto", GPU, torch.float32, check=lambda device: None) == "triton"
    with pytest.warns(UserWarning, match="backend 'triton' failed its check"):
        assert choose("auto", GPU, torch.float32, check=lambda device: "failed its check") == "torch"
    assert choose("auto", GPU, torch.float32) == "torch"  # an operator without Triton kernels


def test_a_library_with_reordered_sums_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an installation with CXXFLAGS=-ffast-math by a compiler that lets it win."""
    fast = SimpleNamespace(msssm_strict=lambda large, small: 0)
    monkeypatch.setattr(dispatch.library, "_found", lambda: fast)
    dispatch.library.obstacle.cache_clear()
    with pytest.warns(UserWarning, match="backend 'cpu' was built with -ffast-math, .*: install msssm again"):
        assert choose("auto", CPU, torch.float32) == "torch"
    dispatch.library.obstacle.cache_clear()
