"""A run's task and data, built from its recipe and checkpoint without running anything."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import LightningDataModule
from torch import nn

from msssm import Backbone
from msssm.errors import InputError, MissingFileError
from tasks.base import SequenceTask
from tasks.cli.plugins import open_plugins
from tasks.cli.training import MsssmCLI
from tasks.paths import path_option
from tasks.run.checkpoint_io import read_checkpoint
from tasks.run.weights import check_weights


@dataclass(frozen=True)
class LoadedRun:
    """A task in `eval()` and its data module, whose data are prepared but not set up.

    Attributes:
        folder: Folder of the run.
        checkpoint: where the weights come from; None for a network at its random start.
        recipe: resolved, as YAML.
    """

    task: SequenceTask
    datamodule: LightningDataModule
    folder: Path
    checkpoint: Path | None
    recipe: str


class _Builder(MsssmCLI):
    """Parses and instantiates as `msssm validate` does, and stops there."""

    def before_instantiate_classes(self) -> None:
        self.save_config_callback = None
        config = self.config[self.subcommand]
        self.run_dir, self.ckpt_path = Path(config.run_dir), config.ckpt_path

    def _run_subcommand(self, subcommand: str) -> None:
        self.recipe = self._parser(subcommand).dump(self.config[subcommand], skip_unset=False)

    def again(self, config: Path, overrides: list[str]) -> SequenceTask | None:
        """Builds the task of another recipe with the same parser, ten times as fast; None if it is refused."""
        parser = self._parser("validate")
        try:
            recipe = parser.parse_args(["--config", str(config), *open_plugins(overrides)])
            task: SequenceTask = parser.instantiate_classes(recipe).model
        except Exception:
            return None
        return task


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a run."""
    parser.add_argument(
        "--run_dir", type=path_option, metavar="RUN", help="folder of a run, with its config.yaml and checkpoints/"
    )
    parser.add_argument("--config", metavar="RECIPE", help="a recipe or its name, instead of the run's own config.yaml")
    parser.add_argument(
        "--ckpt_path", type=path_option, metavar="FILE", help="a checkpoint, instead of the run's checkpoints/best.ckpt"
    )


def find_backbone(network: nn.Module) -> tuple[str, Backbone]:
    """Finds the backbone of a network, and its name there.

    Raises:
        InputError: the network has another kind, such as timm's ViT.
    """
    found = next(((name, module) for name, module in network.named_modules() if isinstance(module, Backbone)), None)
    if found is None:
        kind = type(getattr(network, "backbone", network)).__name__
        raise InputError(f"this command needs a network with a msssm.Backbone, got one with {kind}; name another run")
    return found


def build(config: Path | str, overrides: list[str]) -> "_Builder":
    """Builds the task (`model`) and data of a recipe, with initial weights."""
    return _Builder(["validate", "--config", str(config), *overrides])


def load_run(options: argparse.Namespace, overrides: list[str]) -> LoadedRun:
    """Loads the run that the options of `run_arguments` name.

    Args:
        options: parsed.
        overrides: further options of the recipe, such as `--data.root=elsewhere`.

    Raises:
        ValueError: neither a run nor a recipe is named, or the run has no readable checkpoint.
        FileNotFoundError: a file does not exist.
    """
    if options.run_dir is None and options.config is None:
        raise InputError("name a run with --run_dir runs/x, or a recipe with --config and perhaps --ckpt_path")
    config = options.config or options.run_dir / "config.yaml"
    if options.config is None and not config.exists():
        raise MissingFileError(f"{config} does not exist; name the folder of a run, or a recipe with --config")
    if options.run_dir is not None:
        overrides = [*overrides, f"--run_dir={options.run_dir}"]
    built = build(config, overrides)
    checkpoint = options.ckpt_path
    if checkpoint is None:
        best = built.run_dir / "checkpoints/best.ckpt"
        if best.exists():
            checkpoint = best
        elif options.config is None:
            raise InputError(f"{best} does not exist; name a --ckpt_path")
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        check_weights(built.model, state, checkpoint)
        built.model.load_state_dict(state["state_dict"])
    return LoadedRun(built.model.eval(), built.datamodule, built.run_dir, checkpoint, built.recipe)
