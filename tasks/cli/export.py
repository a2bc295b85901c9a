"""`msssm export`: a run as a folder to share: safetensors, recipe and model card, without pickle."""

import json
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors.torch import load_file
from torch import nn

from datamodules import PTBXLDataModule
from msssm.errors import InputError, MissingFileError
from msssm.export import step_to_onnx
from msssm.paths import local_path
from msssm.pretrained import WEIGHTS, read_pretrained, write_pretrained
from tasks.base import SequenceTask
from tasks.cli.load import LoadedRun, build, find_backbone, load_run, run_arguments
from tasks.cli.parser import CommandParser
from tasks.ecg.recordings.card import ecg_sections
from tasks.ecg.recordings.judge import judge
from tasks.ecg.recordings.model import Answers, write_answers
from tasks.ecg.task import ECGTask
from tasks.messages import say
from tasks.paths import make_folder, path_option
from tasks.run.checkpoint_io import read_checkpoint
from tasks.run.provenance import commits, read_json

RECIPE = "recipe.yaml"


def main(args: list[str]) -> None:
    """Writes a trained model as a folder to share: weights as safetensors, recipe and model card, without pickle.

    The files are model.safetensors, config.json, recipe.yaml and README.md, the model card. Further options are those
    of the recipe.

    Raises:
        ValueError: there is no trained run, it has no `msssm.Backbone`, or the folder is not empty.
    """
    parser = CommandParser("export", main, "msssm export --run_dir runs/mine --output my_model")
    run_arguments(parser)
    parser.add_argument("--output", type=path_option, required=True, metavar="FOLDER", help="where to write; a new one")
    parser.add_argument(
        "--ecg",
        action="store_true",
        help="also ecg.json for msssm ecg: calibration and thresholds, from folds 9 and 10 of the run's PTB-XL",
    )
    parser.add_argument("--onnx", action="store_true", help="also the backbone's streaming step, as step.onnx")
    options, overrides = parser.parse_known_args(args)
    if options.output.is_dir() and any(options.output.iterdir()):
        raise InputError(f"{options.output} is not empty; choose another --output or delete it")
    run = load_run(options, overrides)
    if run.checkpoint is None:
        raise InputError("an export needs trained weights: name a --run_dir with checkpoints/, or a --ckpt_path")
    network = cast(nn.Module, run.task.model)
    name, backbone = find_backbone(network)
    answers = _judged(run, run.checkpoint) if options.ecg else None
    make_folder(options.output)
    write_pretrained(options.output, backbone.config, network.state_dict(), f"{name}." if name else "")
    (options.output / RECIPE).write_text(portable(run.recipe))
    metrics = run.folder / "metrics.json"
    card = model_card(run.task, read_json(metrics) if metrics.exists() else None, answers)
    card.save(options.output / "README.md")
    if answers is not None:
        write_answers(options.output, answers)
    if options.onnx:
        step_to_onnx(backbone, options.output / "step.onnx")
    print(options.output)
    if options.ecg:
        say(f"next: msssm ecg RECORDING --model {options.output}")


def _judged(run: LoadedRun, checkpoint: Path) -> Answers:
    """Judges an ECG run on its held-out folds. Raises InputError for a run of another task."""
    if not isinstance(run.task, ECGTask) or not isinstance(run.datamodule, PTBXLDataModule):
        raise InputError("--ecg needs a run of tasks.ECGTask and datamodules.PTBXLDataModule; leave it out for others")
    run.datamodule.prepare_data()
    run.datamodule.setup("test")
    run.datamodule.load_state_dict(read_checkpoint(checkpoint)[PTBXLDataModule.__name__])
    return judge(run.task.model, run.datamodule, run.task.aggregation)


def portable(recipe: str) -> str:
    """Removes the paths of the machine from a recipe."""
    content = yaml.safe_load(recipe)
    for key in ("config", "ckpt_path", "checkpoint"):
        content.pop(key, None)
    content["run_dir"] = "runs/exported"
    options = content["data"]["init_args"]
    options.pop("source", None)  # of images, if they are not below the root
    if "root" in options:
        options["root"] = "data"
    return yaml.safe_dump(content, sort_keys=False)


def load_exported(folder: str | Path) -> SequenceTask:
    """Loads the task from a folder that `msssm export` wrote, in `eval()`: its recipe, with its weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights do not fit the recipe.
    """
    folder = local_path(folder)
    read_pretrained(folder)
    if not (folder / RECIPE).is_file():
        raise MissingFileError(f"{folder} has no {RECIPE}; name a folder that msssm export wrote")
    task = build(folder / RECIPE, []).model
    try:
        cast(nn.Module, task.model).load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: the weights do not fit the recipe ({reason}); export it again") from error
    return cast(SequenceTask, task.eval())


def model_card(task: SequenceTask, metrics: dict[str, Any] | None, answers: Answers | None = None) -> ModelCard:
    """Writes a card with the metrics of a complete run; without `metrics`, one that says there are none.

    The `answers` of an ECG model add its use, data, calibration and thresholds.
    """
    kind = type(task).__name__
    _, backbone = find_backbone(task)
    results = [
        EvalResult(
            "sequence-classification", kind, f"{kind}, the run's own test set", name.removeprefix("test/"), value
        )
        for name, value in (metrics["test"] if metrics else {}).items()
    ]
    data = ModelCardData(
        license="apache-2.0",
        library_name="msssm",
        tags=["state-space-model", "ms-ssm"],
        model_name=f"msssm {kind}" if results else None,
        eval_results=results or None,
    )
    layer = (backbone.config["layer"] or {"class_path": "unknown"})["class_path"].rsplit(".", 1)[1]
    parameters = sum(parameter.numel() for parameter in task.parameters())
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {kind} with {layer}",
        "",
        f"{len(backbone.blocks)} layers of width {backbone.d_model}, {parameters:,} parameters; the resolved recipe is "
        f"`{RECIPE}`, the weights are `{WEIGHTS}`.",
        "",
        "## Measured",
        "",
        *_measured(metrics),
        "",
        *(ecg_sections(answers) if answers else []),
        "## Use",
        "",
        "```python",
        "from msssm import Backbone",
        "from tasks.cli.export import load_exported",
        "",
        'task = load_exported("path/to/this/folder")  # the whole classifier',
        'backbone = Backbone.from_pretrained("path/to/this/folder")  # the stack alone, without Lightning',
        "```",
        "",
        "MS-SSM: [arXiv 2512.23824](https://arxiv.org/abs/2512.23824).",
        "",
    ]
    return ModelCard("\n".join(lines))


def _measured(metrics: dict[str, Any] | None) -> list[str]:
    if metrics is None:
        return ["The run was not complete when it was exported: it has no test result."]
    versions = ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())
    hardware = " + ".join(metrics["hardware"]["gpus"]) or metrics["hardware"]["processor"]
    commit = ", ".join(commits(metrics))
    return [
        *(f"- {name}: {value:.4f}" for name, value in metrics["test"].items()),
        f"- best validation ({metrics['validation']['monitor']}): {metrics['validation']['best']:.4f}",
        f"- one seed ({metrics['seed']}), {metrics['steps']:,} steps, "
        f"{'tested once' if metrics['test'] else 'not tested'} at the best validation",
        f"- data: {json.dumps({key: metrics['data'][key] for key in sorted(metrics['data']) if key != 'positives'})}",
        f"- commit {commit}; {versions}; {hardware}",
    ]
