"""Image models beside timm's ViT-S/16: training images per second, and peak memory against resolution.

python -m benchmarks.images [--batch 4] [--budget 8] [--results results/bench] [--device cpu]

The models are those of configs/scifar.yaml and configs/imagenet.yaml, and the same ImageNet model with S4; a training
step is forward, cross-entropy, backward and AdamW, in float32, on images of noise. The ImageNet models and the ViT take
turns in one process; each peak of memory is measured in a process of its own, above weights, inputs and gradients. The
sequential CIFAR model stands beside the loader of its own data module, over random bytes at CIFAR-10's full size.
"""

import argparse
import json
import re
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from torch import Tensor, nn

from benchmarks.compare import Case
from benchmarks.memory import peak_mib
from benchmarks.model import training_step
from benchmarks.report import machine
from benchmarks.timing import in_turn, seconds
from msssm import Backbone, MultiScaleSSM, PatchEmbedding, SequenceClassifier
from msssm.diagnostics.flops import count_flops
from tasks.run.provenance import provenance

CONFIGS = Path(__file__).parents[1] / "configs"
PEER = "timm vit_small_patch16_224"
IMAGENET = {"MS-SSM(S6), 24 x 256": {}, "MS-SSM(S4), 24 x 256": {"ssm": "s4"}}
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
    """Of the logits of the backend that is timed with those of the pure torch scans, relative to the largest."""
    timed, plain = (network(recipe, **layer, backend=b).eval().to(device) for b in ("auto", "torch"))
    expected = plain(noise(1, side).to(device))
    return ((timed(noise(1, side).to(device)) - expected).abs().max() / expected.abs().max()).item()


def speeds(methods: dict[str, nn.Module], batch: int, side: int, device: torch.device, budget: float) -> dict[str, Any]:
    """Images per second in training, best and median, methods in turn."""
    steps = {}
    for name, model in methods.items():
        x = noise(batch, side).to(device)
        on_device = model.to(device).train()
        run = Case(lambda model=on_device, x=x: model(x), list(model.parameters()))  # type: ignore[misc]
        steps[name] = training_step(run, on_device, device)
    times = in_turn(steps, device, budget)
    return {name: {"best": 1e3 * batch / t.best, "median": 1e3 * batch / t.median} for name, t in times.items()}


def loader_speed(batch: int) -> float:
    """Images per second of an epoch of sequential CIFAR-10's training batches, to normalised float32."""
    # Here, so that the processes that measure memory load no Lightning.
    from datamodules import SequentialCIFARDataModule
    from datamodules.cifar10.convert import ROWS
    from datamodules.cifar10.files import BATCHES

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "cifar10" / "cifar-10-batches-bin"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for name in BATCHES[1]:
            rows = rng.integers(0, 256, (ROWS, 3073), dtype=np.uint8)
            rows[:, 0] = np.arange(ROWS) % 10
            (folder / name).write_bytes(rows.tobytes())
        data = SequentialCIFARDataModule(root=root, batch_size=batch)
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()

        def epoch() -> None:
            for loaded in loader:
                data.on_after_batch_transfer(loaded, 0)

        return 45_000 / min(seconds(epoch, torch.device("cpu")) for _ in range(2))


def measure(device: torch.device, batch: int, budget: float) -> dict[str, Any]:
    """Everything; refuses speeds of a model that disagrees with its pure torch form."""
    errors = {name: disagreement("imagenet.yaml", 224, device, **layer) for name, layer in IMAGENET.items()}
    errors["sequential CIFAR"] = disagreement("scifar.yaml", 32, device)
    if wrong := {name: error for name, error in errors.items() if not error < AGREES}:
        raise ValueError(f"logits disagree with the pure torch scans: {wrong}")
    models = {name: imagenet(name) for name in (*IMAGENET, PEER)}
    about = {
        name: {
            "parameters": sum(p.numel() for p in model.parameters()),
            "gflops": count_flops(model, noise(1, 224))["total"] / 1e9,
        }
        for name, model in models.items()
    }
    memory = {
        name: {str(side): peak_mib(case, name, (1, side), torch.float32, device=device) for side in RESOLUTIONS}
        for name in models
    }
    small = network("scifar.yaml")
    flops = count_flops(small, noise(1, 32))["total"] / 1e9
    return {
        "imagenet": {
            "images_per_second": speeds(models, batch, 224, device, budget),
            "models": about,
            "memory_mib": memory,
        },
        "scifar": {
            "images_per_second": speeds({"model": small}, batch, 32, device, budget)["model"],
            "loader_images_per_second": loader_speed(50),
            "parameters": sum(p.numel() for p in small.parameters()),
            "gflops": flops,
        },
        "disagreement": errors,
        "batch": batch,
    }


def markdown(found: dict[str, Any]) -> str:
    about, images, small = found["machine"], found["imagenet"], found["scifar"]
    peer = images["images_per_second"][PEER]["best"]
    lines = [
        f"# Image models on {about['device']}",
        "",
        f"{about['threads']} threads, {about['capability']}, torch {about['torch']}, timm {found['timm']}, Python "
        f"{about['python']}, commit {found['commit']}, {found['date']}.",
        f"Training step in float32, batch {found['batch']}, best of several (median in brackets), models in turn. MiB: "
        "peak of one image's",
        "forward and backward, above weights, inputs and gradients. GFLOPs: forward, one image of 224 pixels "
        "(`msssm/diagnostics/flops.py`).",
        "",
        "| ImageNet model | parameters | GFLOPs | images/s at 224 | x ViT | "
        + " | ".join(f"MiB at {side}" for side in RESOLUTIONS)
        + " |",
        "|---|" + "---:|" * (4 + len(RESOLUTIONS)),
    ]
    for name, speed in images["images_per_second"].items():
        model, memory = images["models"][name], images["memory_mib"][name]
        lines.append(
            f"| {name} | {model['parameters']:,} | {model['gflops']:.2f} | {speed['best']:.2f} ({speed['median']:.2f}) "
            f"| {speed['best'] / peer:.2f} | " + " | ".join(f"{memory[str(side)]:.0f}" for side in RESOLUTIONS) + " |"
        )
    speed, loader = small["images_per_second"], small["loader_images_per_second"]
    lines += [
        "",
        f"Sequential CIFAR-10, 10 x 256 ({small['parameters']:,} parameters, {small['gflops']:.2f} GFLOPs): "
        f"{speed['best']:.2f} ({speed['median']:.2f}) images/s in",
        f"training; its loader gives {loader:,.0f} images/s, {loader / speed['best']:,.0f} times as many.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for each model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    device = torch.device(options.device)
    found = measure(device, options.batch, options.budget)
    found |= {"machine": machine(device), "commit": provenance()["commit"], "timm": timm.__version__}
    found["date"] = datetime.now(UTC).date().isoformat()
    folder = options.results / re.sub(r"[^a-z0-9]+", "-", found["machine"]["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "images.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
