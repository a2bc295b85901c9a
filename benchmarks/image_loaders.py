"""Loaders of images beside peers: sequential CIFAR-10 on one core, ImageNet's JPEGs beside timm's own loader.

python -m benchmarks.image_loaders [--images 512] [--workers 2] [--results results/bench]

Both sides of a comparison read the same generated files, in the page cache, in turn. CIFAR-10 is random bytes in its
binary format at its full size; the JPEGs are smooth noise of about 500 x 400 pixels and 90 KB.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.report import machine
from benchmarks.timing import in_turn
from datamodules import ImageNetDataModule, SequentialCIFARDataModule
from datamodules.cifar10.convert import ROWS
from datamodules.cifar10.datamodule import MEAN, STD
from datamodules.cifar10.files import BATCHES

CPU = torch.device("cpu")
BATCH, JPEG_BATCH = 50, 32
FEW = 100  # batches that the slow way of CIFAR-10 is timed on


class _ImageByImage(Dataset[Any]):
    """torchvision's usual way: each image through PIL, ToTensor and Normalize."""

    def __init__(self, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return FEW * BATCH

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.pixels[index].reshape(32, 32, 3))
        return self.transform(image).flatten(1).T, int(self.labels[index])


def cifar10(root: Path) -> list[dict[str, Any]]:
    """Images per second of an epoch of sequential CIFAR-10, main process alone, one thread."""
    folder = root / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in BATCHES[1]:
        rows = rng.integers(0, 256, (ROWS, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(ROWS) % 10
        (folder / name).write_bytes(rows.tobytes())
    data = SequentialCIFARDataModule(root=str(root), batch_size=BATCH)
    data.prepare_data()
    data.setup("fit")
    loader, train = data.train_dataloader(), data.split("train")
    peer = DataLoader(_ImageByImage(train.pixels, train.labels), batch_size=BATCH, shuffle=True)
    methods: dict[str, tuple[int, Callable[[], object]]] = {
        "msssm, bytes": (len(train), lambda: [None for _ in loader]),
        "msssm, bytes made floats on this core": (
            len(train),
            lambda: [None for batch in loader if data.on_after_batch_transfer(batch, 0) is None],
        ),
        "image by image (torchvision transforms)": (FEW * BATCH, lambda: [None for _ in peer]),
    }
    return _rows("sequential CIFAR-10", methods, BATCH)


def imagenet(root: Path, images: int, workers: int) -> list[dict[str, Any]]:
    """Images per second of decoding, cropping, flipping and normalising JPEGs, beside timm's create_loader."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(images):
            width, height = rng.integers(450, 551), rng.integers(350, 451)
            coarse = Image.fromarray(rng.integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8))
            path = root / split / str(index % 4) / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)
    rows = []
    for split, training in (("train", True), ("val", False)):
        data = ImageNetDataModule(source=str(root), batch_size=JPEG_BATCH, num_workers=workers)
        data.setup("fit")
        own = data.train_dataloader() if training else data.val_dataloader()
        timms = create_loader(
            create_dataset("", root=str(root), split=split),
            (3, 224, 224),
            JPEG_BATCH,
            is_training=training,
            color_jitter=None,  # type: ignore[arg-type]
            interpolation="bicubic",
            num_workers=workers,
            device=CPU,
        )
        count = images // JPEG_BATCH * JPEG_BATCH
        methods: dict[str, tuple[int, Callable[[], object]]] = {
            "msssm": (count, lambda own=own, data=data: [data.on_after_batch_transfer(b, 0).y[0] for b in own]),
            "timm create_loader": (count, lambda timms=timms: [y[0] for _, y in timms]),
        }
        rows += _rows(f"ImageNet, {split}, {workers} workers", methods, JPEG_BATCH, budget=15)
    return rows


def _rows(
    case: str, methods: dict[str, tuple[int, Callable[[], object]]], batch: int, budget: float = 4
) -> list[dict[str, Any]]:
    times = in_turn({name: run for name, (_, run) in methods.items()}, CPU, budget)
    per_image = {name: times[name].best / methods[name][0] for name in methods}
    own = next(iter(per_image.values()))
    return [
        {
            "case": case,
            "method": name,
            "images_per_s": 1e3 / ms,
            "batches_per_s": 1e3 / ms / batch,
            "median_images_per_s": 1e3 * methods[name][0] / times[name].median,
            "runs": times[name].runs,
            "own_time_over_this": own / ms,
        }
        for name, ms in per_image.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="JPEGs of each split")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = cifar10(Path(folder))
        rows += imagenet(Path(folder) / "imagenet", options.images, options.workers)
    about = {**machine(CPU), "load": os.getloadavg()[0], "cores": os.cpu_count()}
    lines = [
        f"# Image loaders on {about['device']}",
        "",
        f"1 thread per process, torch {about['torch']}, Python {about['python']}. The best of several epochs, the",
        "median in brackets, methods in turn; the last column is the time per image of the first method of the case",
        f"over this one's. Load of the machine, these included: {about['load']:.1f} on {about['cores']} cores.",
        f"Batches of {BATCH} (CIFAR-10, main process alone) and {JPEG_BATCH}.",
        "",
        "| case | method | images/s | batches/s | own time / its time |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {r['case']} | {r['method']} | {r['images_per_s']:,.0f} ({r['median_images_per_s']:,.0f}) | "
            f"{r['batches_per_s']:,.1f} | {r['own_time_over_this']:.3f} |"
            for r in rows
        ),
    ]
    place = options.results / re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    place.mkdir(parents=True, exist_ok=True)
    (place / "image_loaders.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    (place / "image_loaders.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
