"""Lightning tasks around the msssm backbone, and the `msssm` command."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.ecg.task import ECGTask
    from tasks.image.task import ImageTask
    from tasks.listops.task import ListOpsTask
    from tasks.listops.tokens import TokenTask
    from tasks.run.bad_batches import SkipBadBatches
    from tasks.run.run import Run
    from tasks.signals.task import SignalTask

__all__ = ["ECGTask", "ImageTask", "ListOpsTask", "Run", "SignalTask", "SkipBadBatches", "TokenTask"]

_HOMES = {
    "ECGTask": "tasks.ecg.task",
    "ImageTask": "tasks.image.task",
    "ListOpsTask": "tasks.listops.task",
    "Run": "tasks.run.run",
    "SignalTask": "tasks.signals.task",
    "SkipBadBatches": "tasks.run.bad_batches",
    "TokenTask": "tasks.listops.tokens",
}


def __getattr__(name: str) -> Any:
    """Imports a public class at its first use."""
    # Lightning takes seconds to import, and `msssm --help` does without.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
