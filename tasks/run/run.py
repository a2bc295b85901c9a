"""A run: a folder in which one training starts, resumes, ends and is recorded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from msssm.errors import InputError
from msssm.paths import local_path
from tasks.messages import say
from tasks.run.checkpoint_io import DurableCheckpointIO
from tasks.run.checkpoints import RunCheckpoint, newest_readable
from tasks.run.dashboard import Dashboard
from tasks.run.data import DataRecord, describe
from tasks.run.event_files import EventFiles, rewind
from tasks.run.last_checkpoint import LastCheckpoint
from tasks.run.lock import lock_run
from tasks.run.logger import RunLogger
from tasks.run.origins import Origins
from tasks.run.processor_time import ProcessorTime
from tasks.run.provenance import provenance, write_json
from tasks.run.resume import changes, is_recipe


class Run:
    """What a training of `msssm fit` has, for a plain Lightning Trainer.

        run = Run("runs/mine")
        trainer = run.trainer(max_epochs=10)
        metrics = run.fit(trainer, task, datamodule)

    This does what `msssm fit --config recipe.yaml --run_dir runs/mine` does: it keeps `checkpoints/best.ckpt` of the
    best validation and `last.ckpt` to resume from, which survive a crash; it resumes an unfinished run exactly, at
    Ctrl-C and SIGTERM too, when the same code runs again; it tests the best validation once, and writes `metrics.json`
    last, with the provenance. From Python nothing compares the task and data with those of the unfinished run, except
    that its weights must fit.

    Args:
        folder: Folder of the run. One process trains there at a time, and a complete run is never overwritten.
        monitor: Logged metric by which a validation is the best.
        mode: Whether its best value is the largest, "max", or the smallest, "min".
    """

    def __init__(self, folder: str | Path, monitor: str = "val/accuracy", mode: Literal["max", "min"] = "max") -> None:
        """Names the folder; nothing is written yet."""
        self.folder = local_path(folder)
        self.best = RunCheckpoint(
            self.folder / "checkpoints",
            monitor=monitor,
            mode=mode,
            filename="best",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self.last = LastCheckpoint(self.folder / "checkpoints")
        self.timer, self.processor_time, self.data = Timer(), ProcessorTime(), DataRecord()
        self.provenance = provenance()  # of the code as it was loaded, not as it is hours later
        self.origins = Origins(self.provenance)
        self.continued_from: str | None = None

    def trainer(self, callbacks: list[Any] | None = None, plugins: Any = None, **options: Any) -> Trainer:
        """Builds a Trainer for this run.

        Args:
            callbacks: Callbacks beside those of the run.
            plugins: Plugins beside the one that writes checkpoints.
            options: Further options of Lightning's Trainer.
        """
        options.setdefault("logger", self.logger())
        trainer = Trainer(
            default_root_dir=str(self.folder),
            # The data modules divide their samples among the processes themselves.
            use_distributed_sampler=False,
            callbacks=[*(callbacks or []), self.best],
            plugins=durable_checkpoints(plugins),
            **options,
        )
        self.equip(trainer)
        return trainer

    def logger(self) -> RunLogger:
        """TensorBoard's events in the run's folder."""
        return RunLogger(str(self.folder), name="", version="", default_hp_metric=False)

    def equip(self, trainer: Trainer) -> None:
        """Adds the callbacks of a run to a trainer that has `best` among its own."""
        extra: list[Any] = [self.timer, self.processor_time, self.origins, self.data]
        extra += [Dashboard(), EventFiles(self.folder)]
        if trainer.logger is not None:
            extra.append(LearningRateMonitor(logging_interval="step"))
        # Checkpointing stays at the end, so that a checkpoint holds what the others have logged.
        trainer.callbacks[-1:] = [*extra, trainer.callbacks[-1], self.last]  # type: ignore[attr-defined]

    def fit(
        self,
        trainer: Trainer,
        task: LightningModule,
        datamodule: LightningDataModule,
        seed: int | None = None,
        test: bool = True,
    ) -> dict[str, Any]:
        """Trains, or resumes, and completes the run; returns the content of metrics.json.

        Args:
            trainer: Trainer that `trainer` built.
            task: Task to train.
            datamodule: Its data.
            seed: Seed to record; draw the initial weights after `lightning.seed_everything(seed)`.
            test: Whether to test the best validation at the end.

        Raises:
            InputError: the folder has a complete run or is in use, or no validation chose the best weights.
        """
        checkpoint = self.claim()
        trainer.fit(task, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        return self.complete(trainer, task, datamodule, seed, test)

    def claim(self, recipe: Mapping[str, Any] | None = None, ckpt_path: str | None = None) -> str | None:
        """Claims the folder for a training, and finds what it resumes from.

        Args:
            recipe: Resolved recipe, compared with the one that an unfinished run was started with.
            ckpt_path: Checkpoint that was asked for by name.

        Raises:
            InputError: the folder has a complete run or another recipe's, or another process trains there.
        """
        path = Path(ckpt_path or "")
        if path.is_file() and not path.resolve().is_relative_to(self.folder.resolve()):
            self.continued_from = str(path)
        if (self.folder / "metrics.json").exists():
            raise InputError(f"{self.folder} holds a complete run; choose another --run_dir or delete it")
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._lock = lock_run(self.folder)
        if not any((self.folder / "checkpoints").glob("*.ckpt")) or not self._is_the_same(recipe):
            rewind(self.folder, {})  # of a start that was refused, or ended before its first checkpoint
            return ckpt_path
        if ckpt_path is not None and self.continued_from is None:
            return ckpt_path
        if (newest := newest_readable(self.folder)) is None:
            rewind(self.folder, {})
            return ckpt_path
        path, checkpoint = newest
        rewind(self.folder, checkpoint)
        say(f"fit from {path}, step {checkpoint['global_step']}")
        return str(path)

    def _is_the_same(self, recipe: Mapping[str, Any] | None) -> bool:
        """Whether config.yaml is of this recipe; False if there is none. Raises InputError if it is of another."""
        if recipe is None:
            return True
        saved = self.folder / "config.yaml"
        if not saved.exists():
            return False
        try:
            theirs = yaml.safe_load(saved.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            theirs = None
        if not is_recipe(theirs):
            raise InputError(f"{saved} cannot be read; delete {self.folder} or choose another --run_dir")
        found = changes(theirs, recipe, self.folder / "checkpoints/last.ckpt")
        if found.refused:
            raise InputError(
                f"{self.folder} holds an unfinished run whose configuration differs in: {', '.join(found.refused)}; "
                "choose another --run_dir or delete it\n  " + "\n  ".join(found.refused.values())
            )
        for change in found.close.values():
            rank_zero_only(say)(change)
        return True

    def complete(
        self, trainer: Trainer, task: LightningModule, datamodule: LightningDataModule, seed: int | None, test: bool
    ) -> dict[str, Any]:
        """Tests the best validation once, if asked, and writes metrics.json, which marks the run as complete.

        Raises:
            InputError: no validation determined the best weights; last.ckpt has the final ones.
        """
        best = self.best.best_model_score
        if best is None or not best.isfinite():
            what = f"{self.best.monitor} was not finite at any validation" if best is not None else "no validation ran"
            if trainer.global_step == self.last.resumed_at:
                what = "no step was trained"
            raise InputError(
                f"{what}, so there is no best checkpoint to test: raise max_epochs or max_steps, or lower "
                f"val_check_interval or check_val_every_n_epoch; msssm test --ckpt_path "
                f"{self.folder / 'checkpoints/last.ckpt'} tests the weights of step {trainer.global_step}"
            )
        try:
            return self._record(trainer, task, datamodule, seed, test, best.item())
        except SIGTERMException:
            raise
        except Exception:
            if trainer.is_global_zero:
                say(f"the training is over and kept in {self.best.dirpath}; the same command does what is left")
            raise

    def _record(
        self,
        trainer: Trainer,
        task: LightningModule,
        datamodule: LightningDataModule,
        seed: int | None,
        test: bool,
        best: float,
    ) -> dict[str, Any]:
        steps, epochs = trainer.global_step, trainer.current_epoch
        seconds = self.timer.time_elapsed("train")
        tested: Mapping[str, float] = {}
        if test:
            results = trainer.test(
                task, datamodule=datamodule, ckpt_path=self.best.best_path, weights_only=True, verbose=False
            )
            if not results:
                raise InputError("the test set has no batch; --skip_test true leaves the test out")
            [tested] = results
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.log_hyperparams(dict(task.hparams), dict(tested) or {str(self.best.monitor): best}, steps)
            trainer.logger.finalize("success")
        report: Callable[[Any, Path], Any] = getattr(task, "report", lambda datamodule, folder: {})
        if not trainer.is_global_zero:
            return {}
        metrics = {
            "test": tested,
            "report": report(datamodule, self.folder) if test else {},
            "validation": {"monitor": self.best.monitor, "best": best},
            "continued_from": self.continued_from,
            "seed": seed,
            "parameters": sum(p.numel() for p in task.parameters()),
            "steps": steps,
            "epochs": epochs,
            "train_seconds": seconds,
            "cpu_seconds": self.processor_time.seconds,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "data": self.data.found or describe(datamodule),
            **self.provenance,
            "earlier": self.origins.earlier,
        }
        write_json(self.folder / "metrics.json", metrics)
        values = "  ".join(f"{name} {value:.4g}" for name, value in tested.items())
        print(f"{self.folder}: {values or f'not tested; {self.best.monitor} {best:.4f}'}")
        return metrics


def durable_checkpoints(plugins: Any) -> list[Any]:
    """Adds our CheckpointIO to plugins, or puts it into one that wraps another, as AsyncCheckpointIO does.

    Raises:
        ValueError: a CheckpointIO would replace ours.
    """
    given = list(plugins) if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]
    for plugin in given:
        if isinstance(plugin, CheckpointIO):
            if getattr(plugin, "checkpoint_io", plugin) is not None:
                raise InputError(
                    f"plugin {type(plugin).__name__} would replace the checkpoints that survive a crash; remove it "
                    "from trainer.plugins"
                )
            plugin.checkpoint_io = DurableCheckpointIO()  # type: ignore[attr-defined]
            return given
    return [*given, DurableCheckpointIO()]
