"""timm's ViT through the command line: a training, its checkpoint, and the commands that are for a msssm.Backbone."""

import json
from pathlib import Path

import pytest
import torch

from datamodules import DigitsDataModule
from msssm.timm import ViT
from tasks import ImageTask
from tasks.cli.main import main
from tests.support.image_recipe import write_image_recipe
from tests.support.tolerances import METRIC

BACKBONE = {"class_path": "msssm.timm.ViT", "init_args": {"d_model": 16, "n_layers": 1, "heads": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    recipe = write_image_recipe(folder, max_epochs=4, backbone=BACKBONE, position_embedding=True)
    main(["fit", "--config", str(recipe)])
    return folder / "run"


@pytest.mark.slow
def test_a_run_trains_and_its_checkpoint_answers_as_the_run_did(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["test/accuracy"] > 0.3, "chance is 0.1"
    task = ImageTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True)
    backbone = task.model.backbone
    assert isinstance(backbone, ViT)
    assert len(backbone.blocks) == 1
    assert metrics["parameters"] == sum(p.numel() for p in task.parameters())
    # One block has 12 d^2 + 13 d, the norm 2 d; patches of 4 pixels, 16 positions, 10 classes.
    assert metrics["parameters"] == 12 * 16**2 + 13 * 16 + 2 * 16 + 5 * 16 + 16 * 16 + 17 * 10
    data = DigitsDataModule(eval_batch_size=400)
    data.setup("test")
    [batch] = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    with torch.no_grad():
        right = task.eval()(batch.x).argmax(-1) == batch.y
    assert right.double().mean().item() == pytest.approx(metrics["test"]["test/accuracy"], abs=METRIC)


@pytest.mark.parametrize("command", [["diagnose"], ["export", "--output", "{folder}/out"]])
def test_commands_for_a_backbone_of_ours_say_so(
    command: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*(word.format(folder=tmp_path) for word in command), "--run_dir", str(run)])
    error = capsys.readouterr().err
    assert "needs a network with a msssm.Backbone, got one with ViT" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
