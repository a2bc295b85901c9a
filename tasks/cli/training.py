"""The `msssm` command's Lightning half: fit, validate, test, predict from one recipe."""

import multiprocessing
import re
import signal
import subprocess
import sys
from argparse import ArgumentError
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar, Timer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from msssm.errors import InputError
from tasks.base import SequenceTask
from tasks.messages import quiet, say, without_hints
from tasks.paths import expand
from tasks.recipes.files import read_yaml
from tasks.recipes.parser import RecipeParser
from tasks.run.checkpoint_io import DurableCheckpointIO, read_checkpoint
from tasks.run.checkpoints import RunCheckpoint, newest_readable
from tasks.run.checks import check_callbacks, check_checkpoint, check_trainer
from tasks.run.dashboard import Dashboard
from tasks.run.event_files import EventFiles, rewind
from tasks.run.last_checkpoint import LastCheckpoint
from tasks.run.lock import lock_run
from tasks.run.logger import RunLogger
from tasks.run.origins import Origins
from tasks.run.processor_time import ProcessorTime
from tasks.run.provenance import provenance, write_json
from tasks.run.resume import changes, is_recipe
from tasks.run.saved_config import SavedConfig
from tasks.table.spec import named_recipe

# What a recipe may build by name. Anything else importable stays closed to a downloaded config.
ALLOWED = ["msssm", "datamodules", "tasks", "lightning.pytorch", "torch.nn"]
SUBCOMMANDS = {
    "fit": "Trains a recipe, and tests its best validation at the end. The same command resumes an unfinished run.",
    "validate": "Validates the weights of a run.",
    "test": "Tests the weights of a run.",
    "predict": "Prints a prediction for each sample of --data.predict_file, or for the ECGs of --record.",
}
HELP = """RECIPE is a YAML file or a name that `msssm recipes` lists; a run's config.yaml is one, with its checkpoint.
Options of the recipe's own classes: --model.help tasks.ListOpsTask, --data.help datamodules.ListOpsDataModule."""


class MsssmCLI(LightningCLI):
    """LightningCLI whose runs live in one folder each: config.yaml, TensorBoard events, checkpoints/, metrics.json."""

    def __init__(self, args: ArgsType = None) -> None:
        """Parses the command line, builds task, data and trainer, and runs the subcommand."""
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=ALLOWED,
            # `${seed_everything}` in a recipe, although the parser nests everything under its subcommand.
            omegaconf_absolute_to_relative_paths=True,
        )
        words = sys.argv[1:] if args is None else cast("list[str]", args)
        self.arguments = _recipes_first(words)
        # The answer of the other commands is what they print.
        with without_hints() if words[0] == "fit" else quiet():
            super().__init__(
                SequenceTask,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                # Interpolations are resolved after the command line, so that they follow its overrides.
                parser_kwargs={
                    "parser_mode": "omegaconf+",
                    "exit_on_error": False,
                    **{subcommand: {"exit_on_error": False} for subcommand in self.subcommands()},
                },
                parser_class=RecipeParser,
                save_config_callback=SavedConfig,
                save_config_kwargs={"save_to_log_dir": False},
                # The data modules shard by themselves: every evaluation sample exactly once.
                trainer_defaults={"use_distributed_sampler": False},
                auto_configure_optimizers=False,
                args=args,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's folder, the test at the end, and the options of best.ckpt."""
        parser.add_argument("--run_dir", type=str, default="runs/latest", help="Folder of this run.")
        parser.add_argument(
            "--skip_test", type=bool, default=False, help="Leave out the test at the end of a training."
        )
        # Forced here, since a second --config would replace a recipe's list of callbacks.
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
                "checkpoint.save_on_train_epoch_end": False,
            }
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"msssm {subcommand} --config RECIPE [--OPTION VALUE ...]"
        parser.description = f"{SUBCOMMANDS[subcommand]} {HELP}"
        if subcommand == "predict" == self.arguments[0]:
            from tasks.cli.recordings import add_arguments  # with the code of the ECG, for no other command

            add_arguments(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the command line. Raises InputError with the parser's message."""
        recipes = [file for name, file in pairwise(self.arguments) if name in ("-c", "--config")]
        for file in recipes:
            read_yaml(Path(file))
        try:
            self.config = parser.parse_args(self.arguments)
        except (ArgumentError, OmegaConfBaseException) as error:
            advice = (
                f"msssm {self.arguments[0]} --help has the options" if recipes else "name a recipe: --config x.yaml"
            )
            raise InputError(f"{_in_one_line(error)}; {advice}") from error
        expand(self.config[self.config.subcommand])
        config = self.config[self.config.subcommand]
        if self.config.subcommand == "fit" and config.ckpt_path == "last" and not Path("last").exists():
            config.ckpt_path = None  # the newest in its folder, if there is any, is what every fit resumes from
        self._find_checkpoint(config)

    @staticmethod
    def _find_checkpoint(config: Namespace) -> None:
        """Finds `best` and `last` in the run's folder; without one, Lightning would train on from random weights."""
        name = config.ckpt_path
        if name in ("best", "last") and not Path(name).exists():
            kept = Path(config.run_dir, "checkpoints", f"{name}.ckpt")
            config.ckpt_path = str(kept)
        if config.ckpt_path is not None:
            read_checkpoint(Path(config.ckpt_path))  # before the data are read

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning's would replace the recipe's options by the checkpoint's hyperparameters."""

    def instantiate_classes(self) -> None:
        """Builds task, data and trainer. Raises InputError for an option that they refuse."""
        self._check(self.subcommand, self.config[self.subcommand])
        try:
            super().instantiate_classes()
        except ArgumentError as error:
            raise InputError(_in_one_line(error)) from error

    @staticmethod
    def _check(subcommand: str | None, config: Namespace) -> None:
        fit = subcommand == "fit"
        check_trainer(config.trainer, fit=fit, skip_test=config.skip_test)
        if fit:
            check_checkpoint(config.checkpoint)

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint to load, and claims the folder of a training."""
        config = self.config[self.subcommand]
        self.run_dir = Path(config.run_dir)
        self.ckpt_path = config.ckpt_path
        self.continued_from = self._elsewhere(self.ckpt_path)
        config.checkpoint.dirpath = str(self.run_dir / "checkpoints")
        config.weights_only = True  # a checkpoint from elsewhere must not run code
        if self.subcommand != "fit":
            self.save_config_callback = None
            best = self.run_dir / "checkpoints/best.ckpt"
            if self.ckpt_path is None and best.exists():
                self.ckpt_path = str(best)
                say(f"{self.subcommand} from {best}")
            if self.ckpt_path is None:
                raise InputError(f"{self.subcommand} needs --ckpt_path, or a --run_dir with checkpoints/best.ckpt")
            return
        self.provenance = provenance()  # of the code as it was loaded, not as it is hours later
        if not config.trainer.fast_dev_run:
            self._claim_run_dir()

    def _elsewhere(self, ckpt_path: str | None) -> str | None:
        """The checkpoint if it is another run's, a file outside of this run's folder."""
        path = Path(ckpt_path or "")
        here = path.resolve().is_relative_to(self.run_dir.resolve())
        return str(path) if path.is_file() and not here else None

    def _claim_run_dir(self) -> None:
        """Refuses a folder in use, or with a complete run or another configuration's; resumes an unfinished run."""
        if (self.run_dir / "metrics.json").exists():
            raise InputError(f"{self.run_dir} holds a complete run; choose another --run_dir or delete it")
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.lock = lock_run(self.run_dir)
        saved = self.run_dir / "config.yaml"
        if not saved.exists() or not any((self.run_dir / "checkpoints").glob("*.ckpt")):
            rewind(self.run_dir, {})  # of a start that was refused, or ended before its first checkpoint
            return
        ours = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_unset=False))
        try:
            theirs = yaml.safe_load(saved.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            theirs = None
        if not is_recipe(theirs):
            raise InputError(f"{saved} cannot be read; delete {self.run_dir} or choose another --run_dir")
        found = changes(theirs, ours, self.run_dir / "checkpoints/last.ckpt")
        if found.refused:
            raise InputError(
                f"{self.run_dir} holds an unfinished run whose configuration differs in: {', '.join(found.refused)}; "
                "choose another --run_dir or delete it\n  " + "\n  ".join(found.refused.values())
            )
        for change in found.close.values():
            rank_zero_only(say)(change)
        if self.ckpt_path is not None and self.continued_from is None:
            return  # asked for by name
        if (newest := newest_readable(self.run_dir)) is None:
            rewind(self.run_dir, {})
            return
        path, checkpoint = newest
        self.ckpt_path = str(path)
        rewind(self.run_dir, checkpoint)
        say(f"fit from {path}, step {checkpoint['global_step']}")

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:  # outside of training, with nothing to save; Lightning would exit with 0
            _end_loaders()
            if self.trainer.is_global_zero:
                say("SIGTERM: ended where there is nothing to save; the same command resumes")
            raise SystemExit(143) from None
        except SystemExit as error:
            _end_loaders()
            raise SystemExit(130 if isinstance(error.__context__, KeyboardInterrupt) else error.code) from None
        except Exception:
            self._end_processes()
            raise

    def _end_processes(self) -> None:
        """After the first process fails, waits up to 10 s for each other one to show its error, then kills it."""
        for process in getattr(self.trainer.strategy.launcher, "procs", []):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self.ckpt_path}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the callbacks of every run."""
        config = self._get(self.config_init, "trainer")
        if config.logger is None or config.logger is True:
            # Only a training writes events; a later test must not add to its curves.
            fit = self.subcommand == "fit"
            logger = RunLogger(str(self.run_dir), name="", version="", default_hp_metric=False)
            kwargs["logger"] = logger if fit else False
        if self.subcommand == "predict":
            # Standard output is the answers, in the order of the file: no bar, and no shares of several processes.
            kwargs.update(enable_progress_bar=False, devices=1, num_nodes=1, strategy="auto")
            kwargs["callbacks"] = [c for c in _as_list(config.callbacks) if not isinstance(c, ProgressBar)]
        self.timer, self.processor_time = Timer(), ProcessorTime()
        kwargs["plugins"] = _with_durable_checkpoints(config.plugins)
        self.best: RunCheckpoint = self._get(self.config_init, "checkpoint")
        if self.subcommand == "fit":
            check_callbacks(_as_list(config.callbacks), self.best, self.model.validation_metrics())
        try:
            trainer = super().instantiate_trainer(default_root_dir=str(self.run_dir), **kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:  # of Lightning's, about an option
            raise InputError(" ".join(str(error).split())) from error
        if self.subcommand == "fit":
            self.origins = Origins(self.provenance)
            extra = [self.timer, self.processor_time, self.origins, Dashboard(), EventFiles(self.run_dir)]
            if trainer.logger is not None:
                extra.append(LearningRateMonitor(logging_interval="step"))
            self.last = LastCheckpoint(self.run_dir / "checkpoints")
            # Checkpointing stays at the end, so that a checkpoint holds what the others have logged.
            trainer.callbacks[-1:] = [*extra, trainer.callbacks[-1], self.last]  # type: ignore[attr-defined]
        return trainer

    def after_fit(self) -> None:
        """Tests the best validation once, unless `skip_test`, and marks the run as complete.

        Raises:
            InputError: no validation determined the best weights; last.ckpt has the final ones.
        """
        if self._get(self.config, "trainer").fast_dev_run:
            return
        best = self.best.best_model_score
        if best is None or not best.isfinite():
            last = self.run_dir / "checkpoints/last.ckpt"
            what = f"{self.best.monitor} was not finite at any validation" if best is not None else "no validation ran"
            if self.trainer.global_step == self.last.resumed_at:
                what = "no step was trained"
            raise InputError(
                f"{what}, so there is no best checkpoint to test: raise max_epochs or max_steps, or lower "
                f"val_check_interval or check_val_every_n_epoch; msssm test --ckpt_path {last} tests the weights of "
                f"step {self.trainer.global_step}"
            )
        try:
            self._complete(best.item())
        except SIGTERMException:
            raise
        except Exception:
            if self.trainer.is_global_zero:
                say(f"the training is over and kept in {self.best.dirpath}; the same command does what is left")
            raise

    def _complete(self, best: float) -> None:
        tested = not self._get(self.config, "skip_test")
        steps, epochs = self.trainer.global_step, self.trainer.current_epoch
        seconds = self.timer.time_elapsed("train")
        test: Mapping[str, float] = {}
        if tested:
            results = self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=self.best.best_path, weights_only=True, verbose=False
            )
            if not results:
                raise InputError("the test set has no batch; --skip_test true leaves the test out")
            [test] = results
        if isinstance(self.trainer.logger, TensorBoardLogger):
            shown = dict(test) or {str(self.best.monitor): best}
            self.trainer.logger.log_hyperparams(self.model.hparams, shown, steps)
            self.trainer.logger.finalize("success")
        describe = getattr(self.datamodule, "describe", dict)
        if self.trainer.is_global_zero:
            write_json(
                self.run_dir / "metrics.json",
                {
                    "test": test,
                    "report": self.model.report(self.datamodule, self.run_dir) if tested else {},
                    "validation": {"monitor": self.best.monitor, "best": best},
                    "continued_from": self.continued_from,
                    "seed": self._get(self.config, "seed_everything"),
                    "parameters": sum(p.numel() for p in self.model.parameters()),
                    "steps": steps,
                    "epochs": epochs,
                    "train_seconds": seconds,
                    "cpu_seconds": self.processor_time.seconds,
                    "processes": self.trainer.world_size,
                    "precision": str(self.trainer.precision),
                    "data": describe(),
                    **self.provenance,
                    "earlier": self.origins.earlier,
                },
            )
            values = "  ".join(f"{name} {value:.4g}" for name, value in test.items())
            print(f"{self.run_dir}: {values or f'not tested; {self.best.monitor} {best:.4f}'}")

    def predict(self, model: SequenceTask, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Prints one line per sample of the data module's predict set, or the prediction for `--record`."""
        if self._get(self.config, "record") is not None:
            from tasks.cli.recordings import predict_record

            predict_record(model, datamodule, self.ckpt_path, self.config[self.subcommand])
            return
        outputs = self.trainer.predict(model, datamodule=datamodule, **kwargs)
        for line in model.describe_predictions(cast("list[Tensor]", outputs)):
            print(line)


# What the parser says of every option that is optional, and of where the value came from.
_ASIDE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|- Expected a <class 'NoneType'>|"
    r"Given value type|Given value: (NestedArg|Namespace)"
)


def _in_one_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line.removeprefix("- ") for line in lines if line and not _ASIDE.match(line))


def _recipes_first(words: list[str]) -> list[str]:
    """Moves the `--config` files of a command line before its options, which override them wherever they stand."""
    rest, files, options = words[1:], list[str](), list[str]()
    while rest:
        word = rest.pop(0)
        if word in ("-c", "--config"):
            files += [word, *(str(named_recipe(path)) for path in rest[:1])]
            rest = rest[1:]
        elif word.startswith("--config="):
            files += ["--config", str(named_recipe(word.removeprefix("--config=")))]
        else:
            options.append(word)
    return [*words[:1], *files, *options]


def _end_loaders() -> None:
    """Kills loader processes after a signal: they outlive SIGTERM, and Python would wait for them at its exit."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a loss
    for process in multiprocessing.active_children():
        process.kill()


def _with_durable_checkpoints(plugins: Any) -> list[Any]:
    """Adds our CheckpointIO to a recipe's plugins, or puts it into one that wraps another, as AsyncCheckpointIO does.

    Raises:
        ValueError: a CheckpointIO would replace ours.
    """
    given = _as_list(plugins)
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


def _as_list(value: Any) -> list[Any]:
    """Converts a trainer option that may be nothing, one object or several to a list."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
