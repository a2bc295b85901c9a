"""`msssm diagnose`: the numbers of a run on disk, its alarms, and a page that stands alone."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.cli.diagnose import alarms
from tasks.cli.main import main
from tasks.reports.diagnosis_page import sentences
from tests.support.image_recipe import write_image_recipe
from tests.support.images import write_folder
from tests.support.recipes import fit, write_recipe
from tests.support.tolerances import FLOAT32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diagnose")
    fit(write_recipe(folder, max_epochs=1))
    return folder / "runs" / "seed0"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def _diagnose(folder: Path, *options: str) -> dict[str, Any]:
    main(["diagnose", "--run_dir", str(folder), "--samples", "2", *options])
    return json.loads((folder / "diagnostics.json").read_text())


def _damage(folder: Path, name: str, value: float) -> None:
    path = folder / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    [key] = [key for key in checkpoint["state_dict"] if key.endswith(name)]
    checkpoint["state_dict"][key].fill_(value)
    torch.save(checkpoint, path)


def test_a_healthy_run_has_no_alarm_and_one_page_with_its_plots(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _diagnose(copy)
    [layer] = result["layers"]
    assert layer["path"] == "backbone.blocks.0.layer"
    assert layer["receptive_field"] == [1, 2, 4, 4]
    assert max(layer["shift_error"], layer["padding_error"], result["backbone"]["padding_error"]) < FLOAT32
    assert 0 < layer["mixing_distance"] < max(result["lengths"])
    assert sum(layer["mixer"]["mean"]) == pytest.approx(1, abs=FLOAT32)
    assert result["alarms"] == []
    assert "1 layers, 0 alarms" in capsys.readouterr().out
    page = (copy / "diagnostics.html").read_text()
    plots = sorted(path.name for path in copy.glob("diagnostics_*.png"))
    assert page.count("data:image/png;base64,") == len(plots) == 3
    assert not re.search(r"(src|href)=\"(?!data:)|https?:", page), "the page needs nothing but itself"


def test_the_numbers_are_those_of_the_checkpoint(copy: Path) -> None:
    """Every rate e: a band remembers 1 / (1 - exp(-delta e)); slower than before, and the same in every band."""
    _damage(copy, "ssm.log_rate", 1.0)
    _damage(copy, "ssm.delta_bias", 0.0)
    delta = torch.log(torch.tensor(2.0))
    expected = 1 / (1 - torch.exp(-delta * torch.e)).item()
    assert _diagnose(copy)["layers"][0]["memory"]["parameters"] == pytest.approx([expected] * 4, rel=FLOAT32)


def test_a_uniform_mixer_raises_the_alarm(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _damage(copy, "mixer.projection.weight", 0.0)
    _damage(copy, "mixer.projection.bias", -0.5)
    [alarm] = _diagnose(copy)["alarms"]
    assert "backbone.blocks.0.layer: the mixer is uniform" in alarm
    assert f"ALARM {alarm}" in capsys.readouterr().out
    assert alarm in (copy / "diagnostics.html").read_text()


def test_a_checkpoint_that_is_not_finite_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _damage(copy, "ssm.log_rate", float("nan"))
    with pytest.raises(SystemExit):
        _diagnose(copy)
    assert "ssm.log_rate is not finite in" in capsys.readouterr().err


def test_every_failure_sign_has_its_alarm() -> None:
    bad = {
        "path": "l",
        "stability_margin": 0.0,
        "shift_error": 1.0,
        "padding_error": 1.0,
        "mixer": {"collapsed": True, "uniform": True, "effective_bands": 1.0},
    }
    found = alarms({"layers": [bad], "backbone": {"padding_error": 1.0}})
    for sign in (
        "|Abar| reaches 1",
        "collapsed to 1.00",
        "uniform",
        "shifted input",
        "l: padding",
        "backbone: padding",
    ):
        assert sum(sign in alarm for alarm in found) == 1
    assert len(found) == 6


def test_a_layer_without_scales_is_diagnosed_too(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    layer = "--model.backbone.layer={class_path: msssm.baselines.CausalAttention, init_args: {heads: 2}}"
    main(["diagnose", "--config", str(recipe), f"--run_dir={tmp_path}/start", "--samples=1", layer])
    result = json.loads((tmp_path / "start/diagnostics.json").read_text())
    assert result["checkpoint"] is None
    assert "memory" not in result["layers"][0]
    assert result["layers"][0]["mixing_distance"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run with --run_dir"),
        (["--run_dir", "nowhere"], "nowhere/config.yaml does not exist"),
        (["--run_dir", "{run}", "--samples", "0"], "must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["diagnose", *(word.format(run=run) for word in words)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_without_a_checkpoint_says_so(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(SystemExit):
        main(["diagnose", "--run_dir", str(copy)])
    assert "best.ckpt does not exist; name a --ckpt_path" in capsys.readouterr().err


IMAGENET = "--data=datamodules.ImageNetDataModule --data.source={folder} --data.image_size=16 --data.num_workers=0"
PATCHES = "--model.image_size=16 --model.patch_size=8 --model.in_channels=3 --model.num_classes=3"


@pytest.mark.parametrize(
    ("options", "positions"),
    [pytest.param(f"{IMAGENET} {PATCHES}", 4, marks=pytest.mark.slow), ("--model.patch_size=1", 64)],
)
def test_images_are_diagnosed_too(tmp_path: Path, options: str, positions: int) -> None:
    """ImageNet's loader gives bytes (B, 3, 16, 16), that of the digits pixels (B, 64, 1)."""
    folder = write_folder(tmp_path / "images", train=1, val=1)
    recipe = write_image_recipe(tmp_path)
    words = [
        "--config",
        str(recipe),
        f"--run_dir={tmp_path}/run",
        "--samples=2",
        *options.format(folder=folder).split(),
    ]
    main(["diagnose", *words])
    result = json.loads((tmp_path / "run/diagnostics.json").read_text())
    assert result["lengths"] == [positions] * 2
    assert len(result["layers"]) == 1
    assert result["alarms"] == []


def test_a_sentence_says_what_a_plot_shows() -> None:
    """Means over two layers: memories (10, 40), shares (.7, .3), distances 5 and 9."""
    layer = {
        "memory": {"measured": [8, 50]},
        "mixing_distance": 5.0,
        "mixer": {"mean": [0.8, 0.2], "effective_bands": 1.6},
    }
    other = {
        "memory": {"measured": [12, 30]},
        "mixing_distance": 9.0,
        "mixer": {"mean": [0.6, 0.4], "effective_bands": 2},
    }
    said = sentences([layer, other])
    assert said["Effective memory"] == (
        "The band 1 (approximation) remembers longest, 40 steps; 0 (input) shortest, 10 (means over layers)."
    )
    assert "comes from 7 steps before it on average; layer 1 looks back farthest, 9 steps." in said["Mixing distance"]
    assert said["Scale mixer"] == (
        "The band 0 (input) carries 70 % of the output, and its memory is 10 steps. Of 2 bands 1.8 are in effect (mean "
        "over layers)."
    )
    assert sentences([{"mixing_distance": 1.0}]).keys() == {"Mixing distance"}
