"""A run that is stopped anywhere and started again is the uninterrupted one, to the bit, in TensorBoard too."""

import re
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import runs
from tests.support.image_recipe import write_image_recipe
from tests.support.ptbxl import copy_to
from tests.support.recipes import write_recipe

# Two epochs of 10 steps; a validation at the end of each, of 2 batches; every second step is logged.
STEPS, EPOCH = 20, 10
EMA = "--trainer.callbacks+=EMAWeightAveraging"
Setting = tuple[str, ...]
SETTINGS: dict[str, Setting] = {
    "plain": (),
    "workers": ("--data.num_workers=2",),
    "ema": (EMA, "--trainer.callbacks.decay=0.9"),
    "often": ("--trainer.val_check_interval=0.3",),
    # Steps of 3 batches and of the 2 that are left: 9 an epoch.
    "accumulate": ("--trainer.accumulate_grad_batches=3", "--data.batch_size=8", "--trainer.max_epochs=3"),
}
KILLS: dict[str, Callable[[], None]] = {
    "first steps": partial(runs.kill_at, 3),
    "mid-epoch": partial(runs.kill_at, 15),
    "validation": partial(runs.kill_in_validation, (16, 18, 20)),
    "epoch end": partial(runs.kill_at_epoch_end, (9, 10)),
    "half-written": partial(runs.kill_while_writing, 5),
    "between renames": partial(runs.kill_while_writing, 4, "rename"),
    "written": partial(runs.kill_while_writing, 4, "written"),
    "test": runs.kill_in_test,
    # With a pre-validation, a best and a last checkpoint an epoch, and with the second best no better, or as good.
    "between best and last": partial(runs.kill_while_writing, 2, "written"),
}
QUICK = [("ema", "mid-epoch"), ("ema", "test"), ("workers", "epoch end"), ("workers", "between renames")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], Path]]:
    """Command and folder of an uninterrupted run of a setting, made when first asked for."""
    recipe = write_recipe(tmp_path_factory.mktemp("whole"))
    made: dict[str, Path] = {}

    def run(setting: str) -> tuple[list[str], Path]:
        command = ["fit", "--config", str(recipe), "--seed_everything=3", *SETTINGS[setting]]
        if setting not in made:
            made[setting] = recipe.parent / setting
            output = recipe.parent / f"{setting}.txt"
            assert runs.run([*command, f"--run_dir={made[setting]}"], output) == 0, output.read_text()
        return command, made[setting]

    return run


def _cases() -> list[object]:
    return [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow, id="-".join(case).replace(" ", "_"))
        for case in product(SETTINGS, KILLS)
    ]


@pytest.mark.parametrize(("setting", "kill"), _cases())
def test_a_killed_run_goes_on_exactly(
    setting: str, kill: str, whole: Callable[[str], tuple[list[str], Path]], tmp_path: Path
) -> None:
    command, expected = whole(setting)
    command = [*command, f"--run_dir={tmp_path / 'cut'}"]
    assert runs.run(command, tmp_path / "log", KILLS[kill]) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (tmp_path / "cut/metrics.json").exists()
    assert runs.run(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    runs.assert_same(tmp_path / "cut", expected)
    assert not list((tmp_path / "cut/checkpoints").glob(".*unfinished"))


def _signals() -> list[object]:
    cases = product(
        ("SIGTERM", "SIGUSR1", "SIGINT"), ("step 13", "validation", "last step"), ("plain", "workers", "ema")
    )
    quick = [("SIGTERM", "step 13", "workers"), ("SIGINT", "validation", "ema")]
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.slow, id="-".join(case).replace(" ", "_"))
        for case in cases
    ]


@pytest.mark.parametrize(("name", "where", "setting"), _signals())
def test_a_signal_saves_at_once_and_exits_with_its_code(
    name: str, where: str, setting: str, whole: Callable[[str], tuple[list[str], Path]], tmp_path: Path
) -> None:
    command, expected = whole(setting)
    command = [*command, f"--run_dir={tmp_path / 'cut'}"]
    signum = signal.Signals[name]
    fault = {
        "step 13": partial(runs.kill_at, 13, signum),
        "validation": partial(runs.kill_in_validation, (10,), signum),
        "last step": partial(runs.kill_at, STEPS - 1, signum),
    }[where]
    start = time.monotonic()
    assert runs.run(command, tmp_path / "log", fault) == 128 + signum
    assert time.monotonic() - start < 30
    log = (tmp_path / "log").read_text()
    saved = {"step 13": 15, "validation": 9, "last step": 19}[where]
    assert f"{name}: saved at step {saved}; the same command resumes" in log
    assert "Traceback" not in log
    assert runs.run(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    runs.assert_same(tmp_path / "cut", expected)


ECG = ["--config=quick/ptbxl/msssm_s6", "--data.synthetic=null", "--data.batch_size=16"]
ECG += ["--model.backbone.d_model=4", "--model.backbone.n_layers=1", "--model.backbone.dropout=0.1"]
ECG += ["--data.crop=250", "--data.eval_batch_size=8", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=2"]
EPOCHS = {"ecg": 10, "digits": 7}  # steps


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], Path]]:
    """Command and folder of an uninterrupted run of another task than ListOps, made when first asked for."""
    folder = tmp_path_factory.mktemp("tasks")
    made: dict[str, list[str]] = {}

    def run(name: str) -> tuple[list[str], Path]:
        if name not in made:
            if name == "ecg":
                copy_to(folder / "data")
                made[name] = ["fit", *ECG, f"--data.root={folder}/data"]
            else:
                made[name] = ["fit", f"--config={write_image_recipe(folder)}", "--data.batch_size=180"]
            output = folder / f"{name}.txt"
            assert runs.run([*made[name], f"--run_dir={folder / name}"], output) == 0, output.read_text()
            assert runs.numbers(folder / name)["steps"] == 2 * EPOCHS[name]
        return made[name], folder / name

    return run


@pytest.mark.parametrize(
    ("name", "kill"),
    [
        pytest.param(name, kill, marks=() if (name, kill) == ("ecg", "mid-epoch") else pytest.mark.slow)
        for name, kill in product(EPOCHS, ("mid-epoch", "validation", "between renames", "epoch end", "test"))
    ],
)
def test_every_task_goes_on_exactly(
    name: str, kill: str, task: Callable[[str], tuple[list[str], Path]], tmp_path: Path
) -> None:
    command, expected = task(name)
    epoch = EPOCHS[name]
    fault = {
        "mid-epoch": partial(runs.kill_at, epoch + epoch // 2),
        "validation": partial(runs.kill_in_validation, (2 * epoch,)),
        "between renames": partial(runs.kill_while_writing, 4, "rename"),
        "epoch end": partial(runs.kill_at_epoch_end, (epoch,)),
        "test": runs.kill_in_test,
    }[kill]
    command = [*command, f"--run_dir={tmp_path / 'cut'}"]
    assert runs.run(command, tmp_path / "log", fault) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert runs.run(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    runs.assert_same(tmp_path / "cut", expected)


@pytest.mark.slow
def test_a_kill_while_the_recipe_is_saved_leaves_the_one_that_was(tmp_path: Path) -> None:
    command = ["fit", "--config", str(write_recipe(tmp_path)), f"--run_dir={tmp_path / 'cut'}"]
    assert runs.run(command, tmp_path / "log", partial(runs.kill_at, 13)) == -signal.SIGKILL
    saved = (tmp_path / "cut/config.yaml").read_bytes()
    assert runs.run(command, tmp_path / "log", runs.kill_while_saving_config) == -signal.SIGKILL
    assert (tmp_path / "cut/config.yaml").read_bytes() == saved
    assert runs.run(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert "last.ckpt, step 10" in (tmp_path / "log").read_text()


def _overflow(step: int) -> None:
    """A fault: the embedding leaves the numbers of the precision."""
    from tasks import ListOpsTask

    original = ListOpsTask.training_step

    def training_step(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if self.global_step == step:
            with torch.no_grad():
                self.model.encoder.weight.mul_(1e38)  # type: ignore[operator,union-attr]
        return original(self, batch, batch_idx)

    ListOpsTask.training_step = training_step  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("16-mixed", marks=pytest.mark.slow)])
def test_an_overflow_of_a_low_precision_is_named_and_costs_nothing(precision: str, tmp_path: Path) -> None:
    """A CPU computes 16-mixed in bfloat16, as Lightning says."""
    command = ["fit", "--config", str(write_recipe(tmp_path)), f"--trainer.precision={precision}"]
    assert runs.run([*command, f"--run_dir={tmp_path / 'whole'}"], tmp_path / "log") == 0
    command.append(f"--run_dir={tmp_path / 'cut'}")
    assert runs.run(command, tmp_path / "log", partial(_overflow, 14)) == 2
    said = (tmp_path / "log").read_text().splitlines()[-1]
    assert re.match(r"msssm: the training loss is nan at step 14: .+last\.ckpt is from before", said), said
    assert runs.run(command, tmp_path / "log") == 0
    runs.assert_same(tmp_path / "cut", tmp_path / "whole")
