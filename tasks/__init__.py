"""Lightning tasks around the msssm backbone, and the `msssm` command."""

from tasks.listops import ListOpsTask

__all__ = ["ListOpsTask"]
