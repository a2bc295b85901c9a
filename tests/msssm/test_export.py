"""What is handed on gives the same numbers: saved backbones, exported runs, and steps captured as programs."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load, save_file
from torch.utils import _pytree as pytree

from msssm import Backbone, MultiScaleSSM
from msssm.baselines import S4D, CausalAttention, Mamba, MultiresConv
from msssm.export import exported_step, step_to_onnx
from msssm.scan.csrc.library import library
from tasks.cli.export import load_exported, portable
from tasks.cli.main import main
from tasks.ecg.recordings.model import read_model
from tasks.listops.task import ListOpsTask
from tests.support.recipes import fit, write_recipe
from tests.support.tolerances import OUTPUT, STEP, assert_near

LAYERS: dict[str, Any] = {
    "s6": partial(MultiScaleSSM, levels=2, state_size=4, mixer="softmax", mixer_heads=2, skip=True),
    "s4": partial(MultiScaleSSM, levels=2, state_size=4, ssm="s4"),
    "Mamba": Mamba,
    "MultiresConv": partial(MultiresConv, levels=3),
}
COMPLEX: dict[str, Any] = {"S4D": S4D, "s4-complex": partial(MultiScaleSSM, ssm="s4", diagonal="complex")}


def _backbone(layer: Any, **options: Any) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(layer, 8, n_layers=2, **options)
    backbone(torch.randn(3, 9, 8))  # moves the statistics of a batch norm off their start
    return backbone.eval()


@pytest.mark.parametrize("name", [*LAYERS, *COMPLEX, "CausalAttention"])
def test_a_saved_backbone_is_the_same_network(name: str, tmp_path: Path) -> None:
    options = {"norm": "batch", "prenorm": True, "dropout": 0.1, "drop_path": 0.2}
    backbone = _backbone((LAYERS | COMPLEX).get(name, CausalAttention), **options)
    backbone.save_pretrained(tmp_path)
    torch.manual_seed(7)
    again, x = Backbone.from_pretrained(tmp_path), torch.randn(2, 12, 8)
    assert torch.equal(again(x), backbone(x))
    assert again.config == backbone.config
    assert [block.drop_path for block in again.blocks] == [0, 0.2]
    assert not again.training
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_folder_wins_over_a_shipped_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Backbone.from_pretrained("ptbxl-small")
    monkeypatch.chdir(tmp_path)
    Backbone(S4D, 8, n_layers=1).save_pretrained("ptbxl-small")
    with pytest.warns(UserWarning, match=f"reads the folder {tmp_path}/ptbxl-small, not the shipped model ptbxl-small"):
        assert Backbone.from_pretrained("ptbxl-small").d_model == 8
    assert shipped.d_model != 8


def test_a_model_has_the_types_of_its_file_whatever_the_default(tmp_path: Path) -> None:
    x = torch.randn(1, 20, 8)
    backbone = _backbone(LAYERS["s6"])
    backbone.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        again = Backbone.from_pretrained(tmp_path)
        recording = read_model().network
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in [*again.parameters(), *recording.parameters()]} == {torch.float32}
    assert all(p.requires_grad for p in again.parameters())
    assert torch.equal(again(x), backbone(x))
    again.save_pretrained(tmp_path)
    assert torch.equal(again(x), backbone(x)), "it does not read its file any more"


def test_what_cannot_be_saved_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"functools.partial of one"):
        Backbone(lambda d: S4D(d), 8).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        Backbone.from_pretrained(tmp_path)
    Backbone(S4D, 8, n_layers=1).save_pretrained(tmp_path)
    config, weights = (tmp_path / name for name in ("config.json", "model.safetensors"))
    whole = load(weights.read_bytes())
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        Backbone.from_pretrained(tmp_path)
    save_file({**whole, "extra": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="do not fit the config"):
        Backbone.from_pretrained(tmp_path)
    content = json.loads(config.read_text())
    content["backbone"]["layer"]["class_path"] = "os.system"
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"layers of msssm, got 'os.system'"):
        Backbone.from_pretrained(tmp_path)
    config.write_text(json.dumps({**content, "format": 1}))
    with pytest.raises(ValueError, match="not of format 2"):
        Backbone.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and its export."""
    folder = tmp_path_factory.mktemp("export")
    fit(write_recipe(folder, max_epochs=1))
    run, output = folder / "runs" / "seed0", folder / "exported"
    main(["export", "--run_dir", str(run), "--output", str(output), "--onnx"])
    return run, output


def test_an_exported_run_has_the_same_logits(exported: tuple[Path, Path]) -> None:
    run, output = exported
    task = ListOpsTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    x, lengths = torch.randint(18, (3, 20)), torch.tensor([20, 4, 11])
    again = load_exported(output)
    assert torch.equal(again(x, lengths), task(x, lengths))
    embedded = task.model.encoder(x)
    assert torch.equal(Backbone.from_pretrained(output)(embedded), task.model.backbone(embedded))


def test_an_export_holds_no_pickle_and_no_path_of_this_machine(exported: tuple[Path, Path]) -> None:
    run, output = exported
    names = {path.name for path in output.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "recipe.yaml", "step.onnx"}
    for name in ("README.md", "config.json", "recipe.yaml"):
        assert str(run.parents[1]) not in (output / name).read_text()
    options = {"root": "/home/me/data", "source": "/home/me/images", "batch_size": 8}
    recipe = yaml.safe_load(portable(yaml.safe_dump({"run_dir": "/home/me/run", "data": {"init_args": options}})))
    assert recipe == {"run_dir": "runs/exported", "data": {"init_args": {"root": "data", "batch_size": 8}}}


def test_the_model_card_has_the_numbers_of_the_run(exported: tuple[Path, Path]) -> None:
    run, output = exported
    metrics = json.loads((run / "metrics.json").read_text())
    card = ModelCard.load(output / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {name.removeprefix("test/"): value for name, value in metrics["test"].items()}
    assert card.data.license == "apache-2.0"
    assert f"{metrics['parameters']:,} parameters" in card.text
    assert metrics["data"]["digest"] in card.text
    assert f"one seed ({metrics['seed']})" in card.text
    assert re.search(r"1 layers of width 8", card.text)


def test_a_bad_export_is_refused_and_leaves_folders_alone(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = exported
    for name, folder, message in (
        (tmp_path / "none", tmp_path / "out", "none/config.yaml does not exist"),
        (run, output, "is not empty; choose another --output"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["export", "--run_dir", str(name), "--output", str(folder)])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(library() is None, reason="the native kernels are not built")
@pytest.mark.parametrize("name", ["s6", "s4", "Mamba"])
@torch.no_grad()
def test_torch_export_captures_the_forward(name: str) -> None:
    """Through our operators, for other lengths than the example's."""
    backbone = _backbone(LAYERS[name])
    example = (torch.randn(2, 9, 8), torch.tensor([9, 4]))
    shapes = {"x": {1: torch.export.Dim("L", min=2)}, "lengths": None}
    program = torch.export.export(backbone, example, dynamic_shapes=shapes)
    x, lengths = torch.randn(2, 70, 8), torch.tensor([33, 70])
    assert_near(program.module()(x, lengths), backbone(x, lengths), OUTPUT[torch.float32])
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    operators = {str(node.target) for graph in graphs for node in graph.nodes}
    expected = {"s6": "msssm.selective", "s4": "msssm.lti", "Mamba": "msssm.selective"}[name]
    assert any(operator.startswith(expected) for operator in operators)


@pytest.mark.parametrize("name", [*LAYERS, *COMPLEX])
@torch.no_grad()
def test_the_exported_step_streams_as_the_layer_does(name: str) -> None:
    backbone = _backbone((LAYERS | COMPLEX)[name])
    step, x = exported_step(backbone, batch_size=2).module(), torch.randn(2, 15, 8)
    state, outputs = backbone.initial_state(2), []
    for x_t in x.unbind(1):
        y, state = step(x_t, state)
        outputs.append(y)
    assert_near(torch.stack(outputs, 1), backbone(x), OUTPUT[torch.float32])


@pytest.mark.parametrize("name", ["s4", pytest.param("s6", marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_onnx_step_streams_as_the_layer_does(name: str, tmp_path: Path) -> None:
    backbone = _backbone(LAYERS[name])
    step_to_onnx(backbone, tmp_path / "step.onnx", batch_size=2)
    model = onnx.load(tmp_path / "step.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}, "standard operators alone"
    session, x = ReferenceEvaluator(model), torch.randn(2, 15, 8)
    assert session.input_names[0] == "x"
    state = [leaf.numpy() for leaf in pytree.tree_leaves(backbone.initial_state(2)) if leaf is not None]
    outputs = []
    for x_t in x.unbind(1):
        feed = dict(zip(session.input_names, [x_t.numpy(), *state], strict=True))
        y, *state = session.run(None, feed)
        outputs.append(torch.from_numpy(np.asarray(y)))
    assert_near(torch.stack(outputs, 1), backbone(x), OUTPUT[torch.float32])


def test_what_has_no_exported_step_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no complex exponential"):
        step_to_onnx(_backbone(S4D), tmp_path / "step.onnx")
    with pytest.raises(ValueError, match="grows with every step"):
        exported_step(_backbone(CausalAttention))


def test_plain_torch_is_exported_with_its_gradients_on() -> None:
    layer, x = MultiScaleSSM(4, 1, 2, 2, backend="torch"), torch.randn(2, 5, 4)
    program = torch.export.export(layer, (x,))
    assert_near(program.module()(x), layer(x), STEP[torch.float32])


PUBLISHED = sorted(Path("msssm/models").iterdir())


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_models_are_read(folder: Path) -> None:
    """As a whole task, and the stack alone: with the same weights."""
    task, stack = load_exported(folder), Backbone.from_pretrained(folder)
    theirs = {name.removeprefix("model.backbone."): value for name, value in task.state_dict().items()}
    assert all(torch.equal(value, theirs[name]) for name, value in stack.state_dict().items())
