"""Every wrong option of a recipe is told, with its value and what it may be, in one message."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tasks.cli.main import main
from tests.support.recipes import write_recipe


def complaint(capsys: pytest.CaptureFixture[str], recipe: Path, *options: str) -> list[str]:
    """The lines that the command leaves, without its name and without their order."""
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(recipe), *options])
    shown = capsys.readouterr().err
    lines = [line.strip() for line in shown[shown.index("msssm: ") + len("msssm: ") :].splitlines()]
    return sorted(lines[1:]) if lines[0] == f"{len(lines) - 1} options are wrong:" else lines


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_steps=abc", "trainer.max_steps must be int, got 'abc'"),
        ("--model.lr=fast", "model.lr must be float, got 'fast'"),
        ("--model.lr=-1", "model.lr must be positive, got -1.0"),
        ("--model.backbone.norm=group", "model.backbone.norm must be 'batch' or 'layer', got 'group'"),
        (
            "--model.backbone.init_args.layer.init_args.levelz=3",
            "model.backbone.layer.levelz: MultiScaleSSM has no such option; did you mean levels?",
        ),
        (
            "--model.backbone.layer.init_args.gates=band",
            "model.backbone.layer.gates is now model.backbone.layer.selective_input; rename it",
        ),
        (
            "--model.backbone.checkpoint_blocks=true",
            "model.backbone.checkpoint_blocks is now model.backbone.recompute; rename it",
        ),
        (
            "--trainer.callbacks+=tasks.dashboards.EpochLines",
            "trainer.callbacks: tasks.dashboards.EpochLines is now tasks.run.dashboard.EpochLines; rename it",
        ),
        ("--data.batchsize=3", "data.batchsize: ListOpsDataModule has no such option; did you mean batch_size?"),
        ("--trainer.maxsteps=3", "trainer.maxsteps: Trainer has no such option; did you mean max_steps?"),
        ("--trainer.gradient_clip_val=-2", "trainer.gradient_clip_val must be at least 0, got -2.0"),
        ("--model.backbone.class_path=msssm.Nope", "model.backbone: there is no class msssm.Nope"),
        (
            "--model.backbone.layer.class_path=os.system",
            "model.backbone.layer: os.system may not be built by name; "
            "the classes of msssm, datamodules, tasks, lightning.pytorch, torch.nn may",
        ),
        ("--trainer.logger=TensorBoardLogger", "trainer.logger.save_dir is missing; TensorBoardLogger needs it"),
        (
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            "trainer.logger.save_dir is missing; CSVLogger needs it",
        ),
        ("--trainer.callbacks+=EarlyStopping", "trainer.callbacks.monitor is missing; EarlyStopping needs it"),
        ("--trainer.devices=nope", "`devices` selected with `CPUAccelerator` should be an int > 0."),
        ("--nonsense=3", "Option 'nonsense' is not accepted"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert complaint(capsys, write_recipe(tmp_path), option) == [message]


def test_wrong_options_of_every_part_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Types and ranges, in the file and on the command line, of classes inside classes, and of a callback."""
    path = write_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    recipe["model"]["init_args"]["backbone"]["init_args"]["layer"]["init_args"]["kernel_size"] = 0
    recipe["data"]["init_args"]["batchsize"] = 3
    path.write_text(yaml.safe_dump(recipe))
    options = {
        "model.lr": "-1",
        "model.weight_decay": "-3",
        "model.backbone.layer.levels": "-1",
        "model.backbone.dropout": "1.5",
        "data.max_args": "1",
        "data.eval_batch_size": "0",
        "trainer.max_steps": "abc",
        "trainer.gradient_clip_val": "-2",
        "trainer.callbacks+": "EMAWeightAveraging",
        "trainer.callbacks.decay": "2",
        "skip_test": "perhaps",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    told = complaint(capsys, path, *words)
    for message in (
        "model.lr must be positive, got -1.0",
        "model.weight_decay must be at least 0, got -3.0",
        "model.backbone.layer.levels must be at least 0, got -1",
        "model.backbone.layer.kernel_size must be at least 1, got 0",
        "model.backbone.dropout must be in [0, 1), got 1.5",
        "data.batchsize: ListOpsDataModule has no such option; did you mean batch_size?",
        "trainer.max_steps must be int, got 'abc'",
        "trainer.gradient_clip_val must be at least 0, got -2.0",
        "Invalid decay value 2.0 provided. Please provide a value in [0,1] range.",
    ):
        assert message in told
        told.remove(message)
    skip_test, *data = sorted(told, key=lambda line: "skip_test" not in line)
    assert "perhaps" in skip_test
    assert len(data) == 2, data
    assert any("max_args=1" in line for line in data)
    assert any("eval_batch_size=0" in line for line in data)


def test_what_a_default_would_break_is_no_complaint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """min_length, of the first complaint, is then taken as its default: 500, more than the recipe's max_length."""
    options = ("--data.short_size=10", "--data.short_max_length=20", "--model.lr=-1", "--data.num_workers=-1")
    told = complaint(capsys, write_recipe(tmp_path), *options)
    assert [line.split(";")[0] for line in told] == [
        "asked for 10 short expressions of less than 20 tokens, with min_length=4",
        "asked for batch_size=20, eval_batch_size=20, num_workers=-1",
        "model.lr must be positive, got -1.0",
    ]


def test_a_required_option_of_a_wrong_type_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = complaint(capsys, write_recipe(tmp_path), "--model.lr", "fast", "--model.weight_decay", "-3")
    assert told == ["model.lr must be float, got 'fast'", "model.weight_decay must be at least 0, got -3.0"]


def test_an_option_without_its_value_keeps_the_parsers_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "run_dir" in complaint(capsys, write_recipe(tmp_path), "--run_dir")[0]


@pytest.mark.parametrize(
    ("option", "begins"),
    [
        ("--trainer.precision=17", "trainer.precision must be 64 or 32 or 16 or "),
        ("--trainer.strategy=nonsense", "You selected an invalid strategy name: `strategy='nonsense'`"),
        ("--trainer.accelerator=abacus", "You selected an invalid accelerator name: `accelerator='abacus'`"),
        ("--trainer.profiler=magic", "When passing string value for the `profiler` parameter of `Trainer`"),
    ],
)
def test_what_lightning_says_of_an_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, begins: str
) -> None:
    [line] = complaint(capsys, write_recipe(tmp_path), option)
    assert line.startswith(begins)


@pytest.mark.parametrize(
    ("option", "package"),
    [
        ("--trainer.logger=WandbLogger", "wandb"),
        ("--trainer.logger=lightning.pytorch.loggers.MLFlowLogger", "mlflow"),
        ("--trainer.callbacks+=RichProgressBar", "rich"),
    ],
)
def test_a_package_that_is_not_there_is_named_beside_what_else_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, package: str
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    told = complaint(capsys, write_recipe(tmp_path), option, "--model.lr=-1")
    assert "model.lr must be positive, got -1.0" in told
    [other] = [line for line in told if "model.lr" not in line]
    assert "needs a package that is not installed: " in other
    assert package in other


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds nothing, expected options by name"),
        (b"- a\n- b\n", "holds a list, expected options by name"),
        (b"hello\n", "holds a str, expected options by name"),
        (b"run_dir: caf\xe9\n", "is not text in UTF-8"),
        (b"model:\n\tlr: 1\n", "is not YAML: .* line 2"),
        (b"model:\n  lr: 1\n  lr: 2\n", ": line 3 has lr a second time; remove one"),
        (None, "got a folder"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    [told] = complaint(capsys, path)
    assert re.search(f"recipe {path},? ?{message}", told)


@pytest.mark.parametrize("words", [[], ["--config"], ["recipe.yaml"]])
def test_a_command_without_a_recipe_asks_for_one(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", *words])
    assert capsys.readouterr().err.strip().endswith("; name a recipe: --config x.yaml")
