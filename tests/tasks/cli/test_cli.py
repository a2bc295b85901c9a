"""The `msssm` command, in process, on a recipe that trains in a second."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.listops import ListOpsDataModule, encode, evaluate, tokenize
from msssm import Backbone, MultiScaleSSM
from tasks import ListOpsTask
from tasks.cli.load import _Builder, build
from tasks.cli.main import main
from tasks.run.checkpoint_io import DurableCheckpointIO
from tasks.run.provenance import commits, provenance, write_json
from tests.support.recipes import fit, write_recipe
from tests.support.runs import run as run_command
from tests.support.tolerances import allowed


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the folder of its complete run with seed 3."""
    folder = tmp_path_factory.mktemp("complete")
    recipe = write_recipe(folder)
    fit(recipe, "--seed_everything=3")
    return recipe, folder / "runs" / "seed3"


def _metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def test_the_report_of_a_task_stands_beside_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(self: ListOpsTask, datamodule: ListOpsDataModule, run_dir: Path) -> dict[str, Any]:
        sample, _, _ = self.test_predictions.compute()
        return {"samples": len(sample), "counts": datamodule.describe()["counts"]["test"], "folder": run_dir.name}

    monkeypatch.setattr(ListOpsTask, "report", report)
    fit(write_recipe(tmp_path, max_epochs=1))
    assert _metrics(tmp_path / "runs/seed0")["report"] == {"samples": 40, "counts": 40, "folder": "seed0"}


def test_a_run_lives_in_one_folder(complete: tuple[Path, Path]) -> None:
    _, run = complete
    assert {"config.yaml", "metrics.json", "predictions.npz", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt", "last.previous.ckpt"}
    assert any(path.name.startswith("events.out.tfevents") for path in run.iterdir())


def test_interpolation_follows_the_command_line(complete: tuple[Path, Path]) -> None:
    """run_dir and shuffle_seed name ${seed_everything}, which the command line overrode after the file."""
    _, run = complete
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["data"]["init_args"]["shuffle_seed"] == 3
    assert Path(config["run_dir"]) == run


def test_metrics_record_what_it_takes_to_trust_them(complete: tuple[Path, Path]) -> None:
    metrics = _metrics(complete[1])
    assert metrics["seed"] == 3
    assert metrics["steps"] == 2 * 200 / 20
    assert metrics["data"]["counts"] == {"train": 200, "val": 40, "test": 40}
    assert len(metrics["data"]["digest"]) == 64
    assert metrics["versions"]["torch"] == torch.__version__.split("+")[0]
    assert metrics["hardware"]["threads"] == torch.get_num_threads()
    assert metrics["train_seconds"] > 0
    assert metrics["cpu_seconds"] > 0
    assert 0 <= metrics["test"]["test/accuracy"] <= 1
    assert {"commit", "dirty", "parameters", "precision", "processes"} <= metrics.keys()


def test_test_from_the_best_checkpoint_repeats_the_recorded_accuracy(
    complete: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = complete
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    main(["test", "--config", str(run / "config.yaml")])
    shown = capsys.readouterr().out
    recorded = _metrics(run)["test"]["test/accuracy"]
    assert f"{recorded:.6f}"[:6] in shown
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before, "a test must not touch the run"


def test_a_checkpoint_reloads_without_its_recipe(complete: tuple[Path, Path]) -> None:
    """`load_from_checkpoint` rebuilds the same network from the stored hyperparameters, under weights_only."""
    _, run = complete
    task = ListOpsTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    data = ListOpsDataModule(**yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"])
    data.prepare_data()
    data.setup("test")
    right = sum((task(b.x, b.lengths).argmax(-1) == b.y).sum().item() for b in data.test_dataloader())
    assert right / 40 == pytest.approx(_metrics(run)["test"]["test/accuracy"])


def test_the_best_validation_is_what_was_tested(complete: tuple[Path, Path]) -> None:
    _, run = complete
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    assert _metrics(run)["validation"]["best"] == pytest.approx(max(e.value for e in events.Scalars("val/accuracy")))


def test_tensorboard_shows_training_and_scales(complete: tuple[Path, Path]) -> None:
    events = EventAccumulator(str(complete[1]), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    bands = ["0_input", "1_detail", "2_detail", "3_approximation"]
    assert {"train/loss_step", "val/loss", "val/accuracy", "train/grad_norm", "train/samples_per_second"} <= tags
    assert {f"memory/mean/{band}" for band in bands} <= tags
    assert {"mixer/effective_bands/least", "mixer/alarm/collapsed_layers", "mixer/alarm/uniform_layers"} <= tags
    assert {f"mixer/{kind}/{band}" for kind in ("mean", "spread") for band in bands} <= tags
    assert {f"stability_margin/{band}" for band in bands} <= tags
    assert {tag for tag in tags if tag.startswith("val/")} == ListOpsTask.validation_metrics(None).keys()  # type: ignore[arg-type]
    assert any(tag.startswith("lr-AdamW") for tag in tags)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    # The warm-up is half an epoch of 10 steps, the cosine ends near 0.
    rates = [event.value for event in events.Scalars("lr-AdamW/decay")]
    assert max(rates) == pytest.approx(0.01, rel=allowed(0.05, "the schedule is sampled every other step"))
    assert rates[-1] < 0.001


def test_optimiser_settings_reach_the_hyperparameters(complete: tuple[Path, Path]) -> None:
    hparams = yaml.safe_load((complete[1] / "hparams.yaml").read_text())
    assert hparams["lr"] == 0.01
    assert hparams["backbone.layer"] == "msssm.MultiScaleSSM"
    assert {"_instantiator", "_class_path"}.isdisjoint(hparams)
    plugins = EventAccumulator(str(complete[1])).Reload().summary_metadata
    assert "_hparams_/experiment" in plugins, "TensorBoard's HPARAMS tab has the run"


def test_same_seed_same_numbers(complete: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, run = complete
    fit(recipe, "--seed_everything=3", f"--run_dir={tmp_path}/again")
    again = _metrics(tmp_path / "again")
    assert again["test"] == _metrics(run)["test"]
    assert again["validation"] == _metrics(run)["validation"]


def test_a_complete_run_is_not_overwritten(complete: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = complete
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, "--seed_everything=3")
    assert "holds a complete run; choose another --run_dir or delete it" in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("interval", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_an_unfinished_run_goes_on_and_ends_like_an_uninterrupted_one(
    complete: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: float
) -> None:
    """Killed in its second epoch (dropout on) and started again with the same command, it ends bit-equal.

    Validated, and so checkpointed, once an epoch or every third of one.
    """
    recipe, _ = complete
    command = ["--seed_everything=3", f"--trainer.val_check_interval={interval}"]
    fit(recipe, *command, f"--run_dir={tmp_path}/whole")
    command.append(f"--run_dir={tmp_path}/cut")
    original = ListOpsTask.training_step

    def killed(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 5:
            raise RuntimeError("killed")
        return original(self, batch, batch_idx)

    before = provenance() | {"commit": "a" * 40, "dirty": True}
    monkeypatch.setattr(ListOpsTask, "training_step", killed)
    monkeypatch.setattr("tasks.run.run.provenance", lambda: before)
    with pytest.raises(RuntimeError, match="killed"):
        fit(recipe, *command)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    monkeypatch.undo()
    fit(recipe, *command)
    whole, cut = _metrics(tmp_path / "whole"), _metrics(tmp_path / "cut")
    assert cut["steps"] == 20
    assert (whole["earlier"], cut["earlier"]) == ([], [before])
    assert commits(cut, 5) == ["aaaaa with uncommitted changes", *commits(whole, 5)]
    weights = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_damaged_checkpoint_is_passed_over(
    complete: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copied run without its marker goes on from the next readable checkpoint, and says so."""
    recipe, run = complete
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "metrics.json").unlink()
    (copy / "checkpoints/last.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:5000])
    fit(recipe, "--seed_everything=3", f"--run_dir={copy}")
    assert "last.ckpt cannot be read" in capsys.readouterr().err
    assert _metrics(copy)["test"] == _metrics(run)["test"]
    assert _metrics(copy)["validation"] == _metrics(run)["validation"]


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = ListOpsTask.forward
    monkeypatch.setattr(ListOpsTask, "forward", lambda self, x, lengths=None: forward(self, x, lengths) * math.nan)
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path))
    assert (
        "the training loss is nan at step 0: every sequence layer is finite; try a lower lr or ssm_lr"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "runs/seed0/metrics.json").exists()


def test_a_run_without_validation_ends_with_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps are an epoch."""
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path), "--trainer.max_steps=9")
    last = tmp_path / "runs/seed0/checkpoints/last.ckpt"
    assert f"msssm test --ckpt_path {last} tests the weights of step 9" in capsys.readouterr().err
    assert last.exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [("[MAX 1 2 ]\n[MIN 1 2\n", "expressions.txt"), ("[MAX 1 2 ]\n[AVG 1 2 ]\n", "AVG")],
)
def test_a_bad_expression_is_named_with_file_and_line(
    complete: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, message: str
) -> None:
    (tmp_path / "expressions.txt").write_text(lines)
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--config", f"{complete[1]}/config.yaml", f"--data.predict_file={tmp_path}/expressions.txt"])
    error = capsys.readouterr().err
    assert message in error
    assert "2" in error.split("expressions.txt", 1)[1]


def test_a_bad_row_of_an_official_file_is_named_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / f"basic_{split}.tsv").write_text("Source\tTarget\n( ( [MAX 2 ) 9 ) ]\t8\n")
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path), f"--data.tsv_dir={tmp_path}")
    error = capsys.readouterr().err.splitlines()[-1]
    assert "basic_train.tsv" in error
    assert "2" in error.split("basic_train.tsv", 1)[1]
    assert "9" in error


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, f"--run_dir={tmp_path}/file")
    assert f"{tmp_path}/file" in capsys.readouterr().err


def _unfinished(run: Path, folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "config.yaml", folder)
    shutil.copy(run / "checkpoints/last.ckpt", folder / "checkpoints")


def test_a_start_that_was_refused_binds_no_configuration(complete: tuple[Path, Path], tmp_path: Path) -> None:
    """The mended command takes the folder."""
    recipe, _ = complete
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, f"--run_dir={tmp_path}/run", "--trainer.max_steps=3", "--trainer.val_check_interval=500")
    assert not (tmp_path / "run/metrics.json").exists()
    fit(recipe, f"--run_dir={tmp_path}/run", "--trainer.max_steps=3", "--trainer.val_check_interval=3")
    assert (tmp_path / "run/metrics.json").exists()


def test_an_unfinished_run_of_another_configuration_is_kept(
    complete: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = complete
    _unfinished(run, tmp_path / "other")
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, "--seed_everything=3", f"--run_dir={tmp_path}/other", "--model.lr=0.5")
    assert "unfinished run whose configuration differs in: model.init_args.lr;" in (told := capsys.readouterr().err)
    assert "model.init_args.lr was 0.01, is 0.5" in told


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("fit", "n_layers=2"),
        ("validate", "d_model=12"),
        ("test", "layer.init_args.levels=3"),
        ("predict", "n_layers=2"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_and_does_not_replace_the_recipe(
    complete: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    recipe, run = complete
    (tmp_path / "asked.txt").write_text("[MAX 1 2 ]\n")
    words = [f"--ckpt_path={run}/checkpoints/best.ckpt", f"--model.backbone.init_args.{option}"]
    words += [f"--run_dir={tmp_path}/run", f"--data.predict_file={tmp_path}/asked.txt", "--trainer.max_epochs=3"]
    with pytest.raises(SystemExit, match="2"):
        main([command, "--config", str(recipe), *words])
    said = r"^msssm: \S+best\.ckpt does not fit the recipe: model\.\S+ is .* in its network"
    assert re.search(said, capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("name", ["best", "last", "hpc"])
def test_a_checkpoint_by_name_is_that_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command, "--config", str(write_recipe(tmp_path)), f"--ckpt_path={name}"])
    there = "hpc" if name == "hpc" else f"{tmp_path}/runs/seed0/checkpoints/{name}.ckpt"
    assert f"asked for the checkpoint {there}, got no such file" in capsys.readouterr().err


def test_a_run_that_continues_another_one_has_the_options_that_it_was_given(
    complete: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, run = complete
    fit(
        recipe, f"--run_dir={tmp_path}/run", f"--ckpt_path={run}/checkpoints/last.ckpt", "--trainer.max_epochs=3",
        "--model.backbone.init_args.dropout=0.25",
    )  # fmt: skip
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["dropout"] == 0.25
    task = ListOpsTask.load_from_checkpoint(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert task.model.backbone.blocks[0].dropout == 0.25


def test_predict_prints_one_answer_per_expression(
    complete: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the file, with or without parentheses, and equal to the network asked one by one."""
    _, run = complete
    expressions = ["[MAX 2 9 [MIN 4 7 ] 0 ]", "( ( ( [SM 5 ) 6 ) ] )", "[MED 1 2 3 4 5 6 7 8 9 ]"]
    file = tmp_path / "expressions.txt"
    file.write_text("\n\n".join(expressions))
    capsys.readouterr()
    lines = "--trainer.callbacks+=tasks.run.dashboard.EpochLines"  # as `make reproduce-table` asks for
    main(["predict", "--config", str(run / "config.yaml"), f"--data.predict_file={file}", lines])
    answers = capsys.readouterr().out.split()
    task = ListOpsTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    alone = [task(torch.as_tensor(encode(tokenize(e)), dtype=torch.int64)[None]).argmax().item() for e in expressions]
    assert answers == [str(answer) for answer in alone]
    assert [evaluate(tokenize(e)) for e in expressions] == [9, 1, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lr=-1"], "lr must be positive, got -1.0"),
        (["--model.backbone.dropout=1"], "dropout must be in [0, 1), got 1.0"),
        (["--model.backbone.layer.levels=-1"], "levels must be at least 0, got -1"),
        (["--data.min_length=60"], "min_length"),
        (["--data.tsv_dir=/nowhere"], "basic_train.tsv"),
        (["--model.backbone.layer.stat_size=3"], "stat_size"),
        (["--model.backbone.layer.mixer=best"], "best"),
        (["--trainer.max_epochs=many"], "many"),
        (["--trainer.val_check_interval=2.5"], "invalid value 2.5 for val_check_interval, it has to be in [0.0, 1.0]"),
        (["--checkpoint.monitor=val/nothing"], "monitor='val/nothing'"),
        (["--data.batch_size=0", "--data.num_workers=-1"], "asked for batch_size=0, eval_batch_size=0"),
    ],
)
def test_bad_options_get_a_short_error_that_names_them(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, *options)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "pathlib.Path"])
def test_a_recipe_cannot_build_what_is_not_allowed(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, f"--model.backbone.layer={path}")
    assert f"Importing '{path}' is not allowed" in capsys.readouterr().err


def test_options_hold_over_a_recipe_in_any_order(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    before, *others = ["--model.lr=0.5", "--config", str(recipe), "--model.weight_decay=0.25"]
    task = build(recipe, ["--model.lr=0.5"]).model
    assert task.lr == 0.5
    task = _Builder(["validate", before, *others]).model
    assert (task.lr, task.weight_decay) == (0.5, 0.25)


def test_a_home_in_a_recipe_is_one_folder_which_the_second_start_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SCRATCH", str(home / "scratch"))
    monkeypatch.chdir(here)
    recipe = write_recipe(tmp_path, max_epochs=1)
    content = yaml.safe_load(recipe.read_text())
    content["run_dir"], content["data"]["init_args"]["root"] = "~/runs/../runs/x/", "$SCRATCH/data"
    recipe.write_text(yaml.safe_dump(content))
    original = ListOpsTask.training_step

    def killed(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 5:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ListOpsTask, "training_step", killed)
    option = "--trainer.val_check_interval=4"
    with pytest.raises(SystemExit, match="130"):
        fit(recipe, option)
    monkeypatch.setattr(ListOpsTask, "training_step", original)
    fit(recipe, option, f"--run_dir={home}/runs/x")
    assert "fit from" in capsys.readouterr().err
    assert not list(here.iterdir())
    assert {path.name for path in home.iterdir()} == {"runs", "scratch"}
    assert _metrics(home / "runs/x")["steps"] == 10


def test_options_without_an_effect_may_change_in_a_resumed_run(
    complete: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends bit-equal to an uninterrupted one, and its config.yaml holds what it was resumed with."""
    recipe, whole = complete
    run = tmp_path / "run"
    original = ListOpsTask.training_step

    def killed(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 5:
            raise RuntimeError("killed")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ListOpsTask, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(recipe, "--seed_everything=3", f"--run_dir={run}")
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(recipe.parent / "data")
    others = {"data.num_workers": 1, "trainer.log_every_n_steps": 5, "data.root": f"{tmp_path}/link/../data/"}
    words = [f"--{name}={value}" for name, value in others.items()]
    bar = ["--trainer.callbacks+=tasks.run.dashboard.EpochLines", "--trainer.enable_progress_bar=true"]
    fit(recipe, "--seed_everything=3", f"--run_dir={tmp_path}/./run/", *bar, *words)
    ours, theirs = (
        torch.load(each / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for each in (run, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert _metrics(run)["test"] == _metrics(whole)["test"]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["log_every_n_steps"] == 5


def test_a_longer_training_is_another_one(
    complete: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = complete
    _unfinished(run, tmp_path / "other")
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, "--seed_everything=3", f"--run_dir={tmp_path}/other", "--trainer.max_epochs=5")
    told = capsys.readouterr().err
    assert "trainer.max_epochs was 2, is 5: the learning rate falls to 0 at the end of the training" in told
    assert f"--ckpt_path {tmp_path}/other/checkpoints/last.ckpt" in told


def test_predict_prints_the_answers_alone(complete: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "expressions.txt").write_text("[MAX 2 9 ]\n[MIN 4 7 ]\n")
    file = f"--data.predict_file={tmp_path}/expressions.txt"
    code = run_command(["predict", "--config", f"{complete[1]}/config.yaml", file], tmp_path / "output")
    first, *answers = (tmp_path / "output").read_text().splitlines()
    assert code == 0
    assert first == f"msssm: predict from {complete[1]}/checkpoints/best.ckpt"
    assert len(answers) == 2
    assert all(answer.isdigit() for answer in answers)


def test_a_backend_of_a_notebook_ends_no_command(tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "module://of_a_notebook.that_is_not_here"}
    command = [sys.executable, "-m", "tasks.cli.main", "table", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (
        2,
        f"msssm: no complete run below {tmp_path}/runs; run `make reproduce-table` first\n",
    )


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_what_is_written_has_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Backbone(d_model=2, n_layers=1, layer=MultiScaleSSM).save_pretrained(tmp_path / "weights")
        DurableCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
        write_json(tmp_path / "metrics.json", {})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes) == {"model.safetensors", "config.json", "last.ckpt", "metrics.json"}
    assert set(modes.values()) == {0o666 & ~umask}


def test_ema_is_a_callback_of_a_recipe(tmp_path: Path) -> None:
    """Lightning's own: the tested weights are the averaged ones."""
    fit(write_recipe(tmp_path, max_epochs=1), "--trainer.callbacks+=EMAWeightAveraging")
    checkpoint = torch.load(tmp_path / "runs/seed0/checkpoints/best.ckpt", weights_only=True)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)
    assert (tmp_path / "runs/seed0/metrics.json").exists()


def test_help_and_version_import_neither_torch_nor_lightning() -> None:
    program = (
        "import sys; from tasks.cli.main import main; main(['--help']); main(['--version']);"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "msssm fit --config" in shown


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert "no command 'train'" in capsys.readouterr().err
