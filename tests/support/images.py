"""Small pictures in the layouts that ImageNet comes in."""

import io
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02084071")


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth RGB picture, so that JPEG keeps it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A JPEG file."""
    file = io.BytesIO()
    picture(seed, width, height).save(file, "JPEG", quality=95)
    return file.getvalue()


def png16(values: npt.NDArray[np.uint16]) -> bytes:
    """A PNG file with 16 bits of grey."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path, train: int = 6, val: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    """<root>/{train,val}/<class>/<name>.JPEG, so many of each class; returns root."""
    seed = 0
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                seed += 1
                (folder / f"{name}_{index}.JPEG").write_bytes(jpeg(seed))
    return root


def write_tars(root: Path, source: Path) -> Path:
    """The folders of `source` as <root>/train.tar and val.tar; returns root."""
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            archive.add(source / split, arcname=split)
    return root
