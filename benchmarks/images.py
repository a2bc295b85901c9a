"""Image models beside timm's ViT-S/16: training images per second, and peak memory against resolution.

python -m benchmarks.images [--batch 4] [--budget 8] [--results results/bench] [--device cpu]

The models are those of configs/imagenet.yaml, the same with S4, and that of configs/scifar.yaml. A training step is
forward, cross-entropy, backward and AdamW, in float32, on images of noise. The ImageNet models and the ViT take turns
in one process. Each peak of memory is measured in a process of its own, above weights, inputs and gradients.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import Tensor, nn

from benchmarks.compare import Case
from benchmarks.memory import peak_mib
from benchmarks.model import training_step
from benchmarks.report import folder_of, machine
from benchmarks.timing import Timing, in_turn
from msssm import Backbone, MultiScaleSSM, PatchEmbedding, SequenceClassifier

CONFIGS = Path(__file__).parents[1] / "configs"
PEER = "timm vit_small_patch16_224"
IMAGENET = {"MS-SSM(S6), 24 x 256": {}, "MS-SSM(S4), 24 x 256": {"ssm": "s4"}}
SCIFAR = "sequential CIFAR, 10 x 256"
RESOLUTIONS = (224, 384, 512)  # 196, 576 and 1024 patches
AGREES = 1e-3  # of the largest logit, after 24 layers in float32


def network(recipe: str, **layer: Any) -> SequenceClassifier:
    """The recipe's model, with options of its sequence layer changed."""
    options = yaml.safe_load((CONFIGS / recipe).read_text())["model"]["init_args"]
    stack = options["backbone"]["init_args"]
    make = partial(MultiScaleSSM, **{**stack.pop("layer")["init_args"], **layer})
    torch.manual_seed(0)
    body = Backbone(make, **stack)
    embedding = PatchEmbedding(options["image_size"], options["patch_size"], options["in_channels"], body.d_model)
    return SequenceClassifier(embedding, body, options["num_classes"])


def imagenet(name: str) -> nn.Module:
    if name == PEER:
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("vit_small_patch16_224", dynamic_img_size=True)
        return model
    return network("imagenet.yaml", **IMAGENET[name])


def noise(batch: int, side: int) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def case(name: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
    """For `peak_mib`: the logits of `size[0]` images of `size[1]` pixels a side."""
    model, x = imagenet(name), noise(*size[:2]).to(dtype)
    return Case(lambda: model(x), list(model.parameters()))


@torch.no_grad()
def disagreement(recipe: str, side: int, device: torch.device, **layer: Any) -> float:
    """Difference of the logits on "auto" from those of the pure torch scans, relative to the largest."""
    timed, plain = (network(recipe, **layer, backend=b).eval().to(device) for b in ("auto", "torch"))
    x = noise(1, side).to(device)
    expected = plain(x)
    return ((timed(x) - expected).abs().max() / expected.abs().max()).item()


def speeds(models: dict[str, nn.Module], batch: int, side: int, device: torch.device, budget: float) -> Any:
    """Times of a training step, models in turn."""
    steps = {}
    for name, model in models.items():
        model.to(device).train()
        run = partial(model, noise(batch, side).to(device))
        steps[name] = training_step(Case(run, list(model.parameters())), model, device)
    return in_turn(steps, device, budget)


def row(name: str, model: nn.Module, batch: int, timing: Timing) -> dict[str, Any]:
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_per_s": 1e3 * batch / timing.best,
        "median_images_per_s": 1e3 * batch / timing.median,
    }


def measure(device: torch.device, batch: int, budget: float) -> list[dict[str, Any]]:
    """One row per model; refuses speeds of a model that disagrees with its pure torch form."""
    errors = {name: disagreement("imagenet.yaml", 224, device, **layer) for name, layer in IMAGENET.items()}
    errors[SCIFAR] = disagreement("scifar.yaml", 32, device)
    if wrong := {name: error for name, error in errors.items() if not error < AGREES}:
        raise ValueError(f"logits disagree with the pure torch scans: {wrong}")
    models = {name: imagenet(name) for name in (*IMAGENET, PEER)}
    times = speeds(models, batch, 224, device, budget)
    rows = [row(name, model, batch, times[name]) for name, model in models.items()]
    for found in rows:
        found["mib"] = [peak_mib(case, found["model"], (1, side), torch.float32, device=device) for side in RESOLUTIONS]
    small = network("scifar.yaml")
    times = speeds({SCIFAR: small}, batch, 32, device, budget)
    return [*rows, row(SCIFAR, small, batch, times[SCIFAR])]


def markdown(rows: list[dict[str, Any]], about: dict[str, Any], batch: int) -> str:
    sides = " | ".join(f"MiB at {side}" for side in RESOLUTIONS)
    lines = [
        f"# Image models on {about['device']}",
        "",
        f"{about['threads']} threads, {about['capability']}, torch {about['torch']}, timm {timm.__version__}, Python "
        f"{about['python']}. Training step in float32, batch {batch}, best of several (median in brackets), models in "
        "turn. MiB: peak of one image's forward and backward, above weights, inputs and gradients.",
        "",
        f"| model | parameters | images/s | {sides} |",
        "|---|" + "---:|" * (2 + len(RESOLUTIONS)),
    ]
    for found in rows:
        mib = [f"{peak:.0f}" for peak in found.get("mib", [])] or [""] * len(RESOLUTIONS)
        lines.append(
            f"| {found['model']} | {found['parameters']:,} | {found['images_per_s']:.2f} "
            f"({found['median_images_per_s']:.2f}) | {' | '.join(mib)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for each model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    device = torch.device(options.device)
    about, rows = machine(device), measure(device, options.batch, options.budget)
    folder = folder_of(about, options.results)
    (folder / "images.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    (folder / "images.md").write_text(markdown(rows, about, options.batch))
    print(markdown(rows, about, options.batch))


if __name__ == "__main__":
    main()
