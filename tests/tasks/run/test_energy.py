"""Energy of a training, from a made-up powercap folder in the kernel's form."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.run.energy import EnergyMeter, packages
from tests.support.tolerances import METRIC

RANGE = 65_532_610_987


def _zone(root: Path, name: str, label: str, energy: int) -> Path:
    zone = root / name
    zone.mkdir(parents=True)
    for file, content in (("name", label), ("max_energy_range_uj", RANGE), ("energy_uj", energy)):
        (zone / file).write_text(f"{content}\n")
    return zone


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two packages, one of them with its cores; the whole platform, which holds them too."""
    _zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    _zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    _zone(tmp_path, "intel-rapl:1", "package-1", RANGE - 1_000_000)
    _zone(tmp_path, "intel-rapl:2", "psys", 7_000_000)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def _use(root: Path, **energy: int) -> None:
    for name, value in energy.items():
        (root / f"intel-rapl:{name[1:]}" / "energy_uj").write_text(f"{value}\n")


def _run(meter: EnergyMeter, during: Any) -> float | None:
    nobody: Any = SimpleNamespace()
    meter.on_train_start(nobody, nobody)
    during()
    meter.on_train_end(nobody, nobody)
    return meter.joules


def test_packages_are_summed_once_and_beyond_their_range(root: Path) -> None:
    """2.5 J on the first; 1 J to the end of the second's counter, and 3 J from its start."""
    meter = EnergyMeter(root)
    joules = _run(meter, lambda: _use(root, p0=7_500_000, p1=3_000_000))
    assert joules == pytest.approx(2.5 + 1 + 3)


def test_a_counter_that_runs_over_twice_is_read_in_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings `PERIOD` apart it cannot: half a range, three times."""
    clock = [100.0]
    monkeypatch.setattr("tasks.run.energy.time.monotonic", lambda: clock[0])
    meter = EnergyMeter(root)

    def during() -> None:
        for step in (1, 2, 3):
            clock[0] += 10
            _use(root, p0=(5_000_000 + step * (RANGE // 2)) % RANGE)
            (meter.on_train_batch_end if step % 2 else meter.on_validation_batch_end)()

    assert _run(meter, during) == pytest.approx(1.5 * RANGE / 1e6, rel=METRIC)


def test_a_continued_run_goes_on_counting(root: Path) -> None:
    first, second = EnergyMeter(root), EnergyMeter(root)
    _run(first, lambda: _use(root, p0=6_000_000))
    second.load_state_dict(first.state_dict())
    assert _run(second, lambda: _use(root, p0=8_000_000)) == pytest.approx(1 + 2)


def test_what_cannot_be_read_is_not_known(root: Path, tmp_path: Path) -> None:
    def gone() -> None:
        (root / "intel-rapl:0/energy_uj").unlink()

    assert _run(EnergyMeter(tmp_path / "nowhere"), lambda: None) is None
    assert _run(EnergyMeter(root), gone) is None, "a counter that disappears ends no training"
    assert packages(root) == [], "one package of two is no total"
    unknown = EnergyMeter(root)
    unknown.load_state_dict({"joules": None})
    assert _run(unknown, lambda: None) is None
