"""`msssm doctor` tells the truth about backends, and praises no operator that is wrong."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from msssm import doctor
from msssm.scan.cpu import library as native
from msssm.scan.dispatch import choose
from msssm.scan.triton import verdict
from msssm.scan.triton.verdict import Kernels, Verdict
from tasks.cli.main import main

CPU = torch.device("cpu")
OPERATORS = ["selective_scan", "multiscale_scan", "lti_scan", "decomposition"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LENGTH", 24), ("CHANNELS", 8), ("STATES", 4)):
        monkeypatch.setattr(doctor, name, value)
    monkeypatch.setattr(doctor, "devices", lambda: [CPU])


def test_prints_versions_device_compiler_and_every_operator(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in shown
    assert all(re.search(rf"^{field} +\S", shown, re.M) for field in ("versions", "processor", "GPU", "compiler"))
    backend = choose("auto", CPU, torch.float32)
    for operator in OPERATORS:
        assert re.search(rf"^  {operator} +{backend} +agrees, +[\d.]+ ms, [\d.]+ x the reference$", shown, re.M)


def test_a_wrong_operator_gets_no_speed_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = doctor.operators()
    right, tensors = given["lti_scan"]

    def wrong(arguments: list[Tensor], backend: doctor.Backend) -> Tensor:
        return right(arguments, backend) * (1 if backend == "reference" else 1.001)

    monkeypatch.setattr(doctor, "operators", lambda: {**given, "lti_scan": (wrong, tensors)})
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "lti_scan" in line]
    assert "WRONG" in line
    assert " ms" not in line


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    given = doctor.operators()
    right, tensors = given["selective_scan"]

    def wrong(arguments: list[Tensor], backend: doctor.Backend) -> Tensor:
        u, *rest = arguments
        return right([u if backend == "reference" else u.detach() + 0.999 * (u - u.detach()), *rest], backend)

    monkeypatch.setattr(doctor, "operators", lambda: {"selective_scan": (wrong, tensors)})
    [found] = doctor.check(CPU)
    assert found.error > 1
    assert found.milliseconds is None


def test_a_missing_native_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSSSM_BACKEND", raising=False)
    monkeypatch.setattr("msssm.scan.dispatch.library", lambda: None)
    monkeypatch.setattr("msssm.scan.dispatch._warn_once", lambda message: None)
    monkeypatch.setattr("msssm.doctor.library", lambda: None)
    checks = doctor.check(CPU)
    assert {found.backend for found in checks} == {"torch"}
    text = "\n".join([*doctor.environment(), *doctor.describe(CPU, checks)])
    assert text.count("not the fastest: backend 'cpu' is not built: install a C++ compiler") == len(OPERATORS)
    assert "native      not built" in text


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler at install: the native library is not built")
def test_a_backend_from_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSSSM_BACKEND", "torch")
    text = "\n".join([*doctor.environment(), *doctor.describe(CPU, doctor.check(CPU))])
    assert "MSSSM_BACKEND=torch" in text
    assert text.count("MSSSM_BACKEND asks for 'torch'; unset it for the fastest") == len(OPERATORS)


@pytest.mark.parametrize("arguments", [[], ["--renew"]])
def test_shows_the_verdicts_on_the_triton_kernels_and_renews_them(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = {"selective": Verdict(None, 1, 1.25, 40.0), "lti": Verdict("y is off by 3.0e-01 of its largest value")}
    asked = []

    def settle(kernels: Kernels, device: torch.device, *, renew: bool) -> Verdict:
        asked.append((kernels, renew))
        return found[kernels]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "settle", settle)
    monkeypatch.setattr(doctor, "obstacle", lambda *args: None)
    monkeypatch.setattr(doctor, "fastest_on", lambda device: "triton")
    key = verdict.identity("selective", CPU)
    verdict.save(verdict.file_of(key), key, found["selective"])
    main(["doctor", *arguments])
    shown = capsys.readouterr().out
    assert re.search(r"^Triton kernels on cpu, Triton's interpreter$", shown, re.M)
    assert re.search(r"^  selective +right, used: 1\.25 ms, plain torch 40\.00 ms, configuration 1$", shown, re.M)
    assert f"kept in {verdict.file_of(key)}; `msssm doctor --renew` checks again" in shown
    assert re.search(
        r"^  lti +NOT USED: y is off by .* value; report it with the output of `msssm doctor`$", shown, re.M
    )
    assert shown.count("kept for this process") == 1
    assert asked == [("selective", bool(arguments)), ("lti", bool(arguments))]


def test_takes_no_other_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--fast"])
    assert stop.value.code == 2
    assert "msssm doctor: error: unrecognized arguments: --fast" in capsys.readouterr().err
