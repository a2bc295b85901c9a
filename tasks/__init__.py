"""Lightning tasks around the msssm backbone, and the `msssm` command."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.callbacks.bad_batches import SkipBadBatches
    from tasks.callbacks.nan_guard import NanGuard
    from tasks.ecg import ECGTask
    from tasks.image import ImageTask
    from tasks.listops import ListOpsTask
    from tasks.tokens import TokenTask

__all__ = ["ECGTask", "ImageTask", "ListOpsTask", "NanGuard", "SkipBadBatches", "TokenTask"]

_HOMES = {
    "ECGTask": "tasks.ecg",
    "ImageTask": "tasks.image",
    "ListOpsTask": "tasks.listops",
    "NanGuard": "tasks.callbacks.nan_guard",
    "SkipBadBatches": "tasks.callbacks.bad_batches",
    "TokenTask": "tasks.tokens",
}


def __getattr__(name: str) -> Any:
    """Imports a public class at its first use."""
    # Lightning takes seconds to import, and `msssm --help` does without.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
