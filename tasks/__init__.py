"""Lightning tasks around the msssm backbone, and the `msssm` command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.ecg import ECGTask
    from tasks.listops import ListOpsTask
    from tasks.nan_guard import NanGuard

__all__ = ["ECGTask", "ListOpsTask", "NanGuard"]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and `msssm --help` does without.
    if name == "ECGTask":
        from tasks.ecg import ECGTask

        return ECGTask
    if name == "ListOpsTask":
        from tasks.listops import ListOpsTask

        return ListOpsTask
    if name == "NanGuard":
        from tasks.nan_guard import NanGuard

        return NanGuard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
