"""What a training cost in energy, where the platform counts it."""

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
    """The running average power limit counter of one processor package, in Linux' powercap (Intel and AMD).

    Raises:
        OSError: a counter that may not be read, as is usual for others than root.
        ValueError: one that holds no number.
    """

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())

    def joules(self) -> float:
        """Since the last reading, or the start; the counter begins at 0 again beyond its range."""
        now = int(self._file.read_text())
        used = now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return used / 1e6


def packages(root: Path) -> list[Package]:
    """All of the machine; none where one of them cannot be read, since a part is no total."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if re.fullmatch(r"intel-rapl:\d+", zone.name)]
    try:
        return [Package(zone) for zone in zones if (zone / "name").read_text().startswith("package")]
    except (OSError, ValueError):
        return []


class EnergyMeter(Callback):
    """Joules of the processor packages of this machine while training, validations included.

    Of all that runs on it, so a run of its own needs a machine of its own. Graphics cards, and other nodes, are not
    in it. A run that is continued goes on counting from its checkpoint, as its seconds do.

    Attributes:
        joules: None where the platform does not tell.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._root, self._packages, self._read = root, list[Package](), 0.0
        self._before: float | None = 0.0  # of the process that wrote the checkpoint
        self.joules: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._packages, self._read = packages(self._root), time.monotonic()
        self.joules = self._before if self._packages else None

    def on_train_batch_end(self, *args: Any) -> None:
        self._count_if_due()

    def on_validation_batch_end(self, *args: Any) -> None:
        self._count_if_due()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
        except (OSError, ValueError):  # no reason to end a training
            self.joules = None

    def state_dict(self) -> dict[str, Any]:
        return {"joules": self.joules}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["joules"]
