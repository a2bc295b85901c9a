"""The `msssm` command's Lightning half: fit, validate, test, predict from one recipe."""

import multiprocessing
import re
import signal
import subprocess
import sys
from argparse import ArgumentError
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from msssm.errors import InputError
from tasks.base import SequenceTask
from tasks.cli.pages import SUBCOMMANDS
from tasks.cli.plugins import open_plugins
from tasks.messages import quiet, say, without_hints
from tasks.paths import expand
from tasks.recipes.files import read_yaml
from tasks.recipes.parser import RecipeParser
from tasks.run.checkpoint_io import read_checkpoint
from tasks.run.checkpoints import RunCheckpoint
from tasks.run.checks import check_callbacks, check_checkpoint, check_trainer
from tasks.run.dashboard import EpochLines
from tasks.run.run import Run, durable_checkpoints
from tasks.run.saved_config import SavedConfig
from tasks.table.spec import named_recipe


class MsssmCLI(LightningCLI):
    """LightningCLI whose runs live in one folder each: config.yaml, TensorBoard events, checkpoints/, metrics.json."""

    def __init__(self, args: ArgsType = None) -> None:
        """Parses the command line, builds task, data and trainer, and runs the subcommand."""
        # `${seed_everything}` in a recipe, although the parser nests everything under its subcommand.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        words = sys.argv[1:] if args is None else cast("list[str]", args)
        words = ["--help" if word == "--help_all" else word for word in words]  # without _all, it is tasks.cli.pages
        self.arguments = _recipes_first(open_plugins(words))
        # The answer of the other commands is what they print.
        with without_hints() if words[0] == "fit" else quiet():
            super().__init__(
                LightningModule,
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
        parser.description = (
            f"{SUBCOMMANDS[subcommand]} msssm {subcommand} --help shows what is used most, on one screen."
        )
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
            if "import_path_allowlist" in str(error):
                advice = "open its package with --plugins PACKAGE if you trust it"
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
        self.run = Run(self.run_dir)
        if not config.trainer.fast_dev_run:
            recipe = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_unset=False))
            self.ckpt_path = self.run.claim(recipe, self.ckpt_path)

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
            kwargs["logger"] = self.run.logger() if self.subcommand == "fit" else False
        if self.subcommand == "predict":
            # Standard output is the answers, in the order of the file: no bar, and no shares of several processes.
            kwargs.update(enable_progress_bar=False, devices=1, num_nodes=1, strategy="auto")
            kwargs["callbacks"] = [c for c in _as_list(config.callbacks) if not isinstance(c, ProgressBar)]
        elif self.subcommand == "fit" and config.enable_progress_bar is None and not sys.stderr.isatty():
            bars = [] if any(isinstance(c, ProgressBar) for c in _as_list(config.callbacks)) else [EpochLines()]
            kwargs["callbacks"] = [*_as_list(config.callbacks), *bars]  # a log is no place for a bar
        kwargs["plugins"] = durable_checkpoints(config.plugins)
        if self.subcommand == "fit":
            self.run.best = self._get(self.config_init, "checkpoint")
            metrics = self.model.validation_metrics() if isinstance(self.model, SequenceTask) else {}
            check_callbacks(_as_list(config.callbacks), self.run.best, metrics)
        try:
            trainer = super().instantiate_trainer(default_root_dir=str(self.run_dir), **kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:  # of Lightning's, about an option
            raise InputError(" ".join(str(error).split())) from error
        if self.subcommand == "fit":
            self.run.equip(trainer)
        return trainer

    def after_fit(self) -> None:
        """Tests the best validation once, unless `skip_test`, and marks the run as complete."""
        if self._get(self.config, "trainer").fast_dev_run:
            return
        seed, test = self._get(self.config, "seed_everything"), not self._get(self.config, "skip_test")
        self.run.complete(self.trainer, self.model, self.datamodule, seed, test)
        if self.trainer.is_global_zero:
            say(f"next: msssm diagnose --run_dir {self.run_dir}, or the curves: tensorboard --logdir {self.run_dir}")

    def predict(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Prints one line per sample of the data module's predict set, or the prediction for `--record`."""
        if self._get(self.config, "record") is not None:
            from tasks.cli.recordings import predict_record

            predict_record(model, datamodule, self.ckpt_path, self.config[self.subcommand])
            return
        outputs = self.trainer.predict(model, datamodule=datamodule, **kwargs)
        describe = getattr(model, "describe_predictions", lambda outputs: map(str, outputs))
        for line in describe(cast("list[Tensor]", outputs)):
            print(line)


# What the parser says of every option that is optional, and of where the value came from.
_ASIDE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|- Expected a <class 'NoneType'>|"
    r"Given value type|Given value: (NestedArg|Namespace)"
)
_ALLOW = re.compile(r" Add the import path to import_path_allowlist in \S+ to allow it\.")


def _in_one_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return _ALLOW.sub("", " ".join(line.removeprefix("- ") for line in lines if line and not _ASIDE.match(line)))


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


def _as_list(value: Any) -> list[Any]:
    """Converts a trainer option that may be nothing, one object or several to a list."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
