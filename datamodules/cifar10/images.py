"""CIFAR-10 as folders of images: <source>/{train,test}/<class>/<image>.png, PNG or JPEG.

Images are ordered by class as in `CLASS_NAMES`, and within a class by file name without suffix, so that the same images
have the same order in either format. It is not the order of the batch files.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from tqdm.auto import tqdm

from datamodules.cifar10.batches import SIDE
from datamodules.faults import Fault
from datamodules.folders import few, left_by_a_system

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = ("train", "test")
ENDINGS = (".png", ".jpg", ".jpeg")
THREADS = 8  # reading waits for the disk more than it computes
_NUMBERS = {name: number for number, name in enumerate(CLASS_NAMES)} | {"plane": 0, "car": 1}


class Listing(NamedTuple):
    """Files of `train` and `test` with their classes, in order, and the faults of the folders."""

    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    faults: list[Fault]


class Images(NamedTuple):
    """Pixels (n, 1024, 3) uint8 and classes (n,) uint8, training images first, and the format of the files."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    form: str


def find(source: Path) -> Path | None:
    """Locates the folder with train/ and test/ that `source` is, contains, or belongs to.

    Returns None if there is none, or if `source` contains several.
    """
    if _is_root(source):
        return source
    if len(held := [path for path in _inside(source) if path.is_dir() and _is_root(path)]) == 1:
        return held[0]
    parent = source.absolute().parent
    return parent if source.name.lower() in SPLITS and _is_root(parent) else None


def listing_digest(source: Path) -> str:
    """sha256 of the names, sizes and modification times of all images, the key of their conversion.

    It reads no pixels, whose digest is that of the conversion.
    """
    digest = sha256()
    train, test, _ = listing(source, 0, 0)
    for path, number in train + test:
        about = path.stat()
        digest.update(f"{path.relative_to(source)} {number} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def listing(source: Path, train: int, test: int) -> Listing:
    """Lists the images of a folder that `find` returned.

    Args:
        source: the folder.
        train: expected training images of each class; 0 skips the comparison.
        test: expected test images of each class, likewise.
    """
    files: dict[str, list[tuple[Path, int]]] = {}
    faults: list[Fault] = []
    left: set[str] = set()
    folders = {path.name.lower(): path for path in _inside(source) if path.is_dir()}
    for split, expected in zip(SPLITS, (train, test), strict=True):
        if split not in folders:
            faults.append(Fault(split, f"{split}: no such folder", missing=True))
            files[split] = []
            continue
        by_class: list[list[Path]] = [[] for _ in CLASS_NAMES]
        for path in sorted(folders[split].iterdir()):
            number = _NUMBERS.get(path.name.lower())
            if left_by_a_system(path.name):
                left.add(path.name)
            elif number is not None and path.is_dir():
                for file in path.iterdir():
                    if left_by_a_system(file.name):
                        left.add(file.name)
                    elif file.suffix.lower() in ENDINGS:
                        by_class[number].append(file)
            elif path.is_dir() or path.suffix.lower() in ENDINGS:
                text = f"{split}/{path.name}: not one of the classes {', '.join(CLASS_NAMES)}"
                faults.append(Fault(split, text))
        for name, paths in zip(CLASS_NAMES, by_class, strict=True):
            if expected and len(paths) != expected:
                text = f"{split}/{name}: {len(paths):,} images ({', '.join(ENDINGS)}), CIFAR-10 has {expected:,}"
                faults.append(Fault(split, text, missing=len(paths) < expected))
        files[split] = [
            (path, number)
            for number, paths in enumerate(by_class)
            for path in sorted(paths, key=lambda path: (path.stem, path.name))
        ]
    if left:
        rank_zero_warn(f"{source}: left out {few(sorted(left))}, which are hidden or left by a system")
    return Listing(files["train"], files["test"], faults)


def read(source: Path, listed: Listing) -> tuple[Images, list[Fault]]:
    """Reads all images, black where there is a fault, and returns the faults."""
    files = listed.train + listed.test
    pixels = np.zeros((len(files), SIDE * SIDE, 3), dtype=np.uint8)
    faults: list[Fault] = []
    jpegs = 0
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_read, (path for path, _ in files))
        bar = tqdm(found, "reading CIFAR-10", len(files), unit="image", disable=None)
        for (path, _), target, (image, form, reason) in zip(files, pixels, bar, strict=True):
            if image is None:
                name = path.relative_to(source)
                faults.append(Fault(str(name.parent), f"{name}: {reason}"))
            else:
                target[:] = image
                jpegs += form == "JPEG"
    labels = np.array([number for _, number in files], dtype=np.uint8)
    if jpegs:
        rank_zero_warn(
            f"{source}: {jpegs:,} of {len(files):,} images are JPEG, which is lossy: their pixels are close to those "
            "of CIFAR-10 but not the same, and so are results on them"
        )
    form = "PNG" if not jpegs else "JPEG (lossy)" if jpegs == len(files) else "PNG and JPEG (lossy)"
    return Images(pixels, labels, form), faults


def _read(path: Path) -> tuple[npt.NDArray[np.uint8] | None, str | None, str]:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                width, height = image.size
                reason = f"{width} x {height} pixels of mode {image.mode}, CIFAR-10 has {SIDE} x {SIDE} of mode RGB"
                return None, image.format, reason
            return np.asarray(image).reshape(-1, 3), image.format, ""
    except Exception as error:  # Pillow's parsers raise almost anything on a damaged file
        return None, None, f"damaged ({type(error).__name__}: {error})"


def _inside(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if not left_by_a_system(path.name))


def _is_root(folder: Path) -> bool:
    """Whether a folder has train/ or test/ with the folder of a class in it."""
    splits = [path for path in _inside(folder) if path.name.lower() in SPLITS and path.is_dir()]
    return any(path.name.lower() in _NUMBERS and path.is_dir() for split in splits for path in _inside(split))
