"""Which backend runs: a function of the device, the dtype and what is installed."""

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


def test_float64_on_a_cpu_is_plain_torch_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    assert choose("auto", CPU, torch.float64) == "torch"
    assert not recwarn.list


def test_triton_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.triton, "available", lambda: True)
    assert choose("triton", GPU, torch.bfloat16) == "triton"
    monkeypatch.setenv("MSSSM_BACKEND", "triton")
    assert choose("auto", GPU, torch.float32) == "triton"


def test_triton_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'triton' needs .* tensors on a GPU, got torch\.float32 on cpu; use 'torch'"):
        choose("triton", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"got torch\.float64 on cuda"):
        choose("triton", GPU, torch.float64)
    monkeypatch.setattr(dispatch.triton, "available", lambda: False)
    with pytest.raises(ValueError, match="'triton' is not installed: pip install triton"):
        choose("triton", GPU, torch.float32)
