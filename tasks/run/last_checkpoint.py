"""`last.ckpt`, from which a run resumes that was stopped, killed, or preempted."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from tasks.messages import say
from tasks.run.checkpoints import RunFolderCheckpoint

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preempted(SystemExit):
    """Exit after a signal ended the training, with code 128 + its number."""

    def __init__(self, signum: int, code: int) -> None:
        """Exits with `code` on account of `signum`."""
        super().__init__(code)
        self.signum = signum


class LastCheckpoint(RunFolderCheckpoint):
    """Writes last.ckpt before and at every validation, every `minutes`, and at SIGTERM, SIGUSR1 and Ctrl-C.

    It is only written where a resumed run exactly repeats an uninterrupted one: at the end of a batch that steps the
        optimiser, whose values the logger does not take (it takes them after the checkpoint), and that neither a
        validation nor
    the end of the epoch follows (Lightning would skip them). A signal therefore ends the training at the end of this
    batch or the next; within a validation at once, since its checkpoint is already written.

    A second Ctrl-C ends at once. If SIGUSR1 already had a handler, such as that of SLURM's automatic requeue, it is
    called after the checkpoint, and decides how to continue. All processes of a job act on a signal to any of them.

    Args:
        dirpath: the run's folder of checkpoints.
        minutes: longest time between two checkpoints.
    """

    def __init__(self, dirpath: Path, minutes: float = 10) -> None:
        """Configures Lightning's callback for a single file."""
        # At the validation: at the end of the epoch, its training metrics would not be logged a second time.
        super().__init__(dirpath, filename="last", enable_version_counter=False, save_on_train_epoch_end=False)
        self.seconds = 60 * minutes
        self._saved_at = 0.0
        self._noted = 0
        self._leaving = 0
        self.resumed_at = 0
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Installs the signal handlers."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread() and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._handlers = {signum: signal.signal(signum, self._note) for signum in _SIGNALS}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Ends the training after a signal."""
        if self._leaving:
            self._leave(trainer, self._leaving)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the checkpoint if it is due, after a signal, or before a validation."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        signum, due = self._agreed(trainer)
        if not _exact(trainer, batch_idx, 0) or not (signum or due or _validation_is_near(trainer, batch_idx)):
            return
        self._save_checkpoint(trainer, self.format_checkpoint_name({}))
        self._saved_at = time.monotonic()
        if signum == signal.SIGUSR1 and callable(theirs := self._handlers.get(signum)):
            self._noted = 0
            theirs(signum, None)
        else:
            self._leaving = signum

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Ends the training after a signal."""
        if self._handlers and not trainer.sanity_checking and (signum := self._agreed(trainer)[0]):
            self._leave(trainer, signum)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the checkpoint."""
        super().on_validation_end(trainer, pl_module)
        self._saved_at = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends with the signal's exit code if one came, and restores the signal handlers."""
        super().on_train_end(trainer, pl_module)
        if self._noted:
            self._leave(trainer, self._noted)
        self._restore()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the checkpoint of the last step."""
        if self._should_skip_saving_checkpoint(trainer) or trainer.global_step == 0:
            return
        last = self.format_checkpoint_name({})
        if trainer.global_step != self.resumed_at:
            self._save_checkpoint(trainer, last)
        elif trainer.is_global_zero and Path(str(trainer.ckpt_path)) != Path(last):
            # Nothing was left to train, as in a run that was killed between its last best.ckpt and last.ckpt. A
            # checkpoint of the present state would replace the trained weights by averaged ones.
            files = trainer.strategy.checkpoint_io
            files.save_checkpoint(files.load_checkpoint(str(trainer.ckpt_path)), last)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes the step from which the run resumes."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self.resumed_at = checkpoint["global_step"]

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restores the signal handlers."""
        self._restore()

    def _note(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a loader process, forked with our handlers
            signal.signal(signum, signal.SIG_IGN)  # SIGTERM is the loader's own affair
        elif signum == self._noted == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self._noted = signum

    def _agreed(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """The signal to any process (0 for none), and whether a checkpoint is due by any process's clock."""
        due = time.monotonic() - self._saved_at > self.seconds
        if trainer.world_size == 1:
            return self._noted, due
        mine = torch.tensor([self._noted, due], device=trainer.strategy.root_device)
        signum, due_anywhere = trainer.strategy.reduce(mine, reduce_op="max").tolist()
        return int(signum), bool(due_anywhere)

    def _leave(self, trainer: pl.Trainer, signum: int) -> None:
        if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
            say(
                f"{signal.Signals(signum).name}: saved at step {self._last_global_step_saved}; the same command resumes"
            )
        # A launcher returns the exit code of its first process, and treats a code of another one as a crash.
        raise Preempted(signum, 128 + signum if trainer.local_rank == 0 else 0)

    def _restore(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


def _exact(trainer: pl.Trainer, batch: int, ahead: int) -> bool:
    """Whether a run can resume exactly from the end of the batch `ahead` of `batch`."""
    accumulated, interval = trainer.accumulate_grad_batches, trainer.log_every_n_steps  # type: ignore[attr-defined]
    steps = trainer.global_step + ahead // accumulated
    logged = interval > 1 and steps % interval == 0
    return (batch + ahead + 1) % accumulated == 0 and not logged and not _validation_follows(trainer, batch, ahead)


def _validation_follows(trainer: pl.Trainer, batch: int, ahead: int) -> bool:
    """Whether a validation, or the end of the epoch, follows the batch `ahead` of `batch`."""
    every = trainer.val_check_batch or float("inf")
    within_epochs = trainer.check_val_every_n_epoch is not None
    count = (batch if within_epochs else trainer.fit_loop.total_batch_idx) + ahead + 1
    return batch + ahead + 1 >= trainer.num_training_batches or count % every == 0


def _validation_is_near(trainer: pl.Trainer, batch: int) -> bool:
    """Whether a validation precedes the next batch that ends in an exact state."""
    for ahead in range(1, 2 * trainer.accumulate_grad_batches + 1):
        if _validation_follows(trainer, batch, ahead):
            return True
        if _exact(trainer, batch, ahead):
            return False
    return False
