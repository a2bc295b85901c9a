"""The provenance of a run that was resumed: commits, versions and machines may have changed meanwhile."""

from typing import Any

from lightning.pytorch.callbacks import Callback


class Origins(Callback):
    """Keeps, in checkpoints, the provenance of the processes that trained a run before this one, each once.

    Args:
        own: provenance of this process, as `tasks.run.provenance.provenance` has it.
    """

    def __init__(self, own: dict[str, Any]) -> None:
        """Starts with none before this process."""
        self._own = own
        self.earlier: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The earlier ones and this one."""
        return {"origins": [*self.earlier, self._own]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores those before the checkpoint that differ from this one."""
        self.earlier = [origin for origin in state_dict["origins"] if origin != self._own]
