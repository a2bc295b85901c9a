"""`msssm doctor` tells the truth about backends, and finds a layer that is wrong."""

import re

import pytest
import torch

from msssm import doctor
from msssm.scan.csrc import library as native
from msssm.scan.dispatch import choose
from tasks.cli.main import main

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: [CPU])


def test_prints_versions_device_compiler_and_every_operator(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in shown
    assert all(re.search(rf"^{field} +\S", shown, re.M) for field in ("versions", "processor", "GPU", "compiler"))
    backend = choose("auto", CPU, torch.float32)
    for operator in doctor.OPERATORS:
        assert re.search(rf"^  {re.escape(operator)} +{backend} ", shown, re.M)
    assert "MultiScaleSSM(s6) agrees with the paper's equations" in shown


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_layer_is_named_with_exit_code_1(
    factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = doctor.MultiScaleSSM.forward
    monkeypatch.setattr(doctor.MultiScaleSSM, "forward", lambda self, x: factor * forward(self, x))
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    assert "MultiScaleSSM(s4) is WRONG, please report it" in capsys.readouterr().out


def test_a_missing_native_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSSSM_BACKEND", raising=False)
    monkeypatch.setattr("msssm.scan.dispatch.library.obstacle", lambda: native.NOT_BUILT)
    monkeypatch.setattr("msssm.scan.dispatch._warn_once", lambda message: None)
    monkeypatch.setattr("msssm.doctor.library", lambda: None)
    lines = list(doctor.backends(CPU))
    assert len(lines) == len(doctor.OPERATORS)
    assert all("backend 'cpu' would be faster, but is not built: install a C++ compiler" in line for line in lines)
    assert "native      not built" in "\n".join(doctor.environment())


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler at install: the native library is not built")
def test_a_backend_from_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSSSM_BACKEND", "torch")
    assert "MSSSM_BACKEND=torch" in "\n".join(doctor.environment())
    assert all("'cpu' would be faster: unset MSSSM_BACKEND" in line for line in doctor.backends(CPU))


def test_takes_no_other_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--fast"])
    assert stop.value.code == 2
    assert "msssm doctor: error: unrecognized arguments: --fast" in capsys.readouterr().err
