"""Energy of a training, on platforms that count it."""

import re
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

POWERCAP = Path("/sys/class/powercap")
# The smallest counters in use hold 2^32 microjoules, 14 s at 300 W; the usual ones 15 to 60 times that.
PERIOD = 10.0  # seconds between two readings


class Package:
    """Average power counter of one processor package in Linux' powercap (Intel and AMD)."""

    def __init__(self, zone: Path) -> None:
        """Takes the first reading.

        Raises:
            OSError: the counter may not be read, as is usual for others than root.
            ValueError: it contains no number.
        """
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())

    def joules(self) -> float:
        """Energy since the last reading or the start; beyond its range, the counter starts again at 0."""
        now = int(self._file.read_text())
        used = now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return used / 1e6


def packages(root: Path) -> list[Package]:
    """All packages of the machine; none if one of them cannot be read, since a part is no total."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if re.fullmatch(r"intel-rapl:\d+", zone.name)]
    try:
        return [Package(zone) for zone in zones if (zone / "name").read_text().startswith("package")]
    except (OSError, ValueError):
        return []


class EnergyMeter(Callback):
    """Energy of this machine's processor packages while training, including validations.

    It includes everything else on the machine, but no graphics cards or other nodes. A resumed run continues to count
    from its checkpoint, as it does its seconds.

    Attributes:
        joules: None if the platform does not provide it.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        """Starts at 0 joules."""
        self._root, self._packages, self._read = root, list[Package](), 0.0
        self._before: float | None = 0.0  # of the process that wrote the checkpoint
        self.joules: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the packages."""
        self._packages, self._read = packages(self._root), time.monotonic()
        self.joules = self._before if self._packages else None

    def on_train_batch_end(self, *args: Any) -> None:
        """Reads the counters if due."""
        self._count_if_due()

    def on_validation_batch_end(self, *args: Any) -> None:
        """Reads the counters if due."""
        self._count_if_due()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the counters."""
        self._count()

    def _count_if_due(self) -> None:
        if time.monotonic() - self._read >= PERIOD:
            self._count()

    def _count(self) -> None:
        self._read = time.monotonic()
        if self.joules is None:
            return
        try:
            self.joules += sum(package.joules() for package in self._packages)
        except (OSError, ValueError):  # which must not end a training
            self.joules = None

    def state_dict(self) -> dict[str, Any]:
        """Joules so far."""
        return {"joules": self.joules}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the joules before the checkpoint."""
        self._before = state_dict["joules"]
