"""A recipe is built from what was given: a dump of it, read again, builds the same."""

import inspect
from datetime import timedelta
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import callbacks, loggers, profilers, strategies
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from tasks.cli.plugins import OURS
from tasks.recipes.parser import RecipeParser

# What has no default, and some values that only look like texts.
GIVEN: dict[str, dict[str, Any]] = {
    "BaseFinetuning": {},
    "CSVLogger": {"save_dir": "x"},
    "EarlyStopping": {"monitor": "val/loss"},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelCheckpoint": {"train_time_interval": timedelta(minutes=10)},
    "ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.5},
    "OnExceptionCheckpoint": {"dirpath": "x"},
    "StochasticWeightAveraging": {"swa_lrs": 0.1},
    "TensorBoardLogger": {"save_dir": "x"},
    "Timer": {"duration": "00:00:01:00", "interval": "epoch"},
}
# They need a package or a device that is not there, or a function; of the bases there is nothing to build.
LEFT_OUT = {
    "Callback", "Checkpoint", "CometLogger", "DeepSpeedStrategy", "Logger", "LitLogger", "MLFlowLogger",
    "NeptuneLogger",
    "ParallelStrategy", "Profiler", "ProgressBar", "RichModelSummary", "RichProgressBar", "SingleDeviceXLAStrategy",
    "Strategy", "ThroughputMonitor", "WandbLogger", "XLAFSDPStrategy", "XLAProfiler",
    "XLAStrategy", "LearningRateFinder",
}  # fmt: skip
KINDS = [
    (kind, getattr(module, name))
    for module, kind in ((callbacks, Callback), (loggers, Logger), (profilers, Profiler), (strategies, Strategy))
    for name in module.__all__
    if name not in LEFT_OUT
]


def parser(kind: Any) -> RecipeParser:
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*OURS], omegaconf_absolute_to_relative_paths=True
    )
    parser = RecipeParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--shuffle_seed", type=int)
    parser.add_argument("--items", type=list[str | kind])
    return parser


def plain(value: Any) -> Any:
    """As YAML has it: no tuples, and the members of an enumeration by their names."""
    return list(value) if isinstance(value, tuple) else getattr(value, "name", value)


@pytest.mark.parametrize("interpolated", [True, False])
@pytest.mark.parametrize(("kind", "cls"), KINDS, ids=[cls.__name__ for _, cls in KINDS])
def test_what_lightning_offers_is_built_as_given(kind: type, cls: type, interpolated: bool) -> None:
    """Each option has the value given or its default: of a recipe with interpolations or without, and of its dump."""
    given = GIVEN.get(cls.__name__, {})
    recipe = {
        "items": [{"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": given}],
        "shuffle_seed": "${seed}" if interpolated else 3,
    }
    builder = parser(kind)
    for _ in range(2):
        config = builder.parse_object(recipe)
        assert config.shuffle_seed == 3
        received = vars(config["items"][0].init_args)
        for name, parameter in inspect.signature(cls).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                expected = given.get(name, parameter.default)
                assert plain(received.get(name, parameter.default)) == plain(expected), name
        assert type(builder.instantiate_classes(config)["items"][0]) is cls
        recipe = yaml.safe_load(builder.dump(config, skip_unset=False))


def test_a_device_and_a_function_arrive() -> None:
    builder = parser(Callback)
    pruning = {"class_path": "ModelPruning", "init_args": {"pruning_fn": "l1_unstructured", "amount": 0.5}}
    averaging = {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.1}}
    config = builder.parse_object({"items": [pruning, averaging], "shuffle_seed": "${seed}"})
    for _ in range(2):
        first, second = builder.instantiate_classes(config)["items"]
        assert first.pruning_fn is torch.nn.utils.prune.L1Unstructured
        assert second._device == torch.device("cpu")
        config = builder.parse_object(yaml.safe_load(builder.dump(config, skip_unset=False)))
